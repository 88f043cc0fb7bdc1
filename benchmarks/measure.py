"""One case measured: every provider checked against float64, then all of them timed in turns."""

import contextlib
import copy
import ctypes
import gc
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark.utils.timer import timer

from benchmarks import environment
from benchmarks.accuracy import assert_as_accurate
from benchmarks.cases import DTYPES, Case
from benchmarks.providers import Contestant, Provider, State, without_fast_path
from benchmarks.recipes import Alternating, BySegments
from benchmarks.records import Row
from fusedlstm import _C
from fusedlstm.lm import LanguageModel

_TRUTH_BYTES = 16 << 30  # that a pass in float64 may keep
_SAMPLE = 0.01  # seconds that the calls of a sample last at least
_NN_LSTMS = ("torch", "torch_layers", "torch_padded", "torch_graph")
_PAUSE = 0.02  # seconds in which the process must use no more than a tenth of a core before it is timed


@dataclass(frozen=True)
class Inputs:
    """Random input, first states and gradients of the outputs, never zeros; and, with resets, where episodes begin."""

    x: Tensor
    hx: State
    cotangents: list[Tensor]
    resets: Tensor | None = None

    def chunks(self, rows: int) -> list["Inputs"]:
        """Those of at most so many rows of the batch each, of which every tensor has the rows in dimension 1."""
        cut = [tensor.split(rows, 1) for tensor in (self.x, *self.hx, *self.cotangents)]
        resets = [None] * len(cut[0]) if self.resets is None else self.resets.split(rows, 1)
        return [
            Inputs(x, (h0, c0), list(c), r) for (x, h0, c0, *c), r in zip(zip(*cut, strict=True), resets, strict=True)
        ]


@dataclass
class Runner:
    """A provider ready to be timed: ``prepare`` makes what one call of ``run`` uses up."""

    provider: Provider
    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    first_call_us: float
    seconds: list[float]  # one a round


def able(providers: list[Provider], case: Case, mode: str, dtype: str, device: torch.device) -> list[Provider]:
    """The providers that `measure` yields rows of."""
    providers = [each for each in providers if mode in each.modes and case.form in each.forms]
    return [each for each in providers if each.takes(case, dtype, device)]


def measure(
    case: Case, mode: str, dtype: str, providers: list[Provider], device: torch.device, seconds: float
) -> Iterator[Row]:
    """Checks and times the providers that can run a case, about ``seconds`` for each of them, and yields their rows."""
    if device.type == "cuda":
        gc.collect()  # graphs of the case before are in cycles, and hold its memory
    providers = able(providers, case, mode, dtype, device)
    facts = {name: getattr(case, name) for name in ("T", "N", "I", "H", "L", "D", "P", "V")}
    facts |= {"case": case.name, "mode": mode, "dtype": dtype, "threads": torch.get_num_threads()}
    facts |= environment.columns(device, dtype)
    runners: list[Runner] = []
    with _precision(dtype):
        try:
            check = _LanguageModelCheck(case, device) if mode == "lm_step" else _LayerCheck(case, mode, dtype, device)
        except Exception as error:  # without a measure nobody can be checked, and so nobody is timed
            yield from (Row(**facts, provider=provider.name, error=_text(error)) for provider in providers)
            return
        for provider in providers:
            absent = provider.absent()
            if absent:
                yield Row(**facts, provider=provider.name, error=absent)
                continue
            try:
                with provider.surroundings():
                    runners.append(check.runner(provider))
            except Exception as error:  # an opponent that fails is a row that says so, not the end of the run
                yield Row(**facts, provider=provider.name, error=_text(error))
        _take_turns(runners, seconds * len(runners), settle=device.type == "cpu")
        by_name = {runner.provider.name: runner for runner in runners}
        gc.collect()  # garbage that is freed in a call whose memory is measured would hide some of what it takes
        for runner in runners:
            yield _row(runner, by_name.get(runner.provider.baseline), facts, device)


def _text(error: Exception) -> str:
    """An error in one line, without the folders of the machine it happened on."""
    text = re.sub(r"(/[\w.+-]+)+/", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}"


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """ "ieee" turns TF32 off for cuDNN; everything else leaves torch's defaults."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = dtype != "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _torchs_own(results: Callable[[], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What nn.LSTM computes with and without the fast path: those of the two that run, at least one."""
    own = []
    for surroundings in (contextlib.nullcontext, without_fast_path):
        try:
            with surroundings():
                own.append(results())
        except Exception as error:
            refusal = error
    if not own:
        raise refusal
    return own


class _LayerCheck:
    """A stack of layers, or a cell: outputs, last states and (where the mode makes them) gradients by the 2x rule."""

    def __init__(self, case: Case, mode: str, dtype: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.form, self.mode, self.differentiates = case.form, mode, mode in ("backward", "training")
        self.module = _module_of(case, device, DTYPES[dtype])
        states = () if case.form == "cell" else (case.L * case.D,)
        shapes = [(*states, case.N, case.outputs), (*states, case.N, case.H)]
        self.packed = None
        if case.form == "packed":
            sequences = [torch.empty(length, case.I, device=device) for length in case.lengths]
            self.packed = pack_sequence(sequences, enforce_sorted=False)
        steps = (case.row_steps,) if self.packed else (case.T, case.N)
        # With resets the output alone counts: training drops the last states, and padded episodes lose them.
        outputs = [(*steps, case.D * case.outputs), *(shapes if case.form != "resets" else ())]
        resets = _resets_of(case, device) if case.form == "resets" else None
        dtype_of_weights = next(self.module.parameters()).dtype
        x, h0, c0 = (torch.randn(shape, device=device).to(dtype_of_weights) for shape in ((*steps, case.I), *shapes))
        cotangents = [torch.randn(shape, device=device).to(dtype_of_weights) for shape in outputs]
        self.inputs = Inputs(x, (h0, c0), cotangents, resets)
        self.truth = self._truth(case)
        own = Contestant(self.module, list(self.module.parameters()))
        self.own = _torchs_own(lambda: self._results(own, dtype_of_weights))

    def _truth(self, case: Case) -> dict[str, Tensor]:
        """In float64, and some rows of the batch after others where all of them would take too much memory."""
        module = copy.deepcopy(self.module).double()
        contestant = Contestant(module, list(module.parameters()))
        row_bytes = 8 * case.T * case.L * case.D * 6 * case.H  # gates, cells and outputs
        rows = max(1, _TRUTH_BYTES // row_bytes)
        if case.form in ("packed", "cell") or rows >= case.N:
            return self._results(contestant, torch.float64)
        parts = [self._results(contestant, torch.float64, inputs) for inputs in self.inputs.chunks(rows)]
        of_rows = ("y", "h_n", "c_n", "grad_x")
        return {
            name: torch.cat([part[name] for part in parts], 1)
            if name in of_rows
            else torch.stack([part[name] for part in parts]).sum(0)
            for name in parts[0]
        }

    def _call(self, contestant: Contestant, x: Tensor, hx: State, resets: Tensor | None) -> list[Tensor]:
        """Outputs and last states of all steps of x: [T, N, I], or the data of the packed sequences."""
        if self.packed:
            y, states = contestant.forward(self.packed._replace(data=x), hx)
            return [y.data, *states]
        if resets is not None:
            return [contestant.forward(x, hx, resets=resets)[0]]
        if self.form != "cell":
            y, states = contestant.forward(x, hx)
            return [y, *states]
        steps = []
        for step in x:
            hx = contestant.forward(step, hx)
            steps.append(hx[0])
        return [torch.stack(steps), *hx]

    def _results(self, contestant: Contestant, dtype: torch.dtype, inputs: Inputs | None = None) -> dict[str, Tensor]:
        inputs = inputs or self.inputs
        x, h0, c0 = (tensor.to(dtype, copy=True) for tensor in (inputs.x, *inputs.hx))
        with torch.set_grad_enabled(self.differentiates):
            outputs = self._call(contestant, x.requires_grad_(self.differentiates), (h0, c0), inputs.resets)
        results = {name: output.detach() for name, output in zip(("y", "h_n", "c_n"), outputs, strict=False)}
        if self.differentiates:
            leaves = [x, *contestant.parameters]
            names = ["x", *(name for name, _ in self.module.named_parameters())]
            grads = torch.autograd.grad(outputs, leaves, [grad.to(dtype) for grad in inputs.cotangents])
            results |= {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}
        return {name: tensor.clone() for name, tensor in results.items()}

    def runner(self, provider: Provider) -> Runner:
        """Makes the provider's LSTM and checks it; its first call is timed by the way."""
        start = timer()
        contestant = provider.make(self.module)
        results = self._results(contestant, self.inputs.x.dtype)
        first_call_us = (timer() - start) * 1e6
        assert_as_accurate(results, self.own, self.truth)
        return Runner(provider, *self._steps(contestant), first_call_us, [])

    def _steps(self, contestant: Contestant) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        x, hx = self.inputs.x.clone().requires_grad_(self.differentiates), self.inputs.hx
        cotangents, resets = self.inputs.cotangents, self.inputs.resets

        def forward(_: Any) -> Any:
            return self._call(contestant, x, hx, resets)

        def inference(_: Any) -> Any:
            with torch.no_grad():
                return self._call(contestant, x, hx, resets)

        def backward(outputs: Any) -> Any:
            return torch.autograd.grad(outputs, [x, *contestant.parameters], cotangents)

        if self.mode == "backward":
            return lambda: forward(None), backward
        run = {"inference": inference, "forward": forward, "training": lambda _: backward(forward(None))}[self.mode]
        return lambda: None, run


def _module_of(case: Case, device: torch.device, dtype: torch.dtype) -> nn.Module:
    on: dict[str, Any] = {"device": device, "dtype": dtype}
    if case.form == "cell":
        return nn.LSTMCell(case.I, case.H, **on)
    if case.form == "alternating":
        return Alternating([nn.LSTM(case.H if layer else case.I, case.H, **on) for layer in range(case.L)])
    lstm = nn.LSTM(case.I, case.H, num_layers=case.L, bidirectional=case.D == 2, proj_size=case.P, **on)
    return BySegments(lstm) if case.form == "resets" else lstm


def _resets_of(case: Case, device: torch.device) -> Tensor:
    """Where an episode begins, [T, N]: each step with the same chance."""
    chances = torch.rand(case.T, case.N, generator=torch.Generator().manual_seed(0))
    return (chances < case.resets).to(device)


class _LanguageModelCheck:
    """A training step of a language model: its loss and every gradient by the 2x rule."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.tokens = torch.randint(case.V, (case.T + 1, case.N), device=device)
        truth = self._model("torch").double()
        self.truth = self._results(truth)
        self.own = _torchs_own(lambda: self._results(self._model("torch")))

    def _model(self, cell: str) -> LanguageModel:
        torch.manual_seed(0)
        return LanguageModel(self.case.V, self.case.I, self.case.H, self.case.L, cell=cell).to(self.device)

    def _loss(self, model: LanguageModel) -> Tensor:
        logits, _ = model(self.tokens[:-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens[1:].flatten())

    def _results(self, model: LanguageModel) -> dict[str, Tensor]:
        loss = self._loss(model)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        names = [f"grad_{name}" for name, _ in model.named_parameters()]
        return {"loss": loss.detach()} | dict(zip(names, grads, strict=True))

    def runner(self, provider: Provider) -> Runner:
        """Makes the provider's model and checks it; its first step is timed by the way."""
        assert provider.cell
        start = timer()
        model = self._model(provider.cell)
        results = self._results(model)
        first_call_us = (timer() - start) * 1e6
        assert_as_accurate(results, self.own, self.truth)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def step(_: Any) -> None:
            optimizer.zero_grad()
            self._loss(model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return Runner(provider, lambda: None, step, first_call_us, [])


def _time(runner: Runner, calls: int) -> float:
    """Seconds of one call, the mean of some in a row; the timer waits for the GPU."""
    with runner.provider.surroundings():
        prepared = [runner.prepare() for _ in range(calls)]
        start = timer()
        for each in prepared:
            runner.run(each)
        return (timer() - start) / calls


def _take_turns(runners: list[Runner], seconds: float, settle: bool) -> None:
    """A round is one sample of each runner in an order of its own: a slow moment of the machine hits all of them.

    A sample is as many calls as last 10 ms. Before it come a few calls that do not count, one at least: a virtual
    machine may have given freed memory back to its host while others had their turns, and then the next call takes up
    to twice as long. And on a CPU there is a pause before it until all threads of the process are idle: those of
    another provider may go on spinning (ONNX Runtime's take a core for 60 ms after a call, in which nn.LSTM took 2.5
    times as long at T100 N1 H512). At least 5 rounds, at most 60.
    """
    calls = {}
    for runner in runners:
        _time(runner, 1)
        calls[runner.provider.name] = max(1, min(1000, math.ceil(_SAMPLE / _time(runner, 1))))
    order = random.Random(0)
    end = time.monotonic() + seconds
    rounds = 0
    while runners and rounds < 60 and (rounds < 5 or time.monotonic() < end):
        for runner in order.sample(runners, len(runners)):
            if settle:
                _settle()
            count = calls[runner.provider.name]
            _time(runner, min(count, 3))
            runner.seconds.append(_time(runner, count))
        rounds += 1


def _settle() -> None:
    """Waits until no thread of the process is busy; half a second at most."""
    for _ in range(25):
        before = time.process_time()
        time.sleep(_PAUSE)
        if time.process_time() - before < _PAUSE / 10:
            return


def interval(baseline: list[float], own: list[float], resamples: int = 2000) -> tuple[float, float]:
    """95% interval of median(baseline) / median(own), by resampling the rounds both took part in."""
    pairs = torch.tensor([baseline, own], dtype=torch.float64)
    picks = torch.randint(pairs.shape[1], (resamples, pairs.shape[1]), generator=torch.Generator().manual_seed(0))
    medians = pairs[:, picks].quantile(0.5, dim=2)
    low, high = (medians[0] / medians[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _row(runner: Runner, baseline: Runner | None, facts: dict[str, Any], device: torch.device) -> Row:
    times = torch.tensor(runner.seconds, dtype=torch.float64) * 1e6
    low, middle, high = times.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    ratio = ratio_low = ratio_high = None
    if baseline:
        ratio = median(baseline.seconds) / median(runner.seconds)
        ratio_low, ratio_high = interval(baseline.seconds, runner.seconds)
    return Row(
        **facts,
        provider=runner.provider.name,
        median_us=round(middle, 2),
        p20_us=round(low, 2),
        p80_us=round(high, 2),
        samples=len(runner.seconds),
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        first_call_us=round(runner.first_call_us, 1),
        note=_note(runner, facts, device),
        **(
            _of_gpu(runner, with_kernels=facts["mode"] == "inference")
            if device.type == "cuda"
            else {"peak_mib": _peak_mib_of_cpu(runner)}
        ),
    )


def _note(runner: Runner, facts: dict[str, Any], device: torch.device) -> str:
    name = runner.provider.name
    if name == "fusedlstm" and device.type == "cpu":
        return f"{_C.instruction_set()} kernels"
    if name in ("onnxruntime", "openvino", "flashrnn"):
        return f"version {version(name)}"
    # torch packs the weights of a module for cuDNN only in the types that it takes to be cuDNN's.
    if device.type == "cuda" and facts["dtype"] == "bfloat16" and name in _NN_LSTMS:
        return "weights not packed: torch copies them at every call"
    return ""


def _peak_mib_of_cpu(runner: Runner) -> float | None:
    """Memory of the process at its peak beyond what was there, of one more call; None where only Linux would tell."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # or the call would take memory that an earlier one has freed
    clear.write_text("5")  # the peak becomes what there is now
    before = _kib(status, "VmRSS")
    _time(runner, 1)
    return round((_kib(status, "VmHWM") - before) / 2**10, 2)


def _kib(status: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def _of_gpu(runner: Runner, with_kernels: bool) -> dict[str, Any]:
    """Memory at its peak beyond what was there, and the kernels that took most of the time, of one more call."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _time(runner, 1)
    found: dict[str, Any] = {"peak_mib": round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)}
    if with_kernels:
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
            _time(runner, 1)
        events = sorted(profiled.key_averages(), key=lambda event: -event.device_time_total)
        found["kernels"] = "; ".join(event.key[:60] for event in events[:4])
    return found
