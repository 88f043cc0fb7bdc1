"""Builds fusedlstm._C; metadata is in pyproject.toml."""

import os
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.resolve()
CPU_SOURCES = [
    "csrc/module.cpp",
    "csrc/ops.cpp",
    "csrc/plan.cpp",
    "csrc/cpu/layer.cpp",
    "csrc/cpu/recurrence.cpp",
    "csrc/cpu/plan.cpp",
    "csrc/cpu/isa.cpp",
    "csrc/cpu/kernel_plain.cpp",
    "csrc/cpu/kernel_avx2.cpp",
    "csrc/cpu/kernel_avx512.cpp",
]
CUDA_SOURCES = [
    "csrc/cuda/layer.cpp",
    "csrc/cuda/work.cpp",
    "csrc/cuda/recurrence.cpp",
    "csrc/cuda/context.cpp",
    "csrc/cuda/persistent_backward.cu",
    "csrc/cuda/persistent_forward.cu",
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


host_flags = [
    "-O3",
    "-std=c++20",
    "-fopenmp",
    "-fvisibility=hidden",
    "-Wall",
    f"-ffile-prefix-map={ROOT}/=",  # errors name csrc/..., not the builder's folders
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
            ],
            extra_compile_args={
                "cxx": host_flags,
                "nvcc": ["-O3", "-std=c++20"],
            },
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
