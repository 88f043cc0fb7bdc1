"""How the package was built and what it can use here: the text of ``python -m fusedlstm info``."""

import platform

import torch

import fusedlstm
from fusedlstm import _C


def report() -> str:
    """Describes this installation, for bug reports.

    Returns:
        A line each for versions, the build, the processor, the GPU, and which kernels are usable.

    Example:
        >>> print(report())  # doctest: +SKIP
    """
    build = _C.build_info()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible"
    lines = {
        "fusedlstm": fusedlstm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "built with compiler": build["compiler"],
        "built against torch": build["torch"],
        "built for CUDA": f"{build['cuda']}, architectures {build['cuda_archs']}" if build["cuda"] else "no",
        "CPU": torch.backends.cpu.get_cpu_capability(),
        "CPU threads": str(torch.get_num_threads()),
        "GPU": gpu,
        "CPU kernels": _cpu_kernels(),
        "CUDA kernels": _cuda_kernels(build),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def gpu_is_usable() -> bool:
    """Return whether fusedlstm has kernels for a GPU and torch sees one."""
    return bool(_C.build_info()["cuda"]) and torch.cuda.is_available()


def _cpu_kernels() -> str:
    try:
        return f"usable, {_C.instruction_set()}"
    except RuntimeError as error:  # FUSEDLSTM_ISA names none of this processor
        return f"not usable: {error}"


def _cuda_kernels(build: dict[str, str]) -> str:
    if not build["cuda"]:
        return "not built; reinstall with a CUDA build of torch and a CUDA toolkit"
    return "usable" if gpu_is_usable() else "built, but torch sees no GPU"
