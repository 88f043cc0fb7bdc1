"""The strategies that the plan chooses among on a GPU, each forced: what a step takes, and what the plan expects."""

import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark.utils.timer import timer

import fusedlstm
from benchmarks import environment
from benchmarks.cases import DTYPES, Case
from fusedlstm import _C

STRATEGIES = ("stepwise", "persistent", "persistent_flags")
_REPEATS = 5
_KEY = ("case", "dtype", "backward", "strategy")


@dataclass(frozen=True)
class Tier:
    """One pass of a single layer by one strategy. Times are of a step, in microseconds."""

    case: str
    T: int
    N: int
    H: int
    dtype: str
    backward: bool
    strategy: str
    plan: str
    chosen: bool  # by the plan, where none is forced
    predicted_us: float
    wall_us: float  # of the whole pass, with the products over all steps
    kernel_us: float | None  # of the persistent launch
    commit: str


def measure(case: Case, dtype: str, limits: _C.Limits) -> Iterator[Tier]:
    """Forward and backward of the case's layer, of one layer and without a projection, by each strategy that takes it.

    Args:
        case: I must equal H.
        dtype: one of `DTYPES`; float32 may use TF32.
        limits: of the GPU, for the predictions.
    """
    module = fusedlstm.LSTM(case.H, case.H, bidirectional=case.D == 2, device="cuda", dtype=DTYPES[dtype])
    x = torch.randn(case.T, case.N, case.H, device="cuda", dtype=DTYPES[dtype], requires_grad=True)
    gradient = torch.randn(case.T, case.N, case.D * case.H, device="cuda", dtype=DTYPES[dtype])

    def forward() -> Tensor:
        y: Tensor = module(x)[0]
        return y

    def backward(y: Tensor) -> None:
        torch.autograd.grad(y, [x, *module.parameters()], gradient)

    for is_backward in (False, True):
        problem = _C.Problem(
            steps=case.T, batch=case.N, hidden=case.H, directions=case.D, dtype=_name(dtype), tf32=dtype == "float32",
            backward=is_backward,
        )  # fmt: skip
        fastest = _C.make_plan(problem, limits)
        for strategy in STRATEGIES:
            plan = _C.make_plan(problem, limits, strategy)
            if strategy != "stepwise" and plan.strategy == "stepwise":
                continue
            with _forced(strategy):
                wall = _wall(forward, backward if is_backward else None)
                kernel = None if strategy == "stepwise" else _kernel(forward, backward, is_backward)
            signal = plan.persistent and plan.persistent.signal
            yield Tier(
                case.name, case.T, case.N, case.H, dtype, is_backward, strategy, str(plan),
                chosen=plan.strategy == fastest.strategy
                and signal == (fastest.persistent and fastest.persistent.signal),
                predicted_us=round(plan.stepwise_us if strategy == "stepwise" else plan.persistent_us, 3),
                wall_us=round(wall / case.T, 3),
                kernel_us=None if kernel is None else round(kernel / case.T, 3),
                commit=environment.commit(),
            )  # fmt: skip


def write(path: Path, tiers: list[Tier]) -> None:
    """Puts them into a file of JSON lines, each in the place of an older one of the same pass and strategy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    merged = {tuple(tier[name] for name in _KEY): tier for tier in [*old, *map(asdict, tiers)]}
    path.write_text("".join(json.dumps(tier) + "\n" for tier in merged.values()))


def limits_of_this_gpu(multiprocessors: int | None = None) -> _C.Limits:
    """Limits of the current GPU, or of so many of its multiprocessors, as the plan reads them."""
    properties = torch.cuda.get_device_properties()
    return _C.Limits(
        multiprocessors=multiprocessors or properties.multi_processor_count,
        threads_per_multiprocessor=properties.max_threads_per_multi_processor,
        shared_memory=properties.shared_memory_per_block_optin,
        compute_capability=10 * properties.major + properties.minor,
        clock_ghz=properties.clock_rate * 1e-6,
    )


def _name(dtype: str) -> str:
    return str(DTYPES[dtype]).removeprefix("torch.")


@contextmanager
def _forced(strategy: str) -> Iterator[None]:
    before = os.environ.get("FUSEDLSTM_STRATEGY")
    os.environ["FUSEDLSTM_STRATEGY"] = strategy
    try:
        yield
    finally:
        del os.environ["FUSEDLSTM_STRATEGY"]
        if before is not None:
            os.environ["FUSEDLSTM_STRATEGY"] = before


def _wall(forward: Callable[[], Tensor], backward: Callable[[Tensor], None] | None) -> float:
    """Median of some calls after one that does not count; torch's timer waits for the GPU."""
    times = []
    for _ in range(_REPEATS + 1):
        y = forward() if backward else None
        start = timer()
        if backward and y is not None:
            backward(y)
        else:
            with torch.no_grad():
                forward()
        times.append((timer() - start) * 1e6)
    return statistics.median(times[1:])


def _kernel(forward: Callable[[], Tensor], backward: Callable[[Tensor], None], is_backward: bool) -> float:
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        backward(forward())
        torch.cuda.synchronize()
    name = f"lstm_{'backward' if is_backward else 'forward'}_persistent_kernel"
    return sum(event.device_time_total for event in profiled.key_averages() if name in event.key)
