"""Tables, figures and growth made of rows, against numbers worked out by hand; no measurement is needed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fusedlstm
from benchmarks import environment, growth, plots, records, report
from benchmarks.cases import DTYPES, MODES
from benchmarks.records import Row

ROOT = Path(__file__).parent.parent
# T=10, N=5, I=H=20: 2 * 10 * 5 * 4 * 20 * 40 = 320,000 operations; 3360 weights and biases and 2000 values in and out.
SIZES = {"T": 10, "N": 5, "I": 20, "H": 20, "L": 1, "D": 1, "P": 0, "V": 0}


def _row(provider, median_us=None, case="lm_200", mode="inference", **other):
    facts = {"dtype": "float32", "threads": 2, "peak_tflops": 0.008, "peak_gb_s": 1.0, "device": "Some CPU"}
    return Row(case, provider, mode, median_us=median_us, **SIZES | facts | other)


def _pair(ours, torch_time, case="lm_200", **other):
    measured = {"ratio": torch_time / ours, "ratio_low": 0.9 * torch_time / ours, "ratio_high": 1.2 * torch_time / ours}
    ours_row = _row("fusedlstm", ours, case, p20_us=0.5 * ours, p80_us=2 * ours, **measured, **other)
    return [ours_row, _row("torch", torch_time, case, **other)]


# Three cases: faster, slower than both others, and one that ONNX Runtime fails in.
ROWS = [
    *_pair(100.0, 250.0, "lm_200"),
    _row("onnxruntime", 200.0, "lm_200"),
    *_pair(4000.0, 3200.0, "lm_medium"),
    _row("onnxruntime", 1000.0, "lm_medium"),
    *_pair(10.0, 40.0, "lm_char"),
    _row("onnxruntime", case="lm_char", error="RuntimeError: no |\n such op"),
    *(_row("openvino", case=case, error="absent: no module openvino") for case in ("lm_200", "lm_medium", "lm_char")),
    *_pair(100.0, 400.0, "lm_200", mode="training"),
]


def _cells(text, heading, case):
    """The cells of a case's line under a heading, by column."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    header, *body = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return dict(zip(header, next(line for line in body if line[0] == case), strict=True))


def test_numbers_of_a_table():
    assert _cells(report.tables(ROWS), "float32, inference", "lm_200") == {
        "case": "lm_200",
        "size": "T10 N5 I20 H20 L1",
        "fusedlstm": "100 us (50.0..200)",
        "speed-up over nn.LSTM, both eager (95%)": "2.50 (2.25..3.00)",
        "over the fastest other, both eager": "2.00 (onnxruntime)",
        "nn.LSTM": "250 us",
        "onnxruntime": "200 us",
        "TFLOP/s": "0.00320",  # 320,000 operations in 100 us
        "GB/s": "0.214",  # 4 * 5360 bytes in 100 us
        "of bound": "40%",  # 40 us for the operations at 8 GFLOP/s, 21.44 us for the bytes at 1 GB/s
    }


def test_units_and_sizes():
    rows = [*_pair(1500.0, 3000.0, mode="lm_step", D=2, P=7, V=11), _row("torch_plain", 0.5, mode="lm_step")]
    cells = _cells(report.tables(rows), "float32, lm_step", "lm_200")
    assert cells["fusedlstm"] == "1.50 ms (0.750..3.00)"
    assert cells["size"] == "T10 N5 I20 H20 L1 D2 P7 V11"
    assert cells["nn.LSTM in plain torch"] == "0.500 us"


def test_without_rates_there_is_no_bound():
    rows = [replace(row, peak_tflops=0.0) for row in ROWS]
    assert _cells(report.tables(rows), "float32, inference", "lm_200")["of bound"] == "-"


def test_geometric_means_are_over_common_cases():
    text = report.tables(ROWS).split("## float32, inference\n")[1].split("\n## ")[0]
    # nn.LSTM: cube root of 2.5 * 0.8 * 4; ONNX Runtime: square root of 2 * 0.25, without the case it fails in.
    assert "both have: nn.LSTM 2.00 (3 cases), onnxruntime 0.707 (2 cases), " in text
    assert "the fastest other, both eager 1.26 (3 cases)." in text  # cube root of 2 * 0.25 * 4


@pytest.mark.parametrize("median_us", [None, 77.0])
@pytest.mark.parametrize("provider", ["fusedlstm", "torch", "onnxruntime"])
def test_an_error_never_gives_a_figure(provider, median_us):
    rows = [*_pair(100.0, 250.0), _row("onnxruntime", 50.0)]
    broken = [
        replace(row, error="Mismatch: y", median_us=median_us) if row.provider == provider else row for row in rows
    ]
    text = report.tables(broken)
    cells = _cells(text, "float32, inference", "lm_200")
    assert cells[report.label(provider)] == "error"
    assert f"- {report.label(provider)}, lm_200: Mismatch: y" in text
    assert "77" not in text + report.speed([broken])
    if provider != "onnxruntime":
        assert cells["speed-up over nn.LSTM, both eager (95%)"] == "-"
        assert "2.50" not in text + report.speed([broken])
    if provider == "fusedlstm":
        assert [cells[name] for name in ("TFLOP/s", "GB/s", "of bound")] == ["-"] * 3
        missing = "Without a time of fusedlstm, though another has one: lm_200 inference float32"
        assert f"{missing}." in text
        assert missing in report.speed([broken])
        assert "| Some CPU | float32 |\n" in report.speed([broken])
        assert "Geometric mean" not in text
    else:
        assert "Without a time" not in text


def test_an_error_stays_on_its_line():
    assert "- onnxruntime, lm_char: RuntimeError: no \\| such op" in report.tables(ROWS).splitlines()


def test_absent_providers_are_named_and_have_no_column():
    text = report.tables(ROWS)
    assert "openvino" not in _cells(text, "float32, inference", "lm_200")
    assert text.split("## Absent providers\n")[1].strip() == "- openvino: no module openvino"
    assert text.count("no module openvino") == 1
    some = [*ROWS, _row("openvino", 123.0, "lm_200")]
    assert _cells(report.tables(some), "float32, inference", "lm_medium")["openvino"] == "absent"


def test_notes_are_shown():
    rows = [replace(row, note="weights not packed") if row.provider == "torch" else row for row in ROWS[:4]]
    assert "- nn.LSTM, lm_200: weights not packed" in report.tables(rows).splitlines()


def test_losses_are_listed_worst_first():
    rows = [*ROWS, *_pair(100.0, 50.0, "lm_char", mode="training")]
    text = report.tables(rows).split("## Where fusedlstm is slower\n")[1].split("\n## ")[0]
    assert "Another provider is faster in 2 of 5 measurements." in text
    lines = [line for line in text.splitlines() if line.startswith("| lm_")]
    assert lines == [
        "| lm_medium | inference | float32 | 2 | onnxruntime 0.250, nn.LSTM 0.800 (0.720..0.960) |",
        "| lm_char | training | float32 | 2 | nn.LSTM 0.500 (0.450..0.600) |",
    ]


def test_threads_are_not_mixed():
    rows = [*_pair(100.0, 200.0, threads=1), *_pair(50.0, 55.0, threads=2)]
    text = report.tables(rows)
    assert _cells(text, "float32, inference, threads: 1", "lm_200")["nn.LSTM"] == "200 us"
    assert _cells(text, "float32, inference, threads: 2", "lm_200")["nn.LSTM"] == "55.0 us"
    assert "| 1.10 (0 of 1) | 1.10 (0 of 1) |" in report.speed([rows])


def test_caption():
    first = _row("torch", torch="2.13.0", driver="580.1", cuda="13.0", cudnn="91300", commit="abc", date="2026-08-01")
    expected = "Some CPU, threads 2, torch 2.13.0, driver 580.1, CUDA 13.0, cuDNN 91300, commit abc"
    assert report.caption([first]) == f"{expected}, on 2026-08-01"
    second = replace(first, commit="def", date="2026-08-03")
    assert report.caption([second, first]) == f"{expected} and def, on 2026-08-01 and 2026-08-03"


GPU = {"device": "NVIDIA H200", "cuda": "13.0", "dtype": "bfloat16"}


def _in_graphs(ours, torch_time, case="lm_200", **other):
    """As `_pair`, both in CUDA graphs."""
    pair = _pair(ours, torch_time, case, **GPU | other)
    return [replace(row, provider=f"{row.provider}_graph") for row in pair]


def test_the_short_table():
    gpu = [*_pair(100.0, 250.0, **GPU), _row("torch_graph", 50.0, **GPU)]
    text = report.speed([gpu, ROWS])
    assert [line for line in text.splitlines() if line.startswith(("| device", "| Some", "| NV"))] == [
        "| device | dtype | inference: over nn.LSTM, both eager | inference: over the fastest other, both eager |"
        " inference: over nn.LSTM, mixed: only nn.LSTM in a CUDA graph | training: over nn.LSTM, both eager |"
        " training: over the fastest other, both eager |",
        "| NVIDIA H200 | bfloat16 | 2.50 (0 of 1) | 2.50 (0 of 1) | 0.500 (1 of 1) | - | - |",
        # nn.LSTM: cube root of 2.5 * 0.8 * 4; the fastest other: of 2 * 0.25 * 4.
        "| Some CPU | float32 | 2.00 (1 of 3) | 1.26 (1 of 3) | - | 4.00 (0 of 1) | 4.00 (0 of 1) |",
    ]
    assert "\n- Some CPU, threads 2. Lowest over nn.LSTM 0.800 (lm_medium, inference, float32): [every case]" in text
    mixed = "nn.LSTM (mixed: only nn.LSTM in a CUDA graph) 0.500 (lm_200, inference, bfloat16): [every case]"
    assert f"Lowest over nn.LSTM 2.50 (lm_200, inference, bfloat16); {mixed}" in text
    assert "](benchmarks/results/cpu-some-cpu/tables.md)" in text
    assert "](benchmarks/results/h200/tables.md)" in text


def test_a_graph_is_compared_with_a_graph():
    rows = [*_pair(100.0, 250.0, **GPU), *_in_graphs(40.0, 30.0)]
    text = report.tables(rows)
    cells = _cells(text, "bfloat16, inference", "lm_200")
    assert cells["speed-up over nn.LSTM, both eager (95%)"] == "2.50 (2.25..3.00)"
    assert cells["over the fastest other, both eager"] == "2.50 (nn.LSTM)"
    assert cells["speed-up over nn.LSTM, both in CUDA graphs (95%)"] == "0.750 (0.675..0.900)"
    assert cells["fusedlstm in a CUDA graph"] == "40.0 us (20.0..80.0)"
    assert cells["nn.LSTM in a CUDA graph"] == "30.0 us"
    assert "mixed" not in text.split("## ")[1]
    assert "| lm_200 | inference | bfloat16 | 2 | nn.LSTM (both in CUDA graphs) 0.750 (0.675..0.900) |" in text
    assert "nn.LSTM 2.50 (1 case), nn.LSTM (both in CUDA graphs) 0.750 (1 case), the fastest other, both eager" in text
    summary = report.speed([rows])
    assert "inference: over nn.LSTM, both in CUDA graphs" in summary
    assert "mixed" not in summary
    assert "| 2.50 (0 of 1) | 2.50 (0 of 1) | 0.750 (1 of 1) |" in summary


@pytest.mark.parametrize("error", ["RuntimeError: no graph", None], ids=["failed", "not measured"])
def test_nn_lstm_alone_in_a_graph_is_a_mixed_comparison(error):
    """As in rows from before fusedlstm was measured in a graph."""
    ours, theirs = _in_graphs(40.0, 30.0)
    failed = [] if error is None else [replace(ours, error=error, median_us=None, ratio=None)]
    text = report.tables([*_pair(100.0, 250.0, **GPU), theirs, *failed])
    cells = _cells(text, "bfloat16, inference", "lm_200")
    assert cells["speed-up over nn.LSTM, mixed: only nn.LSTM in a CUDA graph"] == "0.300"
    assert cells["over the fastest other, both eager"] == "2.50 (nn.LSTM)"
    assert "both in CUDA graphs" not in text
    assert "| lm_200 | inference | bfloat16 | 2 | nn.LSTM (mixed: only nn.LSTM in a CUDA graph) 0.300 |" in text
    missing = "Without a time of fusedlstm in a CUDA graph, though another has one: lm_200 inference bfloat16."
    assert (missing in text) == (error is not None)


def test_kinds_of_cases_are_told_from_each_other():
    rows = [*_pair(1.0, 2.0, "rl_policy_r10"), *_pair(1.0, 2.0, "basecall_hac_n96")]
    text = report.tables(rows)
    assert _cells(text, "float32, inference", "rl_policy_r10")["size"] == "T10 N5 I20 H20 L1 resets 10%"
    assert _cells(text, "float32, inference", "basecall_hac_n96")["size"] == "T10 N5 I20 H20 L1 alternating"


def test_the_short_table_is_short(tmp_path):
    """Of two machines that measured every dtype."""
    rows = [row for dtype in DTYPES for mode in MODES for row in _pair(2.0, 3.0, dtype=dtype, mode=mode)]
    assert report.speed([rows, rows]).count("| Some CPU |") == 8


def test_the_figure_names_what_it_shows():
    assert report.figure([ROWS]) == (
        "![Speed-up of fusedlstm over nn.LSTM on Some CPU (both eager), by case]"
        "(benchmarks/results/cpu-some-cpu/speedup.svg)"
    )
    graphs, mixed = _in_graphs(40.0, 30.0), _row("torch_graph", 5.0)
    assert "(both eager; mixed: only nn.LSTM in a CUDA graph), by" in report.figure([[*ROWS, mixed], ROWS])
    assert "(both eager; both in CUDA graphs), by" in report.figure([[*_pair(100.0, 250.0, **GPU), *graphs]])


def test_the_order_of_rows_does_not_matter(tmp_path):
    records.write(tmp_path / "rows.csv", ROWS)
    for rows in (ROWS[::-1], records.read(tmp_path / "rows.csv")):
        assert report.tables(rows) == report.tables(ROWS)
        assert report.speed([rows]) == report.speed([ROWS])
        assert plots.digest(rows) == plots.digest(ROWS)
    assert plots.digest([_row("torch", 5)]) == plots.digest([_row("torch", 5.0)])  # as a file gives it back


def test_folder_is_that_of_the_machine():
    cpu = torch.device("cpu")
    assert report.folder([_row("torch", device=environment.device_name(cpu))]) == environment.folder(cpu)
    assert report.folder([_row("torch", device="NVIDIA H200", cuda="13.0")]) == "h200"


FIGURE, SPEED = (" old \\1 text ".join(report.markers(name)) for name in ("figure", "speed"))


def test_update_readme_leaves_the_rest_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Pöppel\n{FIGURE}\n\nmiddle\n{SPEED}\n\nend", encoding="utf-8")
    report.update_readme(readme, [ROWS])
    once = readme.read_text(encoding="utf-8")
    figure, speed = (
        f"{begin}\n{text}\n{end}"
        for (begin, end), text in zip(
            map(report.markers, ("figure", "speed")), (report.figure([ROWS]), report.speed([ROWS])), strict=True
        )
    )
    assert once == f"# Pöppel\n{figure}\n\nmiddle\n{speed}\n\nend"
    report.update_readme(readme, [ROWS])
    assert readme.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("text", ["", FIGURE, f"{FIGURE} {SPEED[::-1]}", f"{FIGURE} {2 * SPEED}"], ids=range(4))
def test_update_readme_wants_its_markers(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md: must have the lines <!-- (figure|speed): begin --> and"):
        report.update_readme(readme, [ROWS])
    assert readme.read_text() == text


def test_figures_say_which_rows_they_show(tmp_path):
    paths = plots.draw(ROWS, tmp_path / "new")
    assert [path.name for path in paths] == ["speedup.svg", "scaling.svg", "bound.svg"]
    changed = [replace(ROWS[0], median_us=101.0), *ROWS[1:]]
    for path in paths:
        assert plots.digest_in(path) == plots.digest(ROWS) != plots.digest(changed)
    again = plots.draw(ROWS[::-1], tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    (tmp_path / "none.svg").write_text("<svg/>")
    assert plots.digest_in(tmp_path / "none.svg") == ""


def test_losses_have_a_colour_of_their_own(tmp_path):
    path = plots.draw(ROWS, tmp_path)[0]
    legend = path.read_text().lower().count(plots.LOSS.lower())
    won = [replace(row, ratio=1.5) if row.provider == "fusedlstm" else row for row in ROWS]
    assert plots.draw(won, tmp_path)[0].read_text().lower().count(plots.LOSS.lower()) < legend


@pytest.mark.parametrize("kind", [report.GRAPHS, report.MIXED])
def test_graphs_have_marks_of_their_own(kind, tmp_path):
    """Of a loss, the legend's alone."""

    def marks(rows):
        return plots.draw(rows, tmp_path)[0].read_text().lower().count(plots.KIND_MARKS[kind][1].lower())

    eager = _pair(100.0, 250.0, **GPU)
    faster, slower = (
        _in_graphs(10.0, time) if kind == report.GRAPHS else _in_graphs(10.0, 10 * time)[1:] for time in (15, 5)
    )
    assert marks(eager) == 0
    assert marks([*eager, *faster]) > marks([*eager, *slower]) > 0


def test_figures_are_readable_in_a_dark_theme(tmp_path):
    """Black letters: the ground must be white, not what is behind the image."""
    for path in plots.draw(ROWS, tmp_path):
        assert re.search(r'<g id="patch_1">\s*<path[^>]*style="fill: #ffffff', path.read_text())


def test_figures_of_rows_without_times(tmp_path):
    for path in plots.draw([_row("fusedlstm", error="Mismatch: y"), _row("torch", 3.0)], tmp_path):
        assert "in the rows" in path.read_text()  # as a comment beside the drawn letters


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 2.3])
def test_fit_finds_the_exponent(exponent):
    sizes = [3, 10, 40, 41]
    assert growth.fit(sizes, [7 * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-12)


@pytest.mark.parametrize(("sizes", "values"), [([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1]), ([1, 2], [1])])
def test_fit_refuses_what_has_no_exponent(sizes, values):
    with pytest.raises(ValueError, match="must be"):
        growth.fit(sizes, values)


def test_growth_table():
    points = [("N", 4, 1000.0, None), ("N", 8, None, 3.0)]
    points += [("L", 1, 2000.0, 0.0), ("L", 2, 4000.0, 1.0)]
    points += [("T", size, 500.0 * size, 0.25 * size**2) for size in (16, 4, 8)]
    assert growth.table(points).splitlines()[2:] == [
        "| T | 4, 8, 16 | 2, 4, 8 | 1.00 | 4, 16, 64 | 2.00 |",
        "| N | 4, 8 | 1, - | - | -, 3 | - |",
        "| L | 1, 2 | 2, 4 | 1.00 | 0, 1 | - |",
    ]


@pytest.mark.parametrize("variable", "TNHL")
def test_sweep_changes_one_size(variable):
    cases = growth.sweep(variable, quick=False)
    assert len(cases) == len({case.name for case in cases}) == 5
    assert growth.sweep(variable, quick=True) == cases[:3]
    fixed = {"T": 64, "N": 16, "H": 256, "L": 1}
    for case in cases:
        assert {name: getattr(case, name) for name in fixed} == fixed | {variable: getattr(case, variable)}
        assert case.I == case.H
    sizes = [getattr(case, variable) for case in cases]
    assert sizes == sorted(set(sizes))


def test_sweep_of_something_else():
    with pytest.raises(ValueError, match="variable must be one of T, N, H, L, got 'D'"):
        growth.sweep("D", quick=True)


def test_the_readme_shows_the_gpu_and_the_processor_measured_last(tmp_path):
    def measured(name, date):
        (tmp_path / name).mkdir(exist_ok=True)
        records.write(tmp_path / name / "rows.csv", [_row("torch", 1.0, date=date)])

    assert report.shown(tmp_path) == []
    measured("cpu-a", "2026-01-02")
    measured("cpu-b", "2026-01-02")
    (tmp_path / "h100").mkdir()
    assert report.shown(tmp_path) == [tmp_path / "cpu-a"]
    measured("cpu-b", "2026-01-03")
    measured("h200", "2025-12-31")
    assert report.shown(tmp_path) == [tmp_path / "h200", tmp_path / "cpu-b"]


def test_tables_and_figures_are_those_of_the_rows():
    folders = sorted(path.parent for path in records.RESULTS.glob("*/rows.csv"))
    if not folders:
        pytest.skip("benchmarks/results has no rows yet")
    for folder in folders:
        rows = records.read(folder / "rows.csv")
        assert report.folder(rows) == folder.name
        assert (folder / "tables.md").read_text() == report.tables(rows), "run: python -m benchmarks report"
        for name in ("speedup.svg", "scaling.svg", "bound.svg"):
            assert plots.digest_in(folder / name) == plots.digest(rows), "run: python -m benchmarks plot"


def test_what_a_forward_pass_keeps_is_counted():
    module, x = torch.nn.LSTM(5, 8), torch.randn(4, 3, 5)
    fused = fusedlstm.replace_lstm(module)
    once, twice = sum(growth.kept_bytes(fused, x)), sum(growth.kept_bytes(fused, torch.randn(8, 3, 5)))
    # y, cell and gates of T*N*H and 4 T*N*H floats; h0 and c0 do not grow with T.
    assert twice - once == 4 * 3 * 8 * (1 + 1 + 4) * 4
