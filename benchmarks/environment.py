"""The machine that rows are from, and how fast it is at the two things that bound everything.

A GPU can be named before the package is built: the functions that need the package import it.
"""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark.utils.timer import timer

from benchmarks.cases import DTYPES


@cache
def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the kernels it runs, in which processors of one name may differ."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    from fusedlstm import _C

    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {_C.instruction_set()}"


def folder(device: torch.device) -> str:
    """Name of the folder for a machine's records."""
    return folder_of(device_name(device), device.type == "cuda")


def folder_of(name: str, is_gpu: bool) -> str:
    """The same for the name of a device: "NVIDIA H200" has h200, a processor cpu-<name>."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")
    return slug if is_gpu else f"cpu-{slug}"


@cache
def versions(device: torch.device) -> dict[str, str]:
    """Driver, CUDA, cuDNN, torch and fusedlstm, as the columns of a row; empty where there is none."""
    import fusedlstm

    found = {"torch": torch.__version__, "fusedlstm": fusedlstm.__version__, "driver": "", "cuda": "", "cudnn": ""}
    if device.type == "cuda":
        found["driver"] = driver()
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


@cache
def driver() -> str:
    """Version of NVIDIA's driver, or "unknown"."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    except OSError:
        output = ""
    return output.split("\n")[0].strip() or "unknown"


@cache
def commit() -> str:
    """What FUSEDLSTM_COMMIT says, for a copy of the tree that its repository does not know; else the commit that is
    checked out, with -dirty where sources differ from it; unknown outside a repository."""
    if said := os.environ.get("FUSEDLSTM_COMMIT"):
        return said
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=root).stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    sources = ("csrc", "fusedlstm", "benchmarks", "setup.py", ":!benchmarks/results")
    return head + ("-dirty" if git("status", "--porcelain", "--", *sources) else "") if head else "unknown"


def columns(device: torch.device, dtype: str) -> dict[str, Any]:
    """The environment's columns of a row."""
    tflops, gb_s = peaks(device, dtype, torch.get_num_threads())
    return {
        "device": device_name(device),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "peak_tflops": tflops,
        "peak_gb_s": gb_s,
        **versions(device),
    }


@cache
def peaks(device: torch.device, dtype: str, threads: int) -> tuple[float, float]:
    """TFLOP/s of a large product and GB/s (read and written) of a large copy.

    A CPU computes in float32 whatever the dtype: torch's product of 16-bit matrices takes minutes on most.

    ``threads`` tells the calls of the cache apart.
    """
    size, kind = (8192, DTYPES[dtype]) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "float32"
    try:
        product = _seconds(lambda: a @ b)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    source = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source))
    return 2 * size**3 / product / 1e12, 2 * source.numel() * 4 / copy / 1e9


def _seconds(run: Callable[[], object]) -> float:
    """The best of nine calls, for a peak is what the machine can do; `timer` waits for the GPU."""
    times = []
    for _ in range(9):
        start = timer()
        run()
        times.append(timer() - start)
    return min(times)
