"""A small text, and checkpoints of short runs over it."""

import pytest
import torch
from small import SMALL, TEXT

from fusedlstm.lm import TrainConfig, Trainer


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small are slower with threads, the more so beside other test processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def saved(tmp_path, text):
    """A checkpoint of a short run."""
    trainer = Trainer(TrainConfig(data=(text,), **SMALL))
    trainer.run(3)
    trainer.save(tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


@pytest.fixture
def saved_words(tmp_path, text):
    trainer = Trainer(TrainConfig(data=(text,), vocabulary="words", **{**SMALL, "batch_size": 4}))
    trainer.run(1)
    trainer.save(tmp_path / "words.safetensors")
    return tmp_path / "words.safetensors"
