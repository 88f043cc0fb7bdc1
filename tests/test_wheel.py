"""The contents of the source distribution and of the wheel that `make wheel` builds from it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

import fusedlstm
from fusedlstm import _C

for tool in ("build", "auditwheel"):
    pytest.importorskip(tool, reason=f"{tool} is part of the test extra")

ROOT = Path(__file__).parent.parent
# A caller's own make must not hand its variables down, and the CUDA sources have a check of their own.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | {"FUSEDLSTM_CUDA": "0"}


def test_wheel(tmp_path):
    """One test, since several processes would each compile for their own."""
    dist = tmp_path / "dist"
    # The virtual environment counts as made, so that make does not make another.
    variables = ["VENV=", f"PYTHON={sys.executable}", f"DIST={dist}", "--old-file=build/installed-wheel"]
    _run(["make", "wheel", *variables], cwd=ROOT, env=ENVIRONMENT)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    assert len(list(dist.iterdir())) == 2
    _check_sdist(sdist)
    _check_wheel(wheel)
    _check_installed(wheel, tmp_path)


def _run(command, **options):
    run = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def _check_sdist(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".so")]


def _check_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (extension,) = (name for name in names if ".so" in name)  # a second one would be a copied library
        binary = archive.read(extension)
    assert extension.startswith("fusedlstm/_C.")
    assert {"fusedlstm/py.typed", "fusedlstm/_C.pyi"} <= set(names)
    assert {name.split("/")[0] for name in names} == {"fusedlstm", f"fusedlstm-{fusedlstm.__version__}.dist-info"}
    for folder in (ROOT, Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in binary

    glibc = _glibc(wheel.name)
    assert glibc is not None, f"{wheel.name} is for this Linux only"
    torch_glibc = _glibc(distribution("torch").read_text("WHEEL") or "")
    if torch_glibc and int(_C.build_info()["compiler"].split(".")[0]) < 13:  # later ones need their own libstdc++
        assert glibc <= torch_glibc, f"{wheel.name} needs a later Linux than torch {torch.__version__}"


def _glibc(tags):
    found = re.search(r"manylinux_(\d+)_(\d+)", tags)
    return found and (int(found[1]), int(found[2]))


def _check_installed(wheel, folder):
    python, site = [sys.executable, "-m"], folder / "site"
    _run([*python, "pip", "install", "--no-deps", "--no-index", "--target", site, wheel])
    # The tests are copied, since in the source tree they would import the package there.
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    inside = {"cwd": folder, "env": ENVIRONMENT | {"PYTHONPATH": str(site)}}
    where = _run([sys.executable, "-c", "import fusedlstm; print(fusedlstm.__path__[0])"], **inside)
    assert where.startswith(str(site))
    assert "CPU kernels          usable" in _run([*python, "fusedlstm", "info"], **inside)
    tests = ["tests/test_import.py", "tests/test_ops.py", "-k", "import or (cpu and not opcheck)"]
    summary = _run([*python, "pytest", "-q", "-p", "no:cacheprovider", *tests], **inside)
    assert re.search(r"\d{2} passed", summary), summary
