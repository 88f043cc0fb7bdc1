"""The CUDA layer on CPU tensors: its own sources built for the host, its kernels run by the emulator."""

import ctypes
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils import cpp_extension

from fusedlstm import fakes

ROOT = Path(__file__).parent.parent
SOURCES = [
    *(ROOT / f"csrc/cuda/{name}.cpp" for name in ("layer", "layer_call", "forward", "backward", "plan")),
    *sorted((ROOT / "tests/emulation").glob("*.cpp")),
]
FLAGS = ["-std=c++20", "-O2", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
# FUSEDLSTM_ASAN=1 builds with AddressSanitizer, whose library the process must have been started with (make test-asan).
ASAN = os.environ.get("FUSEDLSTM_ASAN") == "1"
SEED = int(os.environ.get("FUSEDLSTM_EMULATION_SEED", "1"))


@cache
def load() -> ctypes.CDLL:
    """Builds the library where a source has changed, and loads it; it registers the operators' CUDA kernels.

    FUSEDLSTM_EMULATION_LIBRARY names another one, such as :func:`build_with` makes.
    """
    if other := os.environ.get("FUSEDLSTM_EMULATION_LIBRARY"):
        torch.ops.load_library(other)
        return ctypes.CDLL(other)
    folder = ROOT / "build" / ("emulation-asan" if ASAN else "emulation")
    folder.mkdir(parents=True, exist_ok=True)
    sanitize = ["-fsanitize=address", "-g", "-O1"] if ASAN else []  # -O2 would take minutes for the kernels
    with FileLock(folder.with_suffix(".lock")):
        (folder / "lock").unlink(missing_ok=True)  # torch's own, for which it would wait forever after a killed build
        preloaded = os.environ.pop("LD_PRELOAD", None)  # a compiler under AddressSanitizer takes several times as long
        try:
            cpp_extension.load(
                "fusedlstm_emulated",
                [str(source) for source in SOURCES],
                extra_cflags=FLAGS + sanitize,
                extra_ldflags=sanitize,
                extra_include_paths=[str(ROOT / "csrc"), str(ROOT / "tests")],
                build_directory=str(folder),
                is_python_module=False,
            )
        finally:
            if preloaded:
                os.environ["LD_PRELOAD"] = preloaded
    return ctypes.CDLL(str(folder / "fusedlstm_emulated.so"))


def build_with(csrc: Path, folder: Path) -> Path:
    """The library once more, in ``folder``, with the persistent kernels of bfloat16 of another source tree."""
    load()
    built = ROOT / "build" / ("emulation-asan" if ASAN else "emulation")
    kernels, library = folder / "persistent_kernels.o", folder / "fusedlstm_emulated.so"
    sanitize = ["-fsanitize=address"] if ASAN else []
    flags = [*FLAGS, *sanitize, "-O0", "-fPIC", f"-I{csrc}", f"-I{ROOT / 'tests'}"]
    source = ROOT / "tests/emulation/bfloat16" / f"{kernels.stem}.cpp"
    subprocess.run(["c++", *flags, "-c", source, "-o", kernels], check=True)
    objects = [built / f"{source.stem}.o" for source in SOURCES if source.stem != kernels.stem]
    libraries = Path(torch.__file__).parent / "lib"
    link = [f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}"]
    subprocess.run(["c++", "-shared", *sanitize, kernels, *objects, *link, "-o", library], check=True)
    return library


def work() -> int:
    """Kernels and products that the device was given since :func:`operators` was entered."""
    counted = load().fusedlstm_emulation_work
    counted.restype = ctypes.c_uint64
    return int(counted())


@contextmanager
def operators(strategy: str = "stepwise", multiprocessors: int = 4, seed: int = SEED) -> Iterator[None]:
    """Sends the operators' calls with CPU tensors to the CUDA layer, on an emulated device of that size."""
    load().fusedlstm_emulation_set_seed(ctypes.c_uint64(seed))
    load().fusedlstm_emulation_set_multiprocessors(ctypes.c_uint(multiprocessors))
    before = os.environ.get("FUSEDLSTM_STRATEGY")
    os.environ["FUSEDLSTM_STRATEGY"] = strategy
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with torch.library._scoped_library("fusedlstm", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # overriding is the intent
            for name in ("lstm_inference", "lstm_forward", "lstm_recompute", "lstm_backward"):
                operator = getattr(torch.ops.fusedlstm, name).default
                library.impl(name, partial(operator.redispatch, cuda), "CPU", allow_override=True)
        fakes.float16_devices.add("cpu")
        try:
            yield
        finally:
            fakes.float16_devices.discard("cpu")
            if before is None:
                del os.environ["FUSEDLSTM_STRATEGY"]
            else:
                os.environ["FUSEDLSTM_STRATEGY"] = before
