"""The measurements that a GPU alone can make, as far as a machine without one can try them: sections, commands,
records, and tables. That the CUDA sources compile is the compile gate's work."""

import gzip
import json
import sys
from pathlib import Path

import compile_gate
import pytest
import torch
from gpus import limits

from benchmarks import kernels, micro, stalls, tiers
from benchmarks.__main__ import main
from benchmarks.cases import CASES
from fusedlstm import _C

ROOT = Path(__file__).parent.parent


def test_every_source_is_a_section():
    assert {path.stem for path in micro.FOLDER.glob("*.cu")} == set(micro.SECTIONS)


def test_the_gate_compiles_every_section():
    assert {path.stem for path in compile_gate.MICRO} == set(micro.SECTIONS)


@pytest.mark.parametrize(
    ("capability", "missing"),
    [
        ((9, 0), set()),
        ((8, 0), {"wgmma", "bulk", "multicast", "cluster"}),
        ((12, 0), {"wgmma"}),
    ],
)
def test_what_a_gpu_cannot_run(capability, missing):
    assert {name for name, section in micro.SECTIONS.items() if section.needs(capability)} == missing
    for name in missing:
        needs = f"needs compute capability 9.0, this GPU has {capability[0]}.{capability[1]}"
        assert micro.SECTIONS[name].needs(capability) == needs


def test_how_nvcc_is_called():
    command = micro.build_command("nvcc", "wgmma", (9, 0), Path("out"))
    assert "-gencode=arch=compute_90a,code=sm_90a" in command
    assert str(micro.FOLDER / "wgmma.cu") in command
    assert "-arch=native" in micro.build_command("nvcc", "host", (8, 0), Path("out"))


POINT = '{"what": "copy", "us": 1.5, "ok": true}'


def test_records_of_a_program_that_ends_well():
    assert micro.parse(f"{POINT}\n", "") == [{"what": "copy", "us": 1.5, "ok": True}]


@pytest.mark.parametrize(
    ("output", "error", "last"),
    [
        (POINT, "hung: it did not end within 30 s", "hung: it did not end within 30 s"),
        (f"{POINT}\nhalf a li", "", "not a record: half a li"),
        (f'{POINT}\n{{"us": 1}}', "", 'not a record: {"us": 1}'),
        (f'{POINT}\n{{"error": "hung: a launch", "ok": false}}', "exit status 1", "hung: a launch"),
        ("", "", "it printed nothing"),
    ],
    ids=["hung", "cut_off", "no_check", "own_error", "nothing"],
)
def test_what_goes_wrong_is_a_record(output, error, last):
    records = micro.parse(output, error)
    assert records[-1] == {"error": last, "ok": False}
    assert len(records) == (2 if output else 1)


def test_a_program_that_hangs_keeps_what_it_printed():
    script = f"import time; print({POINT!r}, flush=True); time.sleep(60)"
    ran = micro._run([sys.executable, "-c", script], 2)
    assert micro.parse(ran.output, ran.error)[0]["us"] == 1.5
    assert ran.error == "hung: it did not end within 2 s"


def test_a_program_that_crashes_says_why():
    ran = micro._run([sys.executable, "-c", "raise SystemExit('out of luck')"], 20)
    assert ran.error == "exit status 1: out of luck"


def test_a_section_measured_again_replaces_its_own_records(tmp_path):
    path = tmp_path / "gpu" / "micro.jsonl"
    micro.write(path, "host", [{"section": "host", "us": 1}, {"section": "host", "us": 2}])
    micro.write(path, "bulk", [{"section": "bulk", "us": 3}])
    micro.write(path, "host", [{"section": "host", "us": 4}])
    assert [json.loads(line)["us"] for line in path.read_text().splitlines()] == [3, 4]


def test_facts_of_a_card():
    card = micro.parse_card("NVIDIA H100 80GB HBM3, 580.1, 345, 1980, 2619, 2619, 700.00, [N/A]\nanother, card\n")
    assert card["ok"]
    assert (card["name"], card["clocks.max.sm"], card["power.limit"]) == ("NVIDIA H100 80GB HBM3", 1980.0, 700.0)
    assert card["temperature.gpu"] is None
    assert not micro.parse_card("No devices were found")["ok"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["micro", "stalls", "kernels"])
@pytest.mark.parametrize("device", [[], ["--device", "cuda"]], ids=["default", "cuda"])
def test_without_a_gpu_a_command_says_so(command, device):
    with pytest.raises(SystemExit) as error:
        main([command, *device])
    assert error.value.code == f"{command}: needs a GPU that torch sees, and --device cuda"


def _with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))


def test_micro_writes_each_section_at_once(monkeypatch, tmp_path, capsys):
    _with_a_gpu(monkeypatch)
    monkeypatch.setattr(micro, "nvcc", lambda: "nvcc")
    assert main(["micro", "--device", "cuda", "--section", "wgmma", "--results", str(tmp_path)]) == 0
    (record,) = map(json.loads, (tmp_path / "micro.jsonl").read_text().splitlines())
    assert record["skipped"] == "needs compute capability 9.0, this GPU has 8.0"
    assert set(micro.ORIGIN) <= set(record)
    assert record["skipped"] in capsys.readouterr().out


def test_a_source_that_does_not_compile_is_a_record(monkeypatch, tmp_path):
    _with_a_gpu(monkeypatch)
    monkeypatch.setattr(micro, "nvcc", lambda: "false")
    assert main(["micro", "--device", "cuda", "--section", "host", "--results", str(tmp_path)]) == 1
    (record,) = map(json.loads, (tmp_path / "micro.jsonl").read_text().splitlines())
    assert record["error"] == "nvcc: exit status 1"


@pytest.mark.parametrize(
    ("command", "module", "tool", "message"),
    [("micro", micro, "nvcc", "there is no nvcc"), ("stalls", stalls.shutil, "which", "there is no ncu")],
)
def test_a_missing_tool_is_named(command, module, tool, message, monkeypatch, tmp_path):
    _with_a_gpu(monkeypatch)
    monkeypatch.setattr(module, tool, lambda *args, **kwargs: None)
    with pytest.raises(SystemExit, match=message):
        main([command, "--device", "cuda", "--results", str(tmp_path)])


SAMPLE = """"Kernel Name","lstm_forward_persistent_kernel"
"#","Address","Source","Warp Stall Sampling (All Samples)","Warp Stall Sampling (Not-issued Samples)",\
"Instructions Executed","stall_barrier","stall_long_sb","stall_not_selected","stall_barrier (Not Issued)"
"1","0x7f00","      LDG.E.128.STRONG.GPU R4, [R2.64] ","1,200","900","64","200","1000","","200"
"2","0x7f10","@!P0  BRA `(.L_x_1) ","300","200","64","0","","300","7"
"3","0x7f20","      EXIT ","","","8","","","",""
"""


def test_instructions_of_a_source_page():
    load, branch, end = stalls.parse(SAMPLE)
    assert (load.address, load.text, load.samples) == ("0x7f00", "LDG.E.128.STRONG.GPU R4, [R2.64]", 1200)
    assert load.reasons == {"barrier": 200, "long_sb": 1000}
    assert branch.reasons == {"not_selected": 300}
    assert (end.samples, end.reasons) == (0, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Source", "Text", 'no column "Source"'),
        ("Address", "Place", "no column ['Address']"),
        ("Warp Stall Sampling (All Samples)", "Samples", "no column ['Warp Stall Sampling (All Samples)']"),
        ("stall_", "reason_", "no column ['stall_<reason>']"),
        ("1,200", "", "300"),
    ],
)
def test_a_missing_column_is_named(old, new, message):
    text = SAMPLE.replace(old, new)
    if message == "300":
        assert sum(instruction.samples for instruction in stalls.parse(text)) == 300
        return
    with pytest.raises(ValueError, match="ncu's source page") as error:
        stalls.parse(text)
    assert message in str(error.value)


def test_a_page_without_samples_is_an_error():
    with pytest.raises(ValueError, match="3 instructions and no samples"):
        stalls.parse(SAMPLE.replace("1,200", "0").replace('"300","200"', '"0","200"'))


def test_table_of_stalls():
    text = stalls.table("Forward", stalls.parse(SAMPLE))
    assert "1500 samples over 3 instructions." in text
    assert "| long_sb | 66.7% |" in text
    assert "| 0 | 0x7f00 | `LDG.E.128.STRONG.GPU R4, [R2.64]` | 80.0% | long_sb 66.7%, barrier 13.3% |" in text
    assert text.index("long_sb | ") < text.index("not_selected | ") < text.index("barrier | ")


def test_a_table_has_the_instructions_with_most_samples_in_order_of_address():
    many = [stalls.Instruction(hex(i), f"OP{i}", i, {"wait": i}) for i in range(50)]
    text = stalls.table("Forward", many)
    shown = [int(line.split()[1]) for line in text.splitlines() if "`OP" in line]
    assert shown == list(range(10, 50))


def test_what_ncu_printed_is_kept_within_its_limit(monkeypatch, tmp_path):
    stalls.keep(tmp_path / "whole.gz", SAMPLE)
    assert gzip.decompress((tmp_path / "whole.gz").read_bytes()).decode() == SAMPLE
    monkeypatch.setattr(stalls, "_MOST_BYTES", 200)
    stalls.keep(tmp_path / "cut.gz", SAMPLE)
    kept = gzip.decompress((tmp_path / "cut.gz").read_bytes()).decode()
    assert SAMPLE.startswith(kept)
    assert 50 < len(kept) < len(SAMPLE)
    assert (tmp_path / "cut.gz").stat().st_size <= 200


def _fake_ncu(tmp_path, page):
    """An ncu that makes an empty profile and prints `page` of it."""
    (tmp_path / "page.csv").write_text(page)
    program = tmp_path / "ncu"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in --import) cat "{tmp_path}/page.csv";; *) while [ "$1" != --export ]; do shift; done; '
        'touch "$2";; esac\n'
    )
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("page", "status", "text"),
    [(SAMPLE, 0, "1500 samples"), (SAMPLE.replace("Source", "Text"), 1, "Not measured: ncu's source page")],
    ids=["whole", "without_a_column"],
)
def test_stalls_of_both_launches(page, status, text, monkeypatch, tmp_path, capsys):
    _with_a_gpu(monkeypatch)
    _fake_ncu(tmp_path, page)
    monkeypatch.setattr(stalls.shutil, "which", lambda name: str(tmp_path / name))
    assert main(["stalls", "--device", "cuda", "--results", str(tmp_path / "h100")]) == status
    assert (tmp_path / "h100/stalls.md").read_text().count(text) == len(stalls.LAUNCHES)
    for launch in stalls.LAUNCHES:  # whether it can be read or not
        assert gzip.decompress((tmp_path / f"h100/stalls-{launch.name}.csv.gz").read_bytes()).decode() == page
    assert ("no column" in capsys.readouterr().out) == bool(status)


def test_ncu_leaves_the_clocks():
    command = stalls.profile_command("ncu", stalls.LAUNCHES[0], Path("report"))
    assert command[command.index("--clock-control") + 1] == "none"
    assert command[command.index("--launch-count") + 1] == "1"
    assert command[-3:] == ["64", "64", "64"]


def test_criteria_name_what_tiers_measures():
    assert len({criterion.name for criterion in kernels.CRITERIA}) == len(kernels.CRITERIA)
    for criterion in kernels.CRITERIA:
        assert criterion.case in CASES
        assert criterion.strategy in tiers.STRATEGIES
        assert criterion.predicted_us < criterion.kill_us


def test_predictions_are_the_plans_and_limits_what_kernels_before_took():
    lines = (ROOT / "benchmarks/results/h200/tiers.jsonl").read_text().splitlines()
    recorded = {
        (tier["case"], tier["dtype"], tier["backward"], tier["strategy"]): tier["kernel_us"]
        for tier in map(json.loads, lines)
    }
    for criterion in kernels.CRITERIA:
        case, key = CASES[criterion.case], (criterion.case, criterion.dtype, criterion.backward)
        problem = _C.Problem(
            steps=case.T, batch=case.N, hidden=case.H, dtype=criterion.dtype, backward=criterion.backward
        )
        plan = _C.make_plan(problem, limits("H200"), criterion.strategy)
        assert criterion.predicted_us == pytest.approx(plan.persistent_us - 20 / case.T, abs=0.01)
        assert criterion.kill_us <= recorded[(*key, criterion.strategy)] + 0.01


@pytest.mark.parametrize(("factor", "passes"), [(1.0, True), (1.01, False), (0.0, False)])
def test_a_kernel_passes_up_to_its_limit(factor, passes):
    criterion = kernels.CRITERIA[0]
    assert kernels.judge(criterion, criterion.kill_us * factor)["passes"] == passes


def test_a_launch_that_was_not_measured_does_not_pass():
    record = kernels.judge(kernels.CRITERIA[0], None)
    assert not record["passes"]
    assert record["error"] == "no such launch was measured"


def test_kernels_are_judged_by_the_tiers(monkeypatch, tmp_path, capsys):
    _with_a_gpu(monkeypatch)
    monkeypatch.setattr(_C, "launch_us", lambda: 4.9)
    monkeypatch.setattr(tiers, "limits_of_this_gpu", lambda launch_us: None)

    def measure(case, dtype, limits):
        for backward in (False, True):
            for strategy in ("stepwise", "persistent", "persistent_flags"):
                us = None if strategy == "stepwise" else 5.0
                yield tiers.Tier(
                    case.name, case.T, case.N, case.H, dtype, backward, strategy, "", "", True, 1.0, 6.0, us, 4.9, "0"
                )  # fmt: skip

    monkeypatch.setattr(tiers, "measure", measure)
    arguments = ["kernels", "--device", "cuda", "--results", str(tmp_path)]
    assert main(arguments) == main(arguments) == 1
    records = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == [criterion.name for criterion in kernels.CRITERIA]
    for record in records:
        assert record["measured_us"] == 5.0
        assert record["passes"] == (record["kill_us"] >= 5.0)
    assert "MISSED; profile a step" in capsys.readouterr().out
