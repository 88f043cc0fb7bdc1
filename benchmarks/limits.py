"""How far fusedlstm is from what the processor can do: arithmetic, memory, the cost of a call, a shared machine."""

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import cpp_extension

import fusedlstm
from benchmarks import environment, measure, roofline
from benchmarks.cases import CASES, Case
from benchmarks.providers import PROVIDERS
from fusedlstm import ops

BOUND_BY_ARITHMETIC = ["lm_medium", "lm_char", "batch_256", "batch_512", "rl_rollout", "stream_512_b32"]
BOUND_BY_MEMORY = ["sequence_128", "sequence_512", "stream_128", "stream_512"]
_SHARED = ["sequence_128", "sequence_512", "batch_256"]


def report(seconds: float, cases: Mapping[str, Case] = CASES) -> str:
    """Measures ``cases``, about ``seconds`` for each figure, and describes it as Markdown."""
    parts = [_arithmetic(seconds, cases), _memory(seconds, cases), _call(seconds), _sharing(seconds, cases)]
    threads = f"{environment.device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"
    head = f"{threads}, torch {torch.__version__}, commit {environment.commit()}."
    return "\n\n".join(["# Distance to the limits", head, *parts])


def _table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def _median_us(case: Case, mode: str, dtype: str, seconds: float) -> float:
    rows = measure.measure(case, mode, dtype, [PROVIDERS["fusedlstm"]], torch.device("cpu"), seconds)
    (row,) = rows
    if row.median_us is None:
        raise RuntimeError(f"limits: {case.name} {mode} {dtype}: {row.error}")
    return row.median_us


def _arithmetic(seconds: float, cases: Mapping[str, Case]) -> str:
    gemm = environment.peaks(torch.device("cpu"), "float32", torch.get_num_threads())[0] * 1e3
    rows = []
    for name in BOUND_BY_ARITHMETIC:
        rates = [
            roofline.flops(cases[name], mode) / _median_us(cases[name], mode, "float32", seconds) / 1e3
            for mode in ("inference", "training")
        ]
        rows.append([name, *(text for rate in rates for text in (f"{rate:.0f}", f"{rate / gemm:.0%}"))])
    columns = ["case", "inference GFLOP/s", "of the product's", "training GFLOP/s", "of the product's"]
    return (
        f"## Arithmetic\n\ntorch's product of two 2048 x 2048 matrices: {gemm:.0f} GFLOP/s on"
        f" {torch.get_num_threads()} threads.\n\n{_table(columns, rows)}"
    )


def _read_gb_s(kib: int) -> float:
    """GB/s at which torch sums a buffer of this size for each thread, again and again."""
    count = kib * 256 * torch.get_num_threads()
    buffer = torch.randn(count).expand(max(1, 2**24 // count), count)
    return buffer.numel() * 4 / _fastest(lambda: buffer.sum()) / 1e9


def _fastest(run: Callable[[], Any], calls: int = 20) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _memory(seconds: float, cases: Mapping[str, Case]) -> str:
    near, far = _read_gb_s(192), _read_gb_s(4096)
    rows = []
    for name in BOUND_BY_MEMORY:
        case = cases[name]
        us = {dtype: _median_us(case, "inference", dtype, seconds) for dtype in ("float32", "bfloat16", "float16")}
        # W_hh is read at every step, W_ih once for all that are formed together.
        read = 4 * case.H * (case.T * case.H + case.I) * 4 / us["float32"] / 1e3
        weights = 4 * case.H * (case.I + case.H) * 4 / 1024
        narrow = (f"{us['float32'] / us[dtype]:.2f}" for dtype in ("bfloat16", "float16"))
        rows.append([name, f"{weights:.0f} KiB", f"{us['float32']:.0f} us", f"{read:.0f}", *narrow])
    columns = ["case", "weights", "float32", "weights read, GB/s", "bfloat16, times as fast", "float16"]
    return (
        f"## Memory: one sequence\n\nReading alone: {near:.0f} GB/s from the L2 caches (192 KiB for each thread),"
        f" {far:.0f} GB/s from the L3 cache (4 MiB for each).\n\n{_table(columns, rows)}"
    )


def _call_us(run: Callable[[], Any], seconds: float) -> float:
    calls, end, medians = 200, time.monotonic() + seconds, []
    while time.monotonic() < end or len(medians) < 5:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        medians.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(medians)


def _call(seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        cpp_extension.load(
            "fusedlstm_bench",
            [str(Path(__file__).parent / "bare_op.cpp")],
            extra_cflags=["-std=c++20"],
            build_directory=folder,
            is_python_module=False,
        )
    module = nn.LSTM(16, 16)
    fused = fusedlstm.replace_lstm(copy.deepcopy(module))
    x, hx = torch.randn(1, 1, 16), (torch.randn(1, 1, 16), torch.randn(1, 1, 16))
    weights = [parameter.detach() for parameter in module.parameters()]
    bare, arguments = torch.ops.fusedlstm_bench.bare, (x, *hx, weights, None, None, None, False)
    calls: dict[str, Callable[[], Any]] = {
        "an operator of the same arguments and results that computes nothing": lambda: bare(*arguments),
        "fusedlstm::lstm_inference": lambda: torch.ops.fusedlstm.lstm_inference(*arguments),
        "with what Python adds for a layer": lambda: ops.lstm_layer(x, *hx, weights),
        "with what it adds for a stack": lambda: fusedlstm.lstm(x, hx, weights),
        "fusedlstm.LSTM, with its checks": lambda: fused(x, hx),
        "nn.LSTM": lambda: module(x, hx),
    }
    with torch.no_grad():
        rows = [[name, f"{_call_us(run, seconds):.1f}"] for name, run in calls.items()]
    table = _table(["call", "us"], rows)
    return f"## A call\n\nT = N = 1, I = H = 16, in microseconds; each line of ours includes those above it.\n\n{table}"


def _sharing(seconds: float, cases: Mapping[str, Case]) -> str:
    rows = []
    for name in _SHARED:
        case = cases[name]
        module = nn.LSTM(case.I, case.H)
        contestants = {"nn.LSTM": module, "fusedlstm": fusedlstm.replace_lstm(copy.deepcopy(module))}
        x = torch.randn(case.T, case.N, case.I)
        quiet = _turns(contestants, x, seconds)
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            shared = _turns(contestants, x, 3 * seconds)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        slower = {name: shared[name] / quiet[name] for name in contestants}
        times = (f"{us[name] / 1e3:.2f}" for name in contestants for us in (quiet, shared))
        rows.append([name, *times, *(f"{slower[name]:.1f}" for name in contestants)])
    columns = ["case", "nn.LSTM alone, ms", "shared", "fusedlstm alone, ms", "shared", "nn.LSTM slower by", "fusedlstm"]
    return (
        "## A shared machine\n\nThe mean time of a call alone and beside two busy processes, on"
        f" {torch.get_num_threads()} threads.\n\n{_table(columns, rows)}"
    )


def _turns(contestants: dict[str, nn.Module], x: torch.Tensor, seconds: float) -> dict[str, float]:
    """The mean time of a call in microseconds, each taking five turns: means, since a pause is what sharing costs."""
    calls: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        for turn in range(1, 6):
            for name, module in contestants.items():
                module(x)
                end = time.monotonic() + seconds / 5
                while time.monotonic() < end or len(calls[name]) < turn:
                    start = time.perf_counter()
                    module(x)
                    calls[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.mean(us) for name, us in calls.items()}
