"""One run in two processes, by torchrun: its losses equal those of one process, its checkpoints load in any number."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import SMALL, SMALL_FLAGS

from fusedlstm.lm import TrainConfig, Trainer, checkpoint
from fusedlstm.lm.cli import main

ROOT = Path(__file__).parents[2]


def _torchrun(*flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "-m", "fusedlstm", "train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def _until_saved(process, step):
    while f"step {step}/" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()


def test_two_processes_have_the_losses_of_one_and_one_goes_on(tmp_path, text, capsys):
    out = tmp_path / "two.safetensors"
    alone = Trainer(TrainConfig(data=(text,), **{**SMALL, "num_layers": 2, "steps": 9}))
    alone.run()
    expected = alone.evaluate().nats_per_token
    process = _torchrun("--data", text, "--out", str(out), *SMALL_FLAGS, "--num-layers", "2", "--steps", "9")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("2 processes") == output.count("held-out") == 1  # process 0 prints
    together = checkpoint.load(out)
    torch.testing.assert_close(together.tensors["losses"].float(), torch.tensor(alone.losses))
    assert f"held-out {expected:.3f}" in output

    alone.save(tmp_path / "one.safetensors")
    for path in (out, tmp_path / "one.safetensors"):
        assert main(["train", "--out", str(path), "--resume", "--steps", "14"]) == 0
    resumed, expected = (checkpoint.load(path).tensors for path in (out, tmp_path / "one.safetensors"))
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name].float(), tensor.float())  # the losses are float32 in float64
    process = _torchrun("--out", str(out), "--resume", "--steps", "16")
    assert process.communicate(timeout=120)[0].startswith("step 16/16")
    assert checkpoint.load(out).step == 16


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_job_with_a_whole_checkpoint(lost, tmp_path, text):
    out = tmp_path / "model.safetensors"
    process = _torchrun("--data", text, "--out", str(out), *SMALL_FLAGS, "--steps", "1000000", "--eval-every", "20")
    try:
        _until_saved(process, 20)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[lost]), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    step = checkpoint.load(out).step
    assert step % 20 == 0
    assert "lost another of the 2 processes, which ended or cannot be reached" in errors
    assert f"last checkpoint: {out}, step {step}; go on with: python -m fusedlstm train --out {out} --resume" in errors
    assert Trainer.resume(out).run(step + 1)


def test_ctrl_c_saves_what_both_have_done(tmp_path, text):
    out = tmp_path / "model.safetensors"
    process = _torchrun("--data", text, "--out", str(out), *SMALL_FLAGS, "--steps", "1000000", "--eval-every", "20")
    try:
        _until_saved(process, 20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert f"interrupted; saved step {checkpoint.load(out).step} of 1000000 to {out}" in errors


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, text):
    process = _torchrun("--data", text, "--out", str(tmp_path / "model"), *SMALL_FLAGS, "--batch-size", "3")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "fusedlstm: error: --batch-size must be a multiple of the 2 processes, got 3; change one of them" in errors
