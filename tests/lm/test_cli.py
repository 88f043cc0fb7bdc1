"""The command line: its commands, its error messages, Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from small import SMALL_FLAGS, TEXT

from fusedlstm.lm import TrainConfig, Trainer, checkpoint
from fusedlstm.lm.cli import main
from fusedlstm.lm.console import Interrupt

ROOT = Path(__file__).parents[2]


def _run(arguments, capsys):
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    return status, capsys.readouterr()


def test_train_generate_info(tmp_path, text, capsys):
    out = str(tmp_path / "model.safetensors")
    status, printed = _run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--eval-every", "5"], capsys)
    assert status == 0
    assert [line.split("  held-out")[0] for line in printed.out.splitlines()[:3]] == [
        "step 5/14",
        "step 10/14",
        "step 14/14",
    ]
    assert "step 14/14  loss" in printed.err
    status, printed = _run(["generate", out, "--prompt", "to be", "--length", "20", "--top-k", "3"], capsys)
    assert status == 0
    assert printed.out.startswith("to be")
    assert _run(["train", "--out", out, "--resume"], capsys)[1].out.startswith(f"{out} is complete at step 14")
    assert _run(["train", "--out", out, "--resume", "--steps", "16"], capsys)[0] == 0
    assert checkpoint.load(out).step == 16
    assert _run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--steps", "2", "--force"], capsys)[0] == 0
    assert checkpoint.load(out).step == 2
    assert _run(["info"], capsys)[1].out.startswith("fusedlstm")


def test_minutes_end_the_run_early(tmp_path, text, capsys):
    out = str(tmp_path / "model.safetensors")
    status, printed = _run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--minutes", "1e-9"], capsys)
    assert status == 0
    assert "time is up" in printed.out
    assert checkpoint.load(out).step == 1


ERRORS = {
    "no command": ([], "COMMAND"),
    "not a number": (["train", "--steps", "many"], "--steps: invalid int value: 'many'"),
    "negative size": (["train", "--hidden-size", "-3"], "--hidden-size must be at least 1, got -3"),
    "zero layers": (["train", "--num-layers", "0"], "--num-layers must be at least 1, got 0"),
    "dropout": (["train", "--dropout", "1"], "--dropout must be at least 0 and below 1, got 1.0"),
    "rate": (["train", "--learning-rate", "nan"], "--learning-rate must be a finite number above 0, got nan"),
    "held-out": (["train", "--held-out", "1.5"], "--held-out must be a fraction between 0 and 1, got 1.5"),
    "minutes": (["train", "--minutes", "0"], "--minutes must be above 0"),
    "eval-every": (["train", "--eval-every", "0"], "--eval-every must be at least 1, got 0"),
    "device": (["train", "--device", "gpu"], "--device must be the CPU or one that torch sees, got gpu; try cpu"),
    "cell": (["train", "--cell", "gru"], "--cell must be one of lstm, torch, rnn, got gru"),
    "vocabulary": (["train", "--vocabulary", "chars"], "--vocabulary must be bytes or words, got chars"),
    "max-words": (["train", "--max-words", "9"], "--max-words must be left out with a vocabulary of bytes"),
    "no such text": (["train", "--data", "absent.txt"], "--data must be readable files, cannot read absent.txt"),
    "text is a folder": (["train", "--data", "."], "--data must be readable files, cannot read ."),
    "empty text": (["train", "--data", "empty.txt"], "--data must hold text, got an empty file: empty.txt"),
    "short text": (["train", "--data", "short.txt"], "--data must hold at least 2,049 training tokens"),
    "tiny text": (["train", "--data", "tiny.txt"], "--data must leave at least 2 tokens to the held-out part, got 1"),
    "out exists": (["train", "--out", "saved.safetensors"], "--out must not exist yet, got saved.safetensors"),
    "out nowhere": (["train", "--out", "absent/model"], "--out must be a file in a folder that exists"),
    "out is a folder": (["train", "--out", "."], "--out must be a file in a folder that exists"),
    "nothing to resume": (["train", "--out", "absent", "--resume"], "--resume must find a checkpoint in --out"),
    "resume and force": (["train", "--resume", "--force"], "--force: not allowed with argument --resume"),
    "resume foreign": (["train", "--out", "foreign.safetensors", "--resume"], "safetensors file of something else"),
    "resume garbage": (["train", "--out", "short.txt", "--resume"], "damaged or foreign file: short.txt"),
    "resume other size": (
        ["train", "--out", "saved.safetensors", "--resume", "--hidden-size", "32"],
        "--hidden-size must be 12 as in the checkpoint saved.safetensors, got 32",
    ),
    "resume other vocabulary": (
        ["train", "--out", "saved.safetensors", "--resume", "--vocabulary", "words"],
        "--vocabulary must be bytes as in the checkpoint saved.safetensors, got words",
    ),
    "resume other text": (
        ["train", "--out", "saved.safetensors", "--resume", "--data", "other.txt"],
        "--data must be the text that saved.safetensors was trained on",
    ),
    "generate from nothing": (["generate", "absent"], "cannot read absent"),
    "generate from text": (["generate", "short.txt"], "damaged or foreign file: short.txt"),
    "generate from foreign": (["generate", "foreign.safetensors"], "safetensors file of something else"),
    "length": (["generate", "saved.safetensors", "--length", "-1"], "--length must be at least 0, got -1"),
    "temperature": (["generate", "saved.safetensors", "--temperature", "0"], "--temperature must be a finite number"),
    "top-k": (["generate", "saved.safetensors", "--top-k", "0"], "--top-k must be at least 1, got 0"),
    "seed": (["generate", "saved.safetensors", "--seed", "-1"], "--seed must be at least 0"),
    "unknown word": (["generate", "words.safetensors", "--prompt", "to hurry"], "got 'hurry'; write <unk> for it"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_nothing_is_overwritten(case, tmp_path, saved, saved_words, text, monkeypatch, capsys):
    arguments, message = ERRORS[case]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text(TEXT[:300])
    (tmp_path / "tiny.txt").write_text("tiny text")
    (tmp_path / "other.txt").write_text(TEXT + TEXT)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    status, printed = _run(arguments, capsys)
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("fusedlstm: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_is_one_write_so_that_texts_of_processes_do_not_mix(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append))
    assert main(["generate", "missing.safetensors"]) == 2
    assert len(written) == 1
    assert written[0].endswith("\n")


def _start(arguments, **options):
    # One thread, so that the run is the same as one in this process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_ctrl_c_saves_and_resume_finishes_the_same_run(tmp_path, text, capsys):
    out = tmp_path / "model.safetensors"
    flags = ["train", "--data", text, "--out", str(out), *SMALL_FLAGS, "--dropout", "0.2", "--steps", "1000000"]
    process = _start(["-m", "fusedlstm", *flags])
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


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_ctrl_c_stops_at_once(first):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(first)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ctrl_c_before_the_first_step(tmp_path, text, monkeypatch, capsys):
    out = tmp_path / "model.safetensors"
    build = TrainConfig.build_model
    monkeypatch.setattr(TrainConfig, "build_model", lambda *args: (signal.raise_signal(signal.SIGINT), build(*args))[1])
    status, printed = _run(["train", "--data", text, "--out", str(out), *SMALL_FLAGS], capsys)
    assert status == 130
    assert "interrupted before the first step" in printed.err
    assert not out.exists()


def _run_without(package, *arguments):
    code = f"import sys; sys.modules['{package}'] = None; from fusedlstm.lm.cli import main; sys.exit(main())"
    process = _start(["-c", code, *arguments])
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize("package", ["safetensors", "tqdm"])
@pytest.mark.parametrize("arguments", [["train"], ["generate", "model.safetensors"]], ids=lambda each: each[0])
def test_missing_package_is_named_with_its_remedy(package, arguments):
    message = f"fusedlstm.lm needs the package {package}; install it with: pip install fusedlstm[lm]"
    assert _run_without(package, *arguments) == (2, "", f"fusedlstm: error: {message}\n")


@pytest.mark.parametrize(("arguments", "start"), [(["info"], "fusedlstm"), (["train", "--help"], "usage: python -m")])
def test_info_and_help_need_no_other_package(arguments, start):
    status, output, errors = _run_without("safetensors", *arguments)
    assert (status, errors) == (0, "")
    assert output.startswith(start)
