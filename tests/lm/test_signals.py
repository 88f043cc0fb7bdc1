"""What ends a command from outside: Ctrl-C and other signals, a reader of the output that exits, a full disk."""

import os
import signal
import sys
from contextlib import contextmanager, redirect_stdout

import pytest
import torch
from small import ROOT, SMALL_FLAGS, run, start

from fusedlstm import startup
from fusedlstm.lm import Trainer, checkpoint, generate, train
from fusedlstm.lm.cli import main
from fusedlstm.lm.console import Interrupt


def test_ctrl_c_saves_and_resume_finishes_the_same_run(tmp_path, text, capsys):
    out = tmp_path / "model.safetensors"
    flags = ["train", "--data", text, "--out", str(out), *SMALL_FLAGS, "--dropout", "0.2", "--steps", "1000000"]
    process = start(["-m", "fusedlstm", *flags])
    try:
        while "step 1/" not in (line := process.stderr.readline()):
            assert line, "the run ended before its first step"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output == ""
    step = checkpoint.load(out).step
    assert 0 < step < 1_000_000
    assert f"interrupted; saved step {step} of 1000000 to {out}, go on with: python -m fusedlstm train" in errors

    interrupted = Trainer.resume(out)
    interrupted.run(step + 3)
    whole = Trainer(interrupted.config)
    whole.run(step + 3)
    assert interrupted.losses == whole.losses


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_second_ctrl_c_stops_at_once(first):
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(first)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("every", [2, 100])
def test_second_ctrl_c_says_where_the_last_checkpoint_is(every, tmp_path, text, monkeypatch, capsys):
    out, train_step = tmp_path / "model", Trainer.train_step

    def interrupted(trainer):
        if trainer.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    flags = ["train", "--data", text, "--out", str(out), *SMALL_FLAGS, "--eval-every", str(every)]
    status, printed = run(flags, capsys)
    assert status == 130
    last = f"{out}, step 2; go on with: python -m fusedlstm train --out {out} --resume" if every == 2 else "none yet"
    assert printed.err.splitlines()[-1] == f"interrupted at once; last checkpoint: {last}"
    assert sorted(path.name for path in tmp_path.iterdir()) == (["model", "text.txt"] if every == 2 else ["text.txt"])


def test_ctrl_c_while_text_is_generated_keeps_what_was_printed(saved, monkeypatch, capsys):
    draw, drawn = generate._draw, []

    def interrupted(*arguments):
        if len(drawn) == 5:
            signal.raise_signal(signal.SIGINT)
        drawn.append(draw(*arguments))
        return torch.tensor([ord("x")])

    monkeypatch.setattr(generate, "_draw", interrupted)
    status, printed = run(["generate", str(saved), "--prompt", "to be"], capsys)
    assert (status, printed.out, printed.err) == (130, "to bexxxxx\n", "interrupted\n")


def test_ctrl_c_before_the_first_step(tmp_path, text, monkeypatch, capsys):
    out = tmp_path / "model.safetensors"
    load = train.load_corpus
    monkeypatch.setattr(train, "load_corpus", lambda *args: (signal.raise_signal(signal.SIGINT), load(*args))[1])
    status, printed = run(["train", "--data", text, "--out", str(out), *SMALL_FLAGS], capsys)
    assert status == 130
    assert "interrupted before the first step" in printed.err
    assert not out.exists()


def test_ctrl_c_while_torch_is_imported(tmp_path):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = start(["-u", "-m", "fusedlstm", "info"], PYTHONPATH=f"{tmp_path}:{ROOT}")
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (130, "", "")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m fusedlstm info", True),
        ("python -u -W error -mfusedlstm generate -m", True),
        ("python -m another -m fusedlstm", False),
        ("python -m another fusedlstm", False),
        ("python script.py -m fusedlstm", False),
    ],
)
def test_only_the_command_itself_changes_what_ctrl_c_does(command, expected, monkeypatch):
    original = command.split()
    begin = next((index for index, word in enumerate(original) if word.startswith("-m")), 1)
    attached = original[begin] != "-m"
    rest = original[begin + (1 if attached else 2) :] if "script.py" not in original else []
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", ["-m", *rest] if "script.py" not in original else original[1:])
    assert startup.is_command() == expected


def test_a_library_leaves_ctrl_c_alone():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    startup.exit_on_ctrl_c()
    try:
        assert signal.getsignal(signal.SIGINT) is startup._exit
        with startup.keyboard_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is startup._exit
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what runs in the background
        startup.exit_on_ctrl_c()
        with startup.keyboard_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _stdout(kind):
    """Standard output on a full disk or without a reader, block-buffered. Closing it flushes, as Python at exit."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    if kind == "gone":
        os.close(descriptor)
        reader, descriptor = os.pipe()
        os.close(reader)
    with os.fdopen(descriptor, "w") as stream, redirect_stdout(stream):
        yield


FULL = "fusedlstm: error: output must be writable, got the error: No space left on device\n"


@pytest.mark.parametrize(("kind", "expected"), [("full", (2, FULL)), ("gone", (1, ""))])
@pytest.mark.parametrize("command", ["generate", "info", "--help"])
def test_output_that_cannot_be_written(command, kind, expected, saved, capsys):
    with _stdout(kind):
        status = main([command, str(saved)] if command == "generate" else [command])
    assert (status, capsys.readouterr().err) == expected


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_training_whose_output_cannot_be_written_saves_and_ends(kind, tmp_path, text, capsys):
    out = tmp_path / "model"
    with _stdout(kind):
        status = main(["train", "--data", text, "--out", str(out), *SMALL_FLAGS, "--eval-every", "2"])
    assert status == 1
    assert checkpoint.load(out).step == 3
    assert f"the output cannot be written; saved step 3 of 14 to {out}, go on with" in capsys.readouterr().err
