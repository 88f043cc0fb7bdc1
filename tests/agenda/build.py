"""Builds the package for the GPU of this machine alone, unless that has been done from these sources."""

import json
import os
import subprocess
import sys
import sysconfig
from typing import Any

import torch
from agenda.sources import ROOT, Sources

_SOURCES = ("setup.py", "pyproject.toml", "csrc/**/*")
_STAMP = ROOT / "build/gpu-build.json"
_LIBRARY = ROOT / "fusedlstm" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def is_current() -> bool:
    """Whether the library that lies here was built from these sources, for this GPU, torch and Python."""
    try:
        return bool(json.loads(_STAMP.read_text()) == _facts())
    except (OSError, ValueError):
        return False


def build() -> int:
    """Builds and loads the package; the exit status."""
    if is_current():
        print(f"{_LIBRARY.name} is built from these sources")
        return 0
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--editable", "."]
    settings = {"FUSEDLSTM_CUDA": "1", "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count()))}
    if archs := _archs():
        settings["TORCH_CUDA_ARCH_LIST"] = archs
    load = [sys.executable, "-c", "from fusedlstm import info; print(info.report())"]
    for command in (pip, load):
        status = subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=False).returncode
        if status:
            return status
    _STAMP.parent.mkdir(exist_ok=True)
    _STAMP.write_text(json.dumps(_facts(), indent=1) + "\n")
    return 0


def _archs() -> str:
    """What TORCH_CUDA_ARCH_LIST says, else the architecture of the GPU here; empty without one: that of setup.py."""
    said = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if said or not torch.cuda.is_available():
        return said
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")  # wgmma is in 9.0a alone


def _facts() -> dict[str, Any]:
    library = _LIBRARY.stat()
    return {
        "sources": Sources().digest(_SOURCES),
        "archs": _archs(),
        "torch": torch.__version__,
        "python": sys.version,
        "library": [library.st_size, library.st_mtime_ns],
    }
