"""The benchmark suite at toy size: every case runs, no wrong result is timed, rows replace each other."""

import contextlib
import os
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from benchmarks import environment, graphs, limits, measure, records, report, roofline
from benchmarks.__main__ import main
from benchmarks.cases import CASES, GPU_GRID, SETS, Case
from benchmarks.providers import PROVIDERS, Contestant

CPU = torch.device("cpu")
QUICK = [PROVIDERS[name] for name in ("fusedlstm", "torch", "torch_plain")]

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(autouse=True)
def _peaks(monkeypatch):
    monkeypatch.setattr(environment, "peaks", lambda device, dtype, threads: (0.1, 10.0))


@pytest.fixture
def _short(monkeypatch):
    """One call a sample, and no pauses before it: half of the time."""
    monkeypatch.setattr(measure, "_SAMPLE", 0.0)
    monkeypatch.setattr(measure, "_settle", lambda: None)


def _toys():
    """Each kind of toy once: at their size most cases are the same but for their names."""
    toys = (case.toy() for case in CASES.values())
    return {replace(toy, name="", origin="", modes=(), dtypes=()): toy for toy in toys}.values()


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("case", _toys(), ids=lambda case: case.name)
def test_every_case_runs(case):
    for mode in ("inference", "forward", "backward", "training", *(["lm_step"] if case.V else [])):
        rows = list(measure.measure(case, mode, "float32", [*QUICK, PROVIDERS["torch_padded"]], CPU, 0.0))
        others = {"padded": {"torch_plain"} if mode != "lm_step" else set(), "resets": {"torch_padded"}}
        assert {row.provider for row in rows} == {"fusedlstm", "torch"} | others.get(case.form, set())
        for row in rows:
            assert not row.error
            assert row.median_us > 0
            assert row.p20_us <= row.median_us <= row.p80_us
            assert row.ratio_low <= row.ratio <= row.ratio_high


def test_a_provider_that_misses_a_reset_is_an_error():
    def make(module):
        return Contestant(lambda x, hx, resets: module.lstm(x, hx), list(module.parameters()))

    wrong = replace(PROVIDERS["fusedlstm"], make=make)
    (row,) = measure.measure(CASES["rl_policy_r1"].toy(), "inference", "float32", [wrong], CPU, 0.0)
    assert row.error.startswith("AssertionError: y: error")


@pytest.mark.parametrize("name", ["speech_encoder", "basecall_hac_n96", "atari_rl_r10"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_truth_of_a_large_case_is_computed_in_parts(name, mode, monkeypatch):
    case = replace(CASES[name].toy(), N=5)
    whole = measure._LayerCheck(case, mode, "float32", CPU).truth
    monkeypatch.setattr(measure, "_TRUTH_BYTES", 2 * 8 * case.T * case.L * case.D * 6 * case.H)  # two rows
    parts = measure._LayerCheck(case, mode, "float32", CPU).truth
    assert parts.keys() == whole.keys()
    for result, expected in zip(parts.values(), whole.values(), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_types_run(dtype):
    rows = list(measure.measure(CASES["batch_256"].toy(), "training", dtype, QUICK[:2], CPU, 0.0))
    assert [row.error for row in rows] == ["", ""]


def test_memory_at_the_peak_of_a_call():
    def make(module):
        def forward(x, hx):
            torch.ones(100 << 18)  # 100 MiB, freed at once
            return module(x, hx)

        return Contestant(forward, list(module.parameters()))

    wasteful = replace(PROVIDERS["fusedlstm"], make=make)
    rows = measure.measure(CASES["packed_one_long"].toy(), "training", "float32", [wasteful, QUICK[1]], CPU, 0.0)
    wastes, usual = (row.peak_mib for row in rows)
    assert 95 < wastes < 120
    assert usual < 20


def test_lengths_of_packed_cases():
    case = CASES["packed_one_long"]
    assert (case.T, case.N, case.row_steps) == (1000, 512, 3044)
    assert roofline.flops(case, "inference") == 2 * 3044 * 2 * 4 * 64 * (32 + 64)
    assert case.toy().lengths == (3, 3)


@pytest.mark.parametrize("name", ["packed_uniform", "cell_128_b16"])
def test_a_wrong_packed_batch_or_cell_is_an_error(name):
    def make(module):
        def forward(x, hx):
            with torch.no_grad():
                x = x._replace(data=x.data * 1.01) if isinstance(x, PackedSequence) else x * 1.01
            return module(x, hx)

        return Contestant(forward, list(module.parameters()))

    wrong = replace(PROVIDERS["fusedlstm"], make=make)
    (row,) = measure.measure(CASES[name].toy(), "inference", "float32", [wrong], CPU, 0.0)
    assert row.error.startswith("AssertionError: ")


def _broken(module):
    """nn.LSTM with the outputs of the last step wrong by a thousandth."""

    def forward(x, hx):
        y, state = module(x, hx)
        return torch.cat([y[:-1], y[-1:] * 1.001]), state

    return Contestant(forward, list(module.parameters()))


def _failing(module):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("make", "error"), [(_broken, "AssertionError: y: error"), (_failing, "RuntimeError: no such")]
)
def test_a_wrong_result_is_an_error_and_no_figure(make, error):
    wrong = replace(PROVIDERS["fusedlstm"], make=make)
    rows = list(measure.measure(CASES["batch_256"].toy(), "inference", "float32", [wrong, *QUICK[1:]], CPU, 0.0))
    row = next(row for row in rows if row.provider == "fusedlstm")
    assert row.error.startswith(error)
    assert row.median_us is row.ratio is row.p20_us is None
    assert all(not row.error for row in rows if row.provider != "fusedlstm")


@pytest.mark.parametrize("mode", ["inference", "training", "lm_step"])
def test_an_nn_lstm_that_cannot_run_is_an_error_row(mode, monkeypatch):
    """As where a processor or a cuDNN has no kernel; torch's plain layers are then the measure."""
    forward = nn.LSTM.forward

    def only_without_onednn(self, *args):
        if self.weight_ih_l0.dtype == torch.float32 and torch.backends.mkldnn.enabled:
            raise RuntimeError("could not create a primitive descriptor")
        return forward(self, *args)

    monkeypatch.setattr(nn.LSTM, "forward", only_without_onednn)
    rows = {row.provider: row for row in measure.measure(CASES["lm_200"].toy(), mode, "float32", QUICK, CPU, 0.0)}
    refused = rows.pop("torch")
    assert refused.error == "RuntimeError: could not create a primitive descriptor"
    assert refused.median_us is None
    assert set(rows) == {"fusedlstm"} | ({"torch_plain"} if mode != "lm_step" else set())
    for row in rows.values():
        assert not row.error
        assert row.median_us > 0
        assert row.ratio is None
    assert all(text in report.tables([*rows.values(), refused]) for text in ("error", "primitive descriptor"))


def test_without_a_measure_every_row_is_an_error(monkeypatch):
    def refuse(self, *args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(nn.LSTM, "forward", refuse)
    rows = list(measure.measure(CASES["lm_200"].toy(), "inference", "float32", QUICK, CPU, 0.0))
    assert {row.provider: row.error for row in rows} == dict.fromkeys(
        ("fusedlstm", "torch", "torch_plain"), "RuntimeError: out of memory"
    )


def test_a_wrong_gradient_is_an_error(monkeypatch):
    def make(module):
        def forward(x, hx):
            y, state = module(x, hx)
            return y + 1e-3 * (x.sum() - x.sum().detach()), state

        return Contestant(forward, list(module.parameters()))

    wrong = replace(PROVIDERS["fusedlstm"], make=make)
    (row,) = measure.measure(CASES["batch_256"].toy(), "training", "float32", [wrong], CPU, 0.0)
    assert row.error.startswith("AssertionError: grad_x: error")


def test_an_absent_provider_is_named():
    absent = replace(PROVIDERS["haste"], absent=lambda: "absent: install haste", takes=lambda case, dtype, device: True)
    (row,) = measure.measure(CASES["batch_256"].toy(), "inference", "float32", [absent], CPU, 0.0)
    assert row.error == "absent: install haste"
    assert row.median_us is None


def test_each_provider_gets_its_surroundings():
    seen = []

    @contextlib.contextmanager
    def surroundings():
        seen.append(True)
        yield

    provider = replace(PROVIDERS["torch_plain"], surroundings=surroundings)
    list(measure.measure(CASES["batch_256"].toy(), "inference", "float32", [provider], CPU, 0.0))
    assert len(seen) >= 8  # the check, a call to warm up, one to choose the number of calls, five rounds


def test_layers_of_their_own_are_the_same_lstm():
    module = nn.LSTM(5, 8, num_layers=3, bidirectional=True, proj_size=3)
    x, hx = torch.randn(4, 2, 5), (torch.randn(6, 2, 3), torch.randn(6, 2, 8))
    expected, (h_n, c_n) = module(x, hx)
    contestant = PROVIDERS["torch_layers"].make(module)
    y, state = contestant.forward(x, hx)
    assert torch.equal(y, expected)
    assert torch.equal(state[0], h_n)
    assert torch.equal(state[1], c_n)
    assert [p.shape for p in contestant.parameters] == [p.shape for p in module.parameters()]


def _without_a_gpu(monkeypatch):
    """Stand-ins for the captures: what runs is the module, but on the inputs and into the outputs of the first call."""

    def capture(run):
        outputs = run()

        def replay():
            for target, source in zip(_flat(outputs), _flat(run()), strict=True):
                target.copy_(source)

        return replay, outputs

    def make_graphed_callables(module, samples, num_warmup_iters):
        assert num_warmup_iters == 3

        def forward(*inputs):
            assert [tensor.requires_grad for tensor in inputs] == [tensor.requires_grad for tensor in samples]
            assert [tensor.shape for tensor in inputs] == [tensor.shape for tensor in samples]
            return module(*inputs)

        return forward

    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)


def _flat(outputs):
    y, (h, c) = outputs
    return y, h, c


def test_a_graph_takes_the_inputs_of_each_call(monkeypatch):
    _without_a_gpu(monkeypatch)
    module = nn.LSTM(5, 8, num_layers=2)
    forward = graphs.graphed(module)
    for rows in (3, 3, 2):
        x, hx = torch.randn(4, rows, 5), (torch.randn(2, rows, 8), torch.randn(2, rows, 8))
        with torch.no_grad():
            results = _flat(forward(x, hx))
            expected = _flat(module(x, hx))
        for result, own in zip(results, expected, strict=True):
            assert torch.equal(result, own)
            assert not result.requires_grad
    y, _ = forward(x, hx)  # and with gradients it is another capture
    assert y.requires_grad


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["lm_200", "basecall_hac_n96"])
def test_both_are_measured_in_graphs(name, mode, monkeypatch):
    _without_a_gpu(monkeypatch)
    pair = [replace(PROVIDERS[name], takes=lambda *_: True) for name in ("fusedlstm_graph", "torch_graph")]
    rows = list(measure.measure(CASES[name].toy(), mode, "float32", [*pair, *QUICK[:2]], CPU, 0.0))
    assert [(row.provider, row.error) for row in rows[:2]] == [("fusedlstm_graph", ""), ("torch_graph", "")]
    ours, theirs, eager, torchs = rows
    assert ours.ratio == pytest.approx(theirs.median_us / ours.median_us, rel=1e-2)
    assert eager.ratio == pytest.approx(torchs.median_us / eager.median_us, rel=1e-2)


def test_graphs_need_a_gpu():
    pair = [PROVIDERS[name] for name in ("fusedlstm_graph", "torch_graph")]
    case = CASES["lm_200"]
    assert measure.able(pair, case, "inference", "float32", CPU) == []
    for mode in ("inference", "training"):
        assert measure.able(pair, case, mode, "float32", torch.device("cuda")) == pair
        assert measure.able(pair, CASES["packed_even"], mode, "float32", torch.device("cuda")) == []


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["lm_200", "basecall_hac_n96"])
def test_both_run_in_graphs(name, mode, cuda):
    providers = [PROVIDERS[name] for name in ("fusedlstm", "torch", "fusedlstm_graph", "torch_graph")]
    rows = list(measure.measure(CASES[name].toy(), mode, "float32", providers, cuda, 0.0))
    assert [(row.provider, row.error) for row in rows] == [(provider.name, "") for provider in providers]
    assert all(row.median_us > 0 for row in rows)


def test_interval_holds_the_ratio_of_steady_times():
    assert measure.interval([2.0] * 9, [1.0] * 9) == (2.0, 2.0)
    low, high = measure.interval([2.0, 2.2, 1.8, 2.1, 1.9] * 4, [1.05, 1.0, 0.95, 0.9, 1.1] * 4)
    assert 1.7 < low < 2.0 < high < 2.3


def test_rows_survive_a_file_and_replace_each_other(tmp_path):
    path = tmp_path / "machine" / "rows.csv"
    row = records.Row(
        "a", "torch", "inference", "float32", 2, 1, 1, 1, 1, 1, 1, 0, 0, median_us=1.5, error='say "no", please'
    )
    records.write(path, [row, replace(row, provider="fusedlstm")])
    records.write(path, [replace(row, median_us=2.5)])
    assert records.read(path) == [replace(row, provider="fusedlstm"), replace(row, median_us=2.5)]
    path.write_text("case,provider\na,b\n")
    with pytest.raises(ValueError, match="run the benchmarks again"):
        records.read(path)


def test_flops_and_bytes_of_a_case():
    case = Case("hand", T=2, N=3, I=5, H=7)
    assert roofline.flops(case, "inference") == 2 * 2 * 3 * 4 * 7 * (5 + 7)
    assert roofline.flops(case, "training") == 3 * roofline.flops(case, "inference")
    for case in (Case("a", 2, 3, 5, 7, L=2, D=2, P=3), Case("b", 2, 3, 5, 7, L=3)):
        options = {"num_layers": case.L, "bidirectional": case.D == 2, "proj_size": case.P}
        assert roofline.parameters(case) == sum(p.numel() for p in nn.LSTM(case.I, case.H, **options).parameters())


def test_sets_name_cases():
    assert len(GPU_GRID) == len({case.name for case in GPU_GRID}) == 24
    assert {name for names in SETS.values() for name in names} <= set(CASES)


def test_command_line(tmp_path, capsys):
    results = ["--results", str(tmp_path), "--device", "cpu"]
    cases = ["--case", "lm_200", "--case", "stream_128", "--provider", "fusedlstm", "--provider", "torch"]
    threads = torch.get_num_threads()
    try:
        assert main(["run", *results, *cases, "--toy", "--seconds", "0", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert {(row.case, row.mode) for row in records.read(tmp_path / "rows.csv")} == {
        ("lm_200", "inference"),
        ("lm_200", "training"),
        ("lm_200", "lm_step"),
        ("stream_128", "inference"),
        ("stream_128", "training"),
    }
    assert main(["plot", *results]) == 0
    assert main(["report", *results]) == 0
    assert (tmp_path / "tables.md").read_text() in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".svg"}


RUN = ["run", "--device", "cpu", "--toy", "--seconds", "0", "--threads", "1", "--case", "stream_128"]
TWO = ["--provider", "fusedlstm", "--provider", "torch"]


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread", "_short")
def test_a_run_goes_on_where_it_was_cut_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(environment, "commit", lambda: "0123456789ab")
    path, run = tmp_path / "rows.csv", [*RUN, "--results", str(tmp_path), "--resume"]

    def left_out(*arguments):
        assert main([*run, *arguments]) == 0
        return capsys.readouterr().out.splitlines()[0].split(" measurements")[0]

    assert left_out(*TWO, "--mode", "training") == "0 of 1"
    before = records.read(path)
    assert left_out(*TWO) == "1 of 2"  # inference is new
    assert [row for row in records.read(path) if row.mode == "training"] == before
    assert left_out(*TWO) == "2 of 2"
    assert left_out(*TWO, "--provider", "torch_plain") == "0 of 2"
    rows = records.read(path)
    records.write(
        path, [replace(row, error="OutOfMemoryError", median_us=None) for row in rows if row.mode == "training"]
    )
    assert left_out(*TWO) == "2 of 2"  # an error is a result
    records.write(path, [replace(row, error="absent: pip install it") for row in rows if row.mode == "training"])
    assert left_out(*TWO) == "1 of 2"  # and what was missing is here now
    records.write(path, [replace(row, device="Another CPU") for row in rows if row.mode == "inference"])
    assert left_out(*TWO) == "1 of 2"
    monkeypatch.setattr(environment, "commit", lambda: "fedcba987654")
    assert left_out(*TWO) == "0 of 2"


@pytest.mark.parametrize("commit", ["unknown", "0123456789ab-dirty"])
@pytest.mark.usefixtures("_one_thread")
def test_resume_needs_a_commit(commit, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "commit", lambda: commit)
    with pytest.raises(SystemExit, match=f"--resume needs a commit that says what was measured, got '{commit}'"):
        main([*RUN, "--results", str(tmp_path), "--resume"])


@pytest.mark.usefixtures("_one_thread", "_short")
def test_a_case_is_run_as_its_users_do(tmp_path):
    decode = [*RUN[:-1], "rnnt_decode_n1", *TWO, "--results", str(tmp_path)]
    assert main(decode) == 0
    assert {(row.mode, row.dtype) for row in records.read(tmp_path / "rows.csv")} == {
        ("inference", "bfloat16"),
        ("inference", "float16"),
    }
    assert main([*decode, "--dtype", "float32", "--mode", "forward"]) == 0
    assert {(row.mode, row.dtype) for row in records.read(tmp_path / "rows.csv")} > {("forward", "float32")}


def test_toy_rows_stay_away_from_real_ones():
    with pytest.raises(SystemExit, match="--toy needs --results"):
        main(["run", "--toy"])


def test_error_texts_name_no_folder():
    assert measure._text(ImportError("no lib in /home/me/venv/lib/x.so\nfor y")) == "ImportError: no lib in x.so for y"


def test_device_folder():
    assert environment.folder(CPU).startswith("cpu-")
    assert os.sep not in environment.folder(CPU)


def test_distance_to_the_limits():
    text = limits.report(0.0, {name: case.toy() for name, case in CASES.items()})
    for heading in ("Arithmetic", "Memory: one sequence", "A call", "A shared machine"):
        assert f"## {heading}\n" in text
    for name in (*limits.BOUND_BY_ARITHMETIC, *limits.BOUND_BY_MEMORY, "fusedlstm::lstm_inference"):
        assert f"| {name} |" in text
    assert "nan" not in text
