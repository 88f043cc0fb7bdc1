"""The build switch FUSEDLSTM_CUDA, and what `info` reports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusedlstm import _C, info

ROOT = Path(__file__).parent.parent


def _configure(**environment):
    """Runs setup.py up to the choice of kernels; `--version` builds nothing."""
    command = [sys.executable, ROOT / "setup.py", "--version"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_an_unknown_choice_is_refused():
    run = _configure(FUSEDLSTM_CUDA="yes")
    assert run.returncode != 0
    assert run.stderr.strip() == "FUSEDLSTM_CUDA must be auto, 0 or 1, got 'yes'"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_without_a_cuda_torch_names_what_is_missing():
    run = _configure(FUSEDLSTM_CUDA="1")
    assert run.returncode != 0
    assert run.stderr.startswith("FUSEDLSTM_CUDA=1 asks for the CUDA kernels, but torch")
    assert "install a CUDA build of torch first" in run.stderr


@pytest.mark.parametrize("choice", ["auto", "0"])
def test_other_choices_configure(choice):
    run = _configure(FUSEDLSTM_CUDA=choice)
    assert run.returncode == 0, run.stderr


def test_build_info_names_no_folder_of_the_builder():
    assert _C.build_info().keys() == {"compiler", "torch", "cuda", "cuda_archs"}
    assert str(ROOT / "csrc").encode() not in Path(_C.__file__).read_bytes()


def test_info():
    text = info.report()
    for name in ("fusedlstm", "torch", "built with compiler", "CPU kernels", "CUDA kernels"):
        assert f"\n{name}" in f"\n{text}"
    assert _C.instruction_set() in text
    run = subprocess.run([sys.executable, "-m", "fusedlstm", "info"], capture_output=True, text=True, check=True)
    assert run.stdout == text + "\n"


def test_a_reader_that_exits_early_is_no_error():
    command = f"{sys.executable} -m fusedlstm info | true"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_importing_does_not_start_cuda():
    """A process that has initialised CUDA cannot use it in a fork, and a data loader forks its workers."""
    script = (
        "import os, torch, fusedlstm\n"
        "assert not torch.cuda.is_initialized()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    device = 'cuda' if fusedlstm._C.build_info()['cuda'] and torch.cuda.is_available() else 'cpu'\n"
        "    y, _ = fusedlstm.LSTM(3, 4, device=device)(torch.randn(5, 2, 3, device=device))\n"
        "    os._exit(0 if y.isfinite().all() else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
