"""What the plan chooses among on a GPU, each forced: what a step takes, and what the plan expects.

Strategies, and with a sweep also the divisions of a persistent launch that the plan expects to be fastest.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
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

SIGNALS = {"persistent": "data", "persistent_flags": "flag"}
STRATEGIES = ("stepwise", *SIGNALS)
_REPEATS = 5
Division = tuple[int, int, int]  # groups, weight tiles, row tiles of a chunk
_KEY = ("case", "dtype", "backward", "strategy", "division")


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
    division: str  # as FUSEDLSTM_PLAN forces it; empty: the plan's own
    plan: str
    chosen: bool  # by the plan, where nothing is forced
    predicted_us: float
    wall_us: float  # of the whole pass, with the products over all steps
    kernel_us: float | None  # of the persistent launch
    launch_us: float  # in which the host launches a kernel
    commit: str


def measure(case: Case, dtype: str, limits: _C.Limits, sweep: int = 0) -> Iterator[Tier]:
    """Forward and backward of the case's layer, of one layer and without a projection, by each strategy that takes it.

    Args:
        case: I must equal H.
        dtype: one of `DTYPES`; float32 may use TF32.
        limits: of the GPU, for the predictions.
        sweep: how many more divisions of each persistent strategy, those that are expected to be fastest.
    """
    module = fusedlstm.LSTM(case.H, case.H, bidirectional=case.D == 2, device="cuda", dtype=DTYPES[dtype])
    x = torch.randn(case.T, case.N, case.H, device="cuda", dtype=DTYPES[dtype], requires_grad=True)
    gradient = torch.randn(case.T, case.N, case.D * case.H, device="cuda", dtype=DTYPES[dtype])

    def forward() -> Tensor:
        y: Tensor = module(x)[0]
        return y

    def backward(y: Tensor) -> None:
        torch.autograd.grad(y, [x, *module.parameters()], gradient, retain_graph=True)

    for is_backward in (False, True):
        problem = _C.Problem(
            steps=case.T, batch=case.N, hidden=case.H, directions=case.D, dtype=_name(dtype), tf32=dtype == "float32",
            backward=is_backward,
        )  # fmt: skip
        fastest = _C.make_plan(problem, limits)
        for strategy, division in choices(problem, limits, sweep):
            plan = _C.make_plan(problem, limits, strategy, division)
            of_plan = "" if division is None else ",".join(map(str, division))
            y = forward()  # by the plan's own choice: what is forced is the one pass
            with _forced(strategy, of_plan):
                wall = _wall(forward, backward if is_backward else None, y)
                kernel = None if strategy == "stepwise" else _kernel(forward, backward if is_backward else None, y)
            signal = plan.persistent and plan.persistent.signal
            yield Tier(
                case.name, case.T, case.N, case.H, dtype, is_backward, strategy, of_plan, str(plan),
                chosen=division is None and plan.strategy == fastest.strategy
                and signal == (fastest.persistent and fastest.persistent.signal),
                predicted_us=round(plan.stepwise_us if strategy == "stepwise" else plan.persistent_us, 3),
                wall_us=round(wall / case.T, 3),
                kernel_us=None if kernel is None else round(kernel / case.T, 3),
                launch_us=round(limits.launch_us, 2),
                commit=environment.commit(),
            )  # fmt: skip


def choices(problem: _C.Problem, limits: _C.Limits, sweep: int = 0) -> Iterator[tuple[str, Division | None]]:
    """Each strategy that takes a pass with the plan's own division, and then as many others as `sweep` says."""
    yield "stepwise", None
    for strategy, signal in SIGNALS.items():
        plans = [plan for plan, _ in _C.persistent_plans(problem, limits, signal)]
        if plans:
            yield strategy, None  # the first of them
        for plan in plans[1 : 1 + sweep]:
            yield strategy, (plan.groups, plan.weight_tiles, plan.row_tiles_per_chunk)


def write(path: Path, tiers: list[Tier]) -> None:
    """Puts them into a file of JSON lines, each in the place of an older one of the same pass and strategy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    merged = {tuple(tier.get(name, "") for name in _KEY): tier for tier in [*old, *map(asdict, tiers)]}
    path.write_text("".join(json.dumps(tier) + "\n" for tier in merged.values()))


def limits_of_this_gpu(launch_us: float, multiprocessors: int | None = None) -> _C.Limits:
    """Limits of the current GPU, or of so many of its multiprocessors, as the plan reads them."""
    properties = torch.cuda.get_device_properties()
    return _C.Limits(
        multiprocessors=multiprocessors or properties.multi_processor_count,
        threads_per_multiprocessor=properties.max_threads_per_multi_processor,
        shared_memory=properties.shared_memory_per_block_optin,
        compute_capability=10 * properties.major + properties.minor,
        clock_ghz=properties.clock_rate * 1e-6,
        l2_bytes=properties.L2_cache_size,
        memory_gb_s=properties.memory_bus_width / 8 * 2 * properties.memory_clock_rate * 1e-6,
        launch_us=launch_us,
    )


def _name(dtype: str) -> str:
    return str(DTYPES[dtype]).removeprefix("torch.")


@contextmanager
def _forced(strategy: str, division: str) -> Iterator[None]:
    wanted = {"FUSEDLSTM_STRATEGY": strategy, "FUSEDLSTM_PLAN": division or None}
    before = {name: os.environ.get(name) for name in wanted}
    _set_environment(wanted)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _wall(forward: Callable[[], Tensor], backward: Callable[[Tensor], None] | None, y: Tensor) -> float:
    """Median of some calls after one that does not count; torch's timer waits for the GPU."""
    times = []
    for _ in range(_REPEATS + 1):
        start = timer()
        if backward:
            backward(y)
        else:
            with torch.no_grad():
                forward()
        times.append((timer() - start) * 1e6)
    return statistics.median(times[1:])


def _kernel(forward: Callable[[], Tensor], backward: Callable[[Tensor], None] | None, y: Tensor) -> float:
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        if backward:
            backward(y)
        else:
            forward()
        torch.cuda.synchronize()
    name = f"lstm_{'backward' if backward else 'forward'}_persistent_kernel"
    return sum(event.device_time_total for event in profiled.key_averages() if name in event.key)
