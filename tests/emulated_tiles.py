"""The CPU layer with the tile instructions of AMX in C++ (emulation/tiles.h), for processors without them.

``python -m tests.emulated_tiles -m MODULE ...`` or ``-c CODE`` runs Python with that build, not the installed one.
"""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch  # noqa: F401  the library needs its libraries
from filelock import FileLock

ROOT = Path(__file__).parent.parent
ASAN = os.environ.get("FUSEDLSTM_ASAN") == "1"


def build() -> Path:
    """The library of fusedlstm._C, built where a source has changed."""
    folder = ROOT / "build" / ("emulated-tiles-asan" if ASAN else "emulated-tiles")
    define = f'-DFUSEDLSTM_EMULATED_TILES=\\"{ROOT / "tests/emulation/tiles.h"}\\"'
    environment = os.environ | {"FUSEDLSTM_CUDA": "0", "CPPFLAGS": define}
    environment.pop("LD_PRELOAD", None)  # a compiler under AddressSanitizer takes several times as long
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--force",
        "-b",
        str(folder),
        "-t",
        str(folder / "objects"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return next((folder / "fusedlstm").glob("_C*.so"))


def install() -> None:
    """What this process imports as fusedlstm._C is that library."""
    spec = importlib.util.spec_from_file_location("fusedlstm._C", build())
    assert spec
    assert spec.loader
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


if __name__ == "__main__":
    install()
    kind, what, *_ = sys.argv[1:]
    sys.argv = sys.argv[2:]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what)
