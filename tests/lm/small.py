"""A text and a model small enough for tests that train, and how two runs are compared."""

import torch

from fusedlstm.lm import checkpoint

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
