"""A text and a model small enough for tests that train, how two runs are compared, and how a command is run."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from fusedlstm.lm import checkpoint
from fusedlstm.lm.cli import main

ROOT = Path(__file__).parents[2]

LINES = ["to be or not to be", "that is the question", "whether it is nobler in the mind", "to suffer the slings"]
TEXT = "".join(f"{line}\n" for line in LINES * 12)
SMALL = {"embed_size": 8, "hidden_size": 12, "window": 8, "batch_size": 16, "steps": 14}
SMALL_FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def saved_tensors(trainer, path):
    trainer.save(path)
    return checkpoint.load(path).tensors


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def run(arguments, capsys):
    """The status of a command in this process, and what it printed."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    return status, capsys.readouterr()


def start(arguments, **environment):
    """A Python of its own, with variables of its environment."""
    # One thread, so that the run is the same as one in this process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
