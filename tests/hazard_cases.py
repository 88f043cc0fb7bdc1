"""The hazards of hazards.py, each a function. None may pass because nothing ran: each shows which kernels it used."""

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# cuBLAS repeats its bits beside other streams only with a workspace of fixed size. It reads the variable at its start.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import Tensor

import fusedlstm
from benchmarks import tiers
from fusedlstm import _C
from tests import gpu
from tests.hazards import Note, in_short

STRATEGIES = ("stepwise", *gpu.PERSISTENT)
SAME_BITS = "the two strategies give the same bits, so nothing tells which was used"


def _gpu() -> torch.device:
    if not _C.build_info()["cuda"]:
        raise RuntimeError("this build must have CUDA kernels and has none; run: make gpu-build")
    if not torch.cuda.is_available():
        raise RuntimeError("torch must see a GPU and sees none")
    return torch.device("cuda", torch.cuda.current_device())


def _layer(device: torch.device, T: int, N: int, H: int, I: int = 64) -> tuple[fusedlstm.LSTM, Tensor]:
    """One layer of bfloat16 and an input for it."""
    torch.manual_seed(0)
    module = fusedlstm.LSTM(I, H, device=device, dtype=torch.bfloat16)
    return module, torch.randn(T, N, I, device=device, dtype=torch.bfloat16)


def _outputs(strategy: str, module: fusedlstm.LSTM, x: Tensor) -> Tensor:
    os.environ["FUSEDLSTM_STRATEGY"] = strategy
    with torch.no_grad():
        y: Tensor = module(x)[0]
    torch.cuda.synchronize()
    return y


def _plan(T: int, N: int, H: int) -> _C.PersistentPlan:
    """Of a forward pass in bfloat16 with strategy "persistent", on this GPU."""
    problem = _C.Problem(steps=T, batch=N, hidden=H, dtype="bfloat16")
    plan = _C.make_plan(problem, tiers.limits_of_this_gpu(launch_us=5), "persistent").persistent
    assert plan is not None, f"this GPU has no persistent plan for {N} rows and {H} units"
    return plan


class _Repeated:
    """Calls of one layer on a stream of its own, each compared with a call alone.

    The bits of the persistent strategy differ from those of the stepwise one, so a call that silently ran step by step
    is a wrong one too.
    """

    def __init__(self, device: torch.device, T: int, N: int, H: int):
        self.plan = _plan(T, N, H)
        self.module, self.x = _layer(device, T, N, H)
        stepwise, self.expected = (_outputs(s, self.module, self.x) for s in ("stepwise", "persistent"))
        assert not torch.equal(stepwise, self.expected), SAME_BITS
        self.stream = torch.cuda.Stream(device)
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)

    def call(self) -> None:
        with torch.no_grad(), torch.cuda.stream(self.stream):
            self.wrong += (self.module(self.x)[0] != self.expected).any()


def shared_memory_of_two_threads(note: Note) -> None:
    """The shared memory that a kernel may have is set for the process, not for the launch of a thread."""
    device, count = _gpu(), 2000
    layers = [_Repeated(device, 16, N, 1024) for N in (16, 32)]
    few, many = (layer.plan for layer in layers)
    note(shared_bytes=[few.shared_bytes, many.shared_bytes], k_blocks=[few.k_blocks, many.k_blocks])
    assert (few.k_blocks, few.signal) == (many.k_blocks, many.signal), "the layers must share a kernel"
    assert few.shared_bytes != many.shared_bytes
    together = threading.Barrier(len(layers))
    torch.cuda.synchronize()

    def calls(layer: _Repeated) -> None:
        torch.cuda.set_device(device)
        together.wait()
        for _ in range(count):
            layer.call()

    with ThreadPoolExecutor(len(layers)) as pool:
        for done in [pool.submit(calls, layer) for layer in layers]:
            done.result()
    torch.cuda.synchronize()
    wrong = [int(layer.wrong) for layer in layers]
    note(calls=count, wrong=wrong)
    assert wrong == [0, 0], "calls with other bits than alone"


def refused_cooperative_launch(note: Note) -> None:
    """A green context has fewer multiprocessors than the device says, so it refuses a cooperative launch."""
    device, count = _gpu(), 32
    module, x = _layer(device, 16, 8, 1024)
    blocks = _plan(16, 8, 1024).members
    note(multiprocessors=count, blocks=blocks)
    assert blocks > count
    everywhere = _outputs("persistent", module, x)
    green = torch.cuda.green_contexts.GreenContext.create(count, device.index)
    with torch.cuda.stream(green.Stream()):
        stepwise, refused = (_outputs(strategy, module, x) for strategy in ("stepwise", "persistent"))
        assert (torch.ones(8, device=device) + 1).sum().item() == 16  # raises an error that the launch left behind
    assert (torch.ones(8, device=device) + 1).sum().item() == 16
    note(persistent=torch.equal(refused, everywhere), stepwise=torch.equal(refused, stepwise))
    assert not torch.equal(stepwise, everywhere), SAME_BITS
    assert not torch.equal(refused, everywhere), "the launch was not refused, so this shows nothing"
    assert torch.equal(refused, stepwise)


def current_green_context(note: Note) -> None:
    """An operator leaves the context current that its caller has set."""
    device = _gpu()
    from cuda.bindings import driver  # comes with torch's CUDA builds

    def current() -> int:
        status, context = driver.cuCtxGetCurrent()
        assert status == driver.CUresult.CUDA_SUCCESS, status
        return int(context)

    module, x = _layer(device, 16, 8, 1024)
    expected = _outputs("stepwise", module, x)
    green = torch.cuda.green_contexts.GreenContext.create(32, device.index)
    os.environ["FUSEDLSTM_STRATEGY"] = "persistent"
    green.set_context()
    contexts = [current()]
    with torch.no_grad():
        module.weight_ih_l0 + 1
        contexts.append(current())
        y = module(x)[0]
        contexts.append(current())
    note(kept_by_torch=contexts[0] == contexts[1], kept_by_the_layer=contexts[1] == contexts[2])
    assert contexts[1] == contexts[2], "the operator has made another context current"
    green.pop_context()
    assert (torch.ones(8, device=device) + 1).sum().item() == 16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def two_grids(note: Note) -> None:
    """Two cooperative grids that nearly fill the GPU, on two streams: were they mixed, both would wait for ever."""
    device, count = _gpu(), 500
    grids = [_Repeated(device, 16, 8, 1024), _Repeated(device, 16, 64, 2048)]
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = [grid.plan.groups * grid.plan.members for grid in grids]
    note(blocks=blocks, shared_bytes=[grid.plan.shared_bytes for grid in grids], multiprocessors=multiprocessors)
    assert sum(blocks) > multiprocessors >= max(blocks)
    noise, beside = torch.randn(2048, 2048, device=device), torch.cuda.Stream(device)
    torch.cuda.synchronize()
    for index in range(count):
        for grid in grids:
            grid.call()
        if index % 5 == 0:
            with torch.cuda.stream(beside):
                torch.mm(noise, noise)
    torch.cuda.synchronize()
    wrong = [int(grid.wrong) for grid in grids]
    note(calls=count, wrong=wrong)
    assert wrong == [0, 0], "calls with other bits than alone"


def nan_states(note: Note) -> None:
    """Bits of a NaN could be the sign of a word not yet published. With them every shape of test_persistent.py."""
    _gpu()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        status = gpu.run_pytest(junit, "tests/test_persistent.py")
        counts, nan = gpu.counts(junit), [name for name in gpu.passed(junit) if name.startswith("test_a_nan_")]
    note(**counts, nan_states_passed=len(nan))
    assert status == counts["failed"] == counts["skipped"] == 0
    assert len(nan) == 6, "three types, each by data and by flags"


def hidden_zero(note: Note) -> None:
    """A division by the units would end the process."""
    messages = {}
    for device in (torch.device("cpu"), _gpu()):
        x, state = torch.randn(4, 3, 5, device=device), torch.zeros(1, 3, 0, device=device)
        layer = (x, state, state, [torch.zeros(0, 5, device=device), torch.zeros(0, 0, device=device)])
        rest = (None, None, None, False)
        y = torch.zeros(4, 3, 0, device=device)
        calls: dict[str, Sequence[Any]] = {
            "lstm_inference": (*layer, *rest),
            "lstm_forward": (*layer, *rest, True, True),
            "lstm_recompute": (*layer, *rest, y),
            "lstm_backward": (y, state, state, y, *layer, *rest, y, y, y, True, True, [1, 1]),
        }
        for name, arguments in calls.items():
            try:
                getattr(torch.ops.fusedlstm, name)(*arguments)
            except RuntimeError as error:
                messages[f"{name} {device.type}"] = str(error)
            else:
                messages[f"{name} {device.type}"] = ""
            note(messages=messages)
    assert all("hidden" in message for message in messages.values()), "an operator took 0 units, or does not say so"


def division_of_many_rows(note: Note) -> None:
    """The plan may choose a division that was never timed. Needs the GPU for itself."""
    device, times = _gpu(), {}
    limits = tiers.limits_of_this_gpu(launch_us=5)
    slowdowns = []
    for N in (64, 128):
        torch.manual_seed(0)
        module, x = fusedlstm.LSTM(1024, 1024, device=device), torch.randn(64, N, 1024, device=device)
        problem = _C.Problem(steps=64, batch=N, hidden=1024, dtype="float32", tf32=True)
        fit = [_C.persistent_plans(problem, limits, kind)[:3] for kind in ("data", "flag")]
        best = [plan for plan, _ in sorted((*fit[0], *fit[1]), key=lambda predicted: predicted[1])]
        us = {_division(plan): _kernel_us(module, x, plan) / 64 for plan in best}
        chosen = _division(best[0])
        slowdowns.append(us[chosen] / min(us.values()))
        times[N] = {"chosen": chosen, "us": {name: round(value, 3) for name, value in us.items()}}
        note(times=times, slowdowns=[round(value, 3) for value in slowdowns])
    assert all(len(each["us"]) > 1 for each in times.values()), "there was nothing to choose from"
    assert max(slowdowns) <= 1.1, "another division is faster by more than 10%"


def _division(plan: _C.PersistentPlan) -> str:
    return f"{plan.signal} {plan.groups},{plan.weight_tiles},{plan.row_tiles_per_chunk}"


def _kernel_us(module: fusedlstm.LSTM, x: Tensor, plan: _C.PersistentPlan) -> float:
    """Of the persistent launch alone: the shortest of five, after one that warms up."""
    os.environ["FUSEDLSTM_STRATEGY"] = "persistent_flags" if plan.signal == "flag" else "persistent"
    os.environ["FUSEDLSTM_PLAN"] = f"{plan.groups},{plan.weight_tiles},{plan.row_tiles_per_chunk}"
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.no_grad():
        module(x)
        with torch.profiler.profile(activities=activities, acc_events=True) as profiled:
            for _ in range(5):
                module(x)
            torch.cuda.synchronize()
    del os.environ["FUSEDLSTM_PLAN"]
    kernels = [event for event in profiled.events() if "lstm_forward_persistent_kernel" in event.name]
    assert len(kernels) == 5, f"{_division(plan)}: {len(kernels)} persistent launches in 5 calls"
    return min(float(event.device_time_total) for event in kernels)


def first_use_in_a_capture(note: Note) -> None:
    """The first call of a process loads kernels and asks the device, here while a stream captures."""
    _gpu()
    cases = list(product(STRATEGIES, (False, True), (False, True)))
    jobs: dict[Future[str], str] = {}
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(len(cases) + 2)]
    for pool, (strategy, training, warm) in zip(pools, cases, strict=False):
        name = f"{strategy} {'training' if training else 'inference'} {'warm' if warm else 'cold'}"
        jobs[pool.submit(_capture_layer, strategy, training, warm)] = name
    for pool, training in zip(pools[len(cases) :], (False, True), strict=True):
        jobs[pool.submit(_capture_product, training)] = f"torch.mm {'training' if training else 'inference'} cold"
    results = {}
    for job in as_completed(jobs):
        try:
            results[jobs[job]] = job.result()
        except Exception as error:  # of a process that died
            results[jobs[job]] = in_short(error)
        note(results=dict(sorted(results.items())))
    for pool in pools:
        pool.shutdown()
    # torch asks its users to warm up: its own products may fail as a first use, and then so may the layer's.
    excused = {kind for kind in ("inference", "training") if results[f"torch.mm {kind} cold"] != "right"}
    wrong = {name for name, result in results.items() if result != "right" and not name.startswith("torch.mm")}
    wrong -= {f"{strategy} {kind} cold" for strategy in STRATEGIES for kind in excused}
    assert not wrong, f"wrong: {', '.join(sorted(wrong))}"


def _capture_layer(strategy: str, training: bool, warm: bool) -> str:
    """Returns "right", or what went wrong. With `warm`, torch's own product has run before, forward and backward."""
    os.environ["FUSEDLSTM_STRATEGY"] = strategy
    device = _gpu()
    module, x = _layer(device, 30, 33, 64)

    def step() -> list[Tensor]:
        if not training:
            with torch.no_grad():
                return [module(x)[0]]
        y, (h_n, c_n) = module(x)
        loss = y.float().square().mean() + h_n.float().sum() + c_n.float().sum()
        return [y.detach(), *torch.autograd.grad(loss, list(module.parameters()))]

    names = ["forward", "backward"] if training else ["forward"]
    kind = "stepwise" if strategy == "stepwise" else "persistent"
    try:
        if warm:
            _on_a_side_stream(lambda: _product(device, training=True))
        graph = torch.cuda.CUDAGraph()
        graph.enable_debug_mode()  # keeps what debug_dump prints
        with torch.cuda.graph(graph):
            captured = step()
        with tempfile.TemporaryDirectory() as folder:
            graph.debug_dump(f"{folder}/graph.dot")
            drawn = (Path(folder) / "graph.dot").read_text()
        absent = [f"lstm_{name}_{kind}_kernel" for name in names if f"lstm_{name}_{kind}_kernel" not in drawn]
        assert not absent, f"the graph has no {' and no '.join(absent)}"
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            graph.replay()
            for got, expected in zip(captured, step(), strict=True):
                torch.testing.assert_close(got, expected)
    except Exception as error:
        return in_short(error)
    return "right"


def _capture_product(training: bool) -> str:
    device = _gpu()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            _product(device, training)
        graph.replay()
        torch.cuda.synchronize()
    except Exception as error:
        return in_short(error)
    return "right"


def _product(device: torch.device, training: bool) -> None:
    a, b = (torch.zeros(64, 64, device=device, dtype=torch.bfloat16, requires_grad=training) for _ in range(2))
    result = torch.mm(a, b)
    if training:
        torch.autograd.grad(result.sum(), [a, b])


def _on_a_side_stream(run: Callable[[], None]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
