"""The GPU of an agenda, what its records call the sources, and the build, without a GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from agenda import build
from agenda.machine import commit_of, this_machine

from benchmarks import environment

ROOT = Path(__file__).parent.parent


def test_the_name_of_sources_stands_for_them_alone():
    assert commit_of("abc", "0123456789abcdef") == "abc"
    assert commit_of("abc-dirty", "0123456789abcdef") == "abc-dirty-01234567"
    assert commit_of("unknown", "0123456789abcdef") == "sources-0123456789ab"


@pytest.mark.parametrize("path", ["benchmarks/environment.py", "benchmarks/records.py", "tests/agenda/__main__.py"])
def test_a_machine_can_be_named_before_the_package_is_built(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "fusedlstm", None)  # importing it fails
    for name in [name for name in sys.modules if name.partition(".")[0] in ("agenda", "benchmarks")]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location("alone", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alone", module)
    spec.loader.exec_module(module)


@pytest.fixture
def h100(monkeypatch):
    """torch says that there is one."""
    cached = (environment.device_name, environment.commit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_a_machine_and_its_build(h100, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_COMMIT", "unknown")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    found = this_machine("0123456789abcdef")
    assert (found.gpu, found.folder) == ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3")
    assert found.commit == "sources-0123456789ab"
    assert build._archs() == "9.0a"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert build._archs() == "8.6"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert build._archs() == "8.0"


def test_a_build_is_made_once(tmp_path, monkeypatch):
    """By a stand-in for pip; what it builds is current until the library or a source changes."""
    monkeypatch.setattr(build, "_STAMP", tmp_path / "build/stamp.json")
    monkeypatch.setattr(build, "_LIBRARY", tmp_path / "_C.so")
    monkeypatch.setattr(build, "_archs", lambda: "9.0a")
    calls = []

    def run(command, **options):
        calls.append((command[1:4], options["env"]["TORCH_CUDA_ARCH_LIST"], options["env"]["FUSEDLSTM_CUDA"]))
        (tmp_path / "_C.so").write_text("a library")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert not build.is_current()
    assert build.build() == 0
    assert calls[0] == (["-m", "pip", "install"], "9.0a", "1")
    assert build.is_current()
    assert build.build() == 0
    assert len(calls) == 2, "pip, and one import of what it built"
    (tmp_path / "_C.so").write_text("another library")
    assert not build.is_current()
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: subprocess.CompletedProcess([], 1))
    assert build.build() == 1
    assert not build.is_current()
