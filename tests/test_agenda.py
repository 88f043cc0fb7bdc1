"""The agenda of a GPU, tested without one: its runner with stand-in parts, its archive, its lists."""

import io
import json
import os
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from agenda import __main__ as command_line
from agenda import archive, listing, process, runner, state
from agenda.machine import Machine
from agenda.part import Part
from agenda.parts import PARTS
from agenda.sources import Sources

from benchmarks import records

ROOT = Path(__file__).parent.parent
MACHINE = Machine("NVIDIA H200", "h200", "580", "2.11.0", "c0ffee")
BUDGET = runner.RESERVE + 60


def part(name: str, code: str, **options: object) -> Part:
    return Part(
        name, f"a part that is {name}", ("{python}", "-S", "-c", code), **{"estimate": 1, "limit": 20} | options
    )


def writing(name: str, path: Path, text: str, **options: object) -> Part:
    code = f"import pathlib; p = pathlib.Path({str(path)!r}); p.parent.mkdir(exist_ok=True); p.write_text({text!r})"
    return part(name, f"{code}; print('wrote', 1)", **options)


@pytest.fixture
def agenda(tmp_path, monkeypatch):
    """Runs parts as one run on a GPU does, with sources of the test's own; its folders are attributes."""
    monkeypatch.setattr(process, "GRACE", 0.2)

    class Agenda:
        results, out, sources = tmp_path / "results", tmp_path / "out", tmp_path / "sources"
        folder = results / MACHINE.folder

        def run(self, parts: list[Part], budget: float = BUDGET, machine: Machine = MACHINE) -> dict[str, str]:
            one = runner.Run(parts, machine, self.results, self.out, budget, Sources(self.sources))
            self.status = one.run()
            return {record.part: record.outcome for record in one.done}

        def states(self, parts: list[Part]) -> list[str]:
            return [state.state_of(each, self.folder, Sources(self.sources)) for each in parts]

        def packed(self) -> dict[str, bytes]:
            with tarfile.open(self.out / "records.tar.gz") as tar:
                return {member.name: tar.extractfile(member).read() for member in tar}

    (tmp_path / "sources").mkdir()
    return Agenda()


def test_a_run_goes_on_where_the_last_one_ended(agenda):
    parts = [
        part("failing", "print('the reason'); raise SystemExit(3)"),
        writing("passing", agenda.folder / "made.jsonl", "1\n", writes=("made.jsonl",)),
        part("forgetful", "print('as if')", writes=("never.jsonl",)),
        part("absent", "raise SystemExit(1)", packages=("a_package_that_nobody_has",)),
    ]
    assert agenda.states(parts) == ["missing"] * 4
    assert list(agenda.run(parts).items()) == [("failing", "failed"), ("passing", "passed"), ("forgetful", "failed")]
    assert agenda.status == 1
    assert agenda.states(parts) == ["failed", "current", "failed", "missing"]
    record = state.read("failing", agenda.folder)
    assert (record.status, record.output, record.gpu, record.commit) == (3, "the reason", "NVIDIA H200", "c0ffee")
    assert "did not write never.jsonl" in state.read("forgetful", agenda.folder).output
    assert "wrote 1" in (agenda.out / "log.txt").read_text()

    new = part("new", "pass")
    assert list(agenda.run([*parts, new])) == ["new", "failing", "forgetful"]  # what failed comes last
    assert list(agenda.run([new])) == []
    assert agenda.status == 0
    summary = (agenda.out / "summary.txt").read_text()
    assert "nothing ran" in summary
    assert "left" not in summary


def test_other_sources_make_a_record_stale(agenda):
    of_all, of_one = part("all", "pass"), part("one", "pass", sources=("one/*.py",))
    (agenda.sources / "setup.py").write_text("1")
    (agenda.sources / "one").mkdir()
    agenda.run([of_all, of_one])
    assert agenda.states([of_all, of_one]) == ["current", "current"]
    (agenda.sources / "one/new.py").write_text("1")
    assert agenda.states([of_all, of_one]) == ["current", "stale"]
    (agenda.sources / "setup.py").write_text("2")
    assert agenda.states([of_all, of_one]) == ["stale", "stale"]
    agenda.run([of_all, of_one])
    assert agenda.states([of_all, replace(of_one, command=("{python}", "-c", ""))]) == ["current", "stale"]


def test_what_was_built_or_written_must_still_be_there(agenda):
    built = [True]
    parts = [
        part("build", "pass", required=True, holds=lambda: built[0]),
        writing("rows", agenda.folder / "made.jsonl", "", writes=("made.jsonl",)),
    ]
    agenda.run(parts)
    (agenda.folder / "made.jsonl").unlink()
    assert agenda.states(parts) == ["current", "missing"]
    built[0] = False
    assert agenda.states(parts) == ["missing", "missing"]


def test_machines_have_records_of_their_own(agenda):
    parts = [part("passing", "pass")]
    agenda.run(parts)
    assert agenda.run(parts, machine=replace(MACHINE, gpu="NVIDIA H100", folder="h100")) == {"passing": "passed"}
    assert state.read("passing", agenda.results / "h100").gpu == "NVIDIA H100"
    assert state.read("passing", agenda.folder).gpu == "NVIDIA H200"


# A child that ignores SIGTERM and writes its number.
STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
pathlib.Path({path!r}).write_text(str(child.pid))
print("started", flush=True)
{then}
"""


def _is_running(pid: int) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _dies(path: Path) -> bool:
    pid, end = int(path.read_text()), time.monotonic() + 5
    while _is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not _is_running(pid)


@pytest.mark.parametrize(
    ("limit", "budget", "outcome"),
    [(0.7, BUDGET, "timed out"), (20, runner.RESERVE + 1.2, "cut off")],
    ids=["its own limit", "the budget"],
)
def test_a_part_that_hangs_dies_with_its_children(agenda, tmp_path, limit, budget, outcome):
    hanging = part(
        "hanging", STUBBORN.format(path=str(tmp_path / "pid"), then="time.sleep(60)"), limit=limit, estimate=0.5
    )
    start = time.monotonic()
    assert agenda.run([hanging, part("next", "pass", estimate=0)], budget)["hanging"] == outcome
    assert time.monotonic() - start < 10
    assert _dies(tmp_path / "pid")
    assert (state.read("hanging", agenda.folder).output, agenda.states([hanging])) == ("started", ["failed"])
    assert (state.read("next", agenda.folder) is not None) == (outcome == "timed out")


def test_what_a_part_leaves_running_dies_too(agenda, tmp_path):
    assert agenda.run([part("leaving", STUBBORN.format(path=str(tmp_path / "pid"), then=""))]) == {"leaving": "passed"}
    assert _dies(tmp_path / "pid")


def test_a_part_that_does_not_fit_gives_way(agenda):
    parts = [part("long", "pass", estimate=100), part("short", "pass"), part("shorter", "pass", estimate=0.5)]
    assert list(agenda.run(parts)) == ["short", "shorter"]
    assert "left for the next run, about 100 s: long" in (agenda.out / "summary.txt").read_text()
    assert agenda.states(parts) == ["missing", "current", "current"]


def test_without_what_all_need_nothing_runs(agenda):
    parts = [part("first", "pass"), part("build", "raise SystemExit('no compiler')", required=True)]
    assert agenda.run(parts) == {"build": "failed"}
    assert json.loads(agenda.packed()["results/h200/agenda/build.json"])["output"] == "no compiler"
    assert agenda.run(parts) == {"build": "failed"}, "a failed build must be tried again, and first"


def test_a_command_that_cannot_be_started(agenda):
    missing = Part("missing", "no program", ("a-program-that-nobody-has",), 1, 5)
    assert agenda.run([missing, part("next", "pass")]) == {"missing": "failed", "next": "passed"}
    assert "cannot be started" in state.read("missing", agenda.folder).output


def test_parts_of_a_group_run_beside_each_other(agenda, tmp_path):
    """Each waits for the file of the other."""
    wait = "import os, time; open({own!r}, 'w')\nwhile not os.path.exists({other!r}): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    parts = [
        part("a", wait.format(own=a, other=b), group="both", limit=5),
        part("between", "pass"),
        part("b", wait.format(own=b, other=a), group="both", limit=5),
    ]
    assert agenda.run(parts) == {"a": "passed", "b": "passed", "between": "passed"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_packs_what_there_is(agenda, capsys, number):
    """The runner gets it from a part."""
    code = f"import os, time; print('here', flush=True); os.kill(os.getppid(), {number:d}); time.sleep(60)"
    parts = [part("first", "pass"), part("hanging", code), part("next", "pass")]
    start = time.monotonic()
    assert agenda.run(parts) == {"first": "passed", "hanging": "cut off"}
    assert time.monotonic() - start < 10
    assert agenda.status == 128 + number
    assert "1 passed, 1 cut off" in capsys.readouterr().out
    assert {"results/h200/agenda/first.json", "results/h200/agenda/hanging.json"} < agenda.packed().keys()
    assert agenda.states(parts) == ["current", "failed", "missing"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_records_are_short_and_name_no_folders(agenda):
    text = "print('x' * 9000); print('10%\\r 50%\\r100%'); print('error in /usr/lib/torch/x.py, at 5 us/step of a/b/c')"
    agenda.run([part("loud", text)])
    output = state.read("loud", agenda.folder).output
    assert len(output) <= 4000
    assert output.endswith("x\n100%\nerror in x.py, at 5 us/step of a/b/c")


def _rows(*values: tuple[str, float]) -> list[records.Row]:
    sizes = dict.fromkeys("TNIHLDPV", 1)
    return [records.Row(case, "torch", "inference", "float16", 1, **sizes, median_us=us) for case, us in values]


def _write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _archive(tmp_path: Path, before: dict[str, str], rows: list[records.Row]) -> tuple[archive.Packing, Path]:
    """A run that began with some files."""
    there = tmp_path / "there/h200"
    _write(there, **before)
    records.write(there / "rows.csv", rows)
    return archive.Packing(there, tmp_path, "c0ffee", "digest"), there


def test_the_archive_has_what_changed(tmp_path):
    packing, there = _archive(tmp_path, {"old_jsonl": "old", "micro_jsonl": "old"}, [])
    _write(there, micro_jsonl="new", agenda__a_json="{}")
    assert packing.pack() == []
    with tarfile.open(packing.path) as tar:
        assert set(tar.getnames()) == {"manifest.json", "results/h200/micro.jsonl", "results/h200/agenda/a.json"}


def test_the_archive_keeps_to_its_size(tmp_path):
    packing, there = _archive(tmp_path, {}, [])
    (there / "large.bin").write_bytes(os.urandom(9000))
    (there / "larger.bin").write_bytes(os.urandom(20000))
    _write(there, micro_jsonl="new")
    assert packing.pack(limit=5000) == ["larger.bin", "large.bin"]
    assert packing.path.stat().st_size <= 5000
    here = tmp_path / "here"
    collected = archive.collect(packing.path, here, "digest", "c0ffee")
    assert collected == [
        "h200/micro.jsonl",
        *(f"{n}.bin: left out of the archive, too large" for n in ("larger", "large")),
    ]


def test_records_come_to_their_places(tmp_path):
    packing, there = _archive(tmp_path, {"micro_jsonl": "old", "same_jsonl": "same"}, _rows(("a", 1), ("b", 1)))
    _write(there, micro_jsonl="new", agenda__a_json='{"date": "2"}', agenda__b_json='{"date": "2"}')
    records.write(there / "rows.csv", _rows(("b", 2), ("c", 2)))
    packing.pack()
    here = tmp_path / "here/h200"
    _write(here, micro_jsonl="old", same_jsonl="other", agenda__a_json='{"date": "1"}', agenda__b_json='{"date": "3"}')
    records.write(here / "rows.csv", _rows(("a", 5), ("b", 1), ("d", 5)))  # a and d were measured elsewhere meanwhile
    archive.collect(packing.path, here.parent, "digest", "c0ffee")
    assert records.read(here / "rows.csv") == _rows(("a", 5), ("b", 2), ("c", 2), ("d", 5))
    assert (here / "micro.jsonl").read_text() == "new"
    assert (here / "same.jsonl").read_text() == "other"
    assert json.loads((here / "agenda/a.json").read_text())["date"] == "2"
    assert json.loads((here / "agenda/b.json").read_text())["date"] == "3"
    assert not list(here.rglob("*.partial"))


def test_a_file_that_changed_meanwhile_is_not_overwritten(tmp_path):
    packing, there = _archive(tmp_path, {"micro_jsonl": "old"}, [])
    _write(there, micro_jsonl="new", other_jsonl="new")
    packing.pack()
    here = tmp_path / "here/h200"
    _write(here, micro_jsonl="of another run")
    with pytest.raises(archive.RefusedError, match=r"micro\.jsonl in .* must be what the run began with"):
        archive.collect(packing.path, here.parent, "digest", "c0ffee")
    assert not (here / "other.jsonl").exists()
    archive.collect(packing.path, here.parent, "digest", "c0ffee", force=True)
    assert (here / "micro.jsonl").read_text() == "new"


def test_an_archive_of_other_sources_is_refused(agenda):
    parts = [part("passing", "pass")]
    (agenda.sources / "setup.py").write_text("1")
    agenda.run(parts)
    path, here = agenda.out / "records.tar.gz", agenda.sources.parent / "here"
    (agenda.sources / "setup.py").write_text("2")
    digest = Sources(agenda.sources).of_all(parts)
    with pytest.raises(archive.RefusedError, match=r"must be of this checkout's sources \(beef\), got those of c0ffee"):
        archive.collect(path, here, digest, "beef")
    assert not here.exists()
    archive.collect(path, here, digest, "beef", force=True)
    assert state.state_of(parts[0], here / "h200", Sources(agenda.sources)) == "stale"


@pytest.mark.parametrize(
    "name", ["../x", "/x", "results/x", "results/../x/y", "results/h200/../../x", "results/h200/.x"]
)
def test_an_archive_with_other_names_is_refused(tmp_path, name):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(archive.RefusedError, match="must have files of records alone"):
        archive.collect(tmp_path / "x.tar.gz", tmp_path / "results", "", "")
    assert not (tmp_path / "results").exists()


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x").write_text("text")
    with pytest.raises(archive.RefusedError, match="must be an archive of"):
        archive.collect(tmp_path / "x", tmp_path, "", "")
    with pytest.raises(archive.RefusedError, match="must be an archive of"):
        archive.collect(tmp_path / "y", tmp_path, "", "")


def test_the_list_of_parts(agenda):
    done, failing, new = part("done", "pass"), part("failing", "raise SystemExit(1)"), part("new", "pass", estimate=30)
    group = [part(name, "pass", group="checks", estimate=seconds) for name, seconds in (("long", 10), ("short", 4))]
    parts = [done, failing, new, *group]
    agenda.run([done, failing])
    states = dict(zip((each.name for each in parts), agenda.states(parts), strict=True))
    lines = [line.split() for line in listing.dry("h200", parts, states, 40).splitlines()]
    assert " ".join(lines[0]) == "h200: 3 missing, 1 failed, 1 current; about 41 s to run, of which 40 s fit into 40 s"
    assert [line[:7] for line in lines[2:]] == [
        ["1", "0", "s", "30", "s", "missing", "new"],
        ["2", "30", "s", "10", "s", "missing", "long"],
        ["3", "30", "s", "4", "s", "missing", "short"],
        ["4", "-", "1", "s", "failed", "failing", "a"],
        ["-", "1", "s", "current", "done", "a", "part"],
    ]


def test_a_summary_fits_a_terminal():
    made = [part(f"part_{number}", "pass") for number in range(90)]
    done = [
        state.Record(each.name, "", "", "", "", "", "", 1.0, 0, "failed" if each is made[80] else "passed", "why\nso")
        for each in made
    ]
    states = dict.fromkeys((each.name for each in made), "current") | {made[80].name: "failed"}
    lines = listing.summary(MACHINE, made, done, states, {}, 90, 100).splitlines()
    assert len(lines) <= 60
    assert lines[0].endswith("89 passed, 1 failed; 90 of 100 s")
    assert lines[1].split() == ["part_80", "failed", "1.0", "s", "so"]
    assert any("others" in line for line in lines)


def test_the_command_line(tmp_path, capsys):
    results = ["--results", str(tmp_path / "results")]
    assert command_line.main(["dry", "--budget", "200", *results]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"no GPU yet: {len(PARTS)} missing")
    assert len(lines) == len(PARTS) + 2

    packing = archive.Packing(tmp_path / "results/h200", tmp_path, "c0ffee", Sources().of_all(PARTS))
    _write(tmp_path / "results/h200", micro_jsonl="new")
    packing.pack()
    (tmp_path / "results/h200/micro.jsonl").unlink()
    assert command_line.main(["collect", str(packing.path), *results]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "h200/micro.jsonl"
    assert command_line.main(["collect", str(tmp_path / "none"), *results]) == 1
    assert "agenda: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="torch sees none"):
        command_line.main(["run"])
