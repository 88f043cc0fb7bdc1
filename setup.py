"""Builds fusedlstm._C; metadata is in pyproject.toml."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.resolve()
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    sys.exit(f"fusedlstm: torch must be 2.10 or later, got {torch.__version__}; run: pip install --upgrade torch")

CPU_SOURCES = [
    "csrc/module.cpp",
    "csrc/ops.cpp",
    "csrc/cpu/layer.cpp",
    "csrc/cpu/forward.cpp",
    "csrc/cpu/backward.cpp",
    "csrc/cpu/caches.cpp",
    "csrc/cpu/plan.cpp",
    "csrc/cpu/team.cpp",
    "csrc/cpu/kernels/isa.cpp",
    "csrc/cpu/kernels/plain.cpp",
    "csrc/cpu/kernels/avx2.cpp",
    "csrc/cpu/kernels/avx512.cpp",
    "csrc/cpu/kernels/avx512_bf16.cpp",
    "csrc/cpu/kernels/amx.cpp",
    "csrc/cuda/plan.cpp",  # needs no CUDA
]
CUDA_SOURCES = [
    "csrc/cuda/layer.cpp",
    "csrc/cuda/layer_call.cpp",
    "csrc/cuda/forward.cpp",
    "csrc/cuda/backward.cpp",
    "csrc/cuda/context.cpp",
    "csrc/cuda/launch_time.cu",
    "csrc/cuda/persistent.cu",
    "csrc/cuda/persistent_backward_bfloat16.cu",
    "csrc/cuda/persistent_backward_float16.cu",
    "csrc/cuda/persistent_backward_float32.cu",
    "csrc/cuda/persistent_forward_bfloat16.cu",
    "csrc/cuda/persistent_forward_float16.cu",
    "csrc/cuda/persistent_forward_float32.cu",
    "csrc/cuda/persistent_setup.cu",
    "csrc/cuda/stepwise_forward.cu",
    "csrc/cuda/stepwise_backward.cu",
]

# One binary for the GPUs in use since 2020; 9.0a and 10.0 have instructions that later ones lack, 12.0 ends in PTX.
DEFAULT_ARCHS = "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be built here, or None when they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA; install a CUDA build of torch first"
    home = cpp_extension.CUDA_HOME
    if home is None:
        return f"no CUDA toolkit was found; set CUDA_HOME to one of CUDA {torch.version.cuda.split('.')[0]}"
    missing = [name for name in ("bin/nvcc", "include/cuda_runtime.h") if not Path(home, name).exists()]
    if missing:  # torch guesses from the nvcc on the PATH, which may be a link or a script outside its toolkit
        return f"CUDA_HOME={home} is no CUDA toolkit (no {missing[0]}); set CUDA_HOME to the folder of the toolkit"
    told = subprocess.run([Path(home, "bin/nvcc"), "--version"], capture_output=True, text=True, check=False).stdout
    found, wanted = re.search(r"release (\d+)", told), torch.version.cuda.split(".")[0]
    if found and found[1] != wanted:
        return f"CUDA_HOME={home} has CUDA {found[1]}, torch has {wanted}; set CUDA_HOME to a toolkit of CUDA {wanted}"
    return None


def use_cuda() -> bool:
    choice = os.environ.get("FUSEDLSTM_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        sys.exit(f"FUSEDLSTM_CUDA must be auto, 0 or 1, got {choice!r}")
    problem = cuda_problem()
    if choice == "1" and problem:
        sys.exit(f"FUSEDLSTM_CUDA=1 asks for the CUDA kernels, but {problem}")
    if choice == "auto" and problem and torch.version.cuda:
        print(f"fusedlstm: building for the CPU only: {problem}", file=sys.stderr)
    return choice != "0" and problem is None


cuda = use_cuda()
if cuda and not torch.cuda.is_available():
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)  # torch's own default asks a GPU


def cublas_headers() -> list[str]:
    """The folder of cuBLAS's headers where the toolkit comes without them: torch's own NVIDIA packages."""
    if not cuda or Path(cpp_extension.CUDA_HOME, "include/cublas_v2.h").exists():
        return []
    found = sorted(Path(torch.__file__).parents[1].glob("nvidia/**/include/cublas_v2.h"))
    if not found:
        sys.exit("fusedlstm: cublas_v2.h must be in CUDA_HOME or torch's NVIDIA packages; install cuBLAS's headers")
    return [str(found[0].parent)]


# g++ 11 knows C++20 but not the shuffles of csrc/cpu/kernels/simd.inl.
NEEDED = """
#if !__has_builtin(__builtin_shufflevector)
#error no __builtin_shufflevector
#endif
#include <omp.h>
#include <Python.h>
"""


class Build(cpp_extension.BuildExtension):
    """Asks the compiler for what is needed before the first source: ninja's log would bury the line that matters."""

    def build_extensions(self) -> None:
        compiler = os.environ.get("CXX", "c++")
        command = f"{compiler} -std=c++20 -fopenmp -I{sysconfig.get_path('include')} -E -x c++ -"
        try:
            run = subprocess.run(shlex.split(command), input=NEEDED, capture_output=True, text=True, check=False)
            errors = [line for line in run.stderr.splitlines() if "error" in line] if run.returncode else []
        except OSError as error:
            errors = [f"{error.strerror}: {error.filename}"]
        if errors:
            sys.exit(
                f"fusedlstm: the compiler must be g++ 12 or later with Python's headers, got from CXX={compiler}:"
                f" {errors[0]}; install g++ and python3-dev, or set CXX"
            )
        super().build_extensions()


# Errors name csrc/... and torch/..., not the builder's folders; of two that fit, the last counts.
folders = [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, Path(torch.__file__).parents[1])]
# FUSEDLSTM_ASAN=1 (make test-asan) checks every access, and ends the process at undefined behaviour. Overflow is
# defined with -fwrapv, one of the flags that Python was built with.
asan = os.environ.get("FUSEDLSTM_ASAN") == "1"
sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if asan else []
host_flags = [
    *(["-O1", "-g", "-fno-wrapv", *sanitize] if asan else ["-O3"]),
    "-std=c++20",
    "-fopenmp",
    "-fvisibility=hidden",
    "-Wall",
    *folders,
]
archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "native") if cuda else ""
extension = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
setup(
    ext_modules=[
        extension(
            "fusedlstm._C",
            CPU_SOURCES + (CUDA_SOURCES if cuda else []),
            include_dirs=cublas_headers(),
            define_macros=[
                ("FUSEDLSTM_TORCH_VERSION", torch.__version__),
                ("FUSEDLSTM_CUDA_VERSION", torch.version.cuda if cuda else ""),
                ("FUSEDLSTM_CUDA_ARCHS", archs.replace(";", " ")),
                *([("FUSEDLSTM_WITH_CUDA", None)] if cuda else []),
            ],
            extra_compile_args={
                "cxx": host_flags,
                "nvcc": ["-O3", "-std=c++20", *(f"-Xcompiler={flag}" for flag in folders)],
            },
            extra_link_args=["-fopenmp", *sanitize],
        )
    ],
    cmdclass={"build_ext": Build},
)
