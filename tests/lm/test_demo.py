"""The demo: its files, its comparison, its interruption."""

import signal

import pytest
import torch
from small import assert_same_bits

from benchmarks import language_model as demo
from fusedlstm.lm import (
    Trainer,
    checkpoint,
)


@pytest.fixture
def demo_flags(tmp_path, text):
    flags = ["--embed-size", "8", "--hidden-size", "12", "--window", "8", "--batch-size", "16", "--steps", "45"]
    return ["--data", text, "--out", str(tmp_path / "demo"), *flags]


def test_demo_writes_its_files_and_starts_over_when_complete(tmp_path, demo_flags, capsys):
    assert demo.main(demo_flags) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "loss.png",
        "lstm.safetensors",
        "torch.safetensors",
    ]
    assert printed.count("held-out") == 2
    assert "x as fast as nn.LSTM" in printed
    assert demo.main(demo_flags) == 0
    assert "is complete: starting over" in capsys.readouterr().out


def test_demo_stops_on_ctrl_c_and_goes_on(tmp_path, demo_flags, monkeypatch, capsys):
    train_step = Trainer.train_step

    def step_and_interrupt(self):
        loss = train_step(self)
        if self.step == 27:
            signal.raise_signal(signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_interrupt)
        assert demo.main(demo_flags) == 130
    assert "run the same command again to go on" in capsys.readouterr().out
    steps = {cell: checkpoint.load(tmp_path / "demo" / f"{cell}.safetensors").step for cell in demo.CELLS}
    assert steps == {"lstm": 27, "torch": 20}
    with pytest.raises(ValueError, match="options must be those of the unfinished run"):
        demo.main([*demo_flags, "--seed", "5"])
    assert demo.main(demo_flags) == 0
    assert "going on from step 27" in capsys.readouterr().out
    resumed = {cell: checkpoint.load(tmp_path / "demo" / f"{cell}.safetensors").tensors for cell in demo.CELLS}
    assert demo.main([*demo_flags, "--fresh"]) == 0
    for cell, tensors in resumed.items():
        assert_same_bits(checkpoint.load(tmp_path / "demo" / f"{cell}.safetensors").tensors, tensors)


def test_demo_reports_models_that_differ(demo_flags, monkeypatch, capsys):
    train_step = Trainer.train_step

    def spoil(self):
        if self.config.cell == "lstm" and self.step == 10:
            with torch.no_grad():
                self.model.recurrent.bias_hh_l0.mul_(1.05)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", spoil)
    assert demo.main(demo_flags) == 1
    assert "differ by more than rounding" in capsys.readouterr().out
