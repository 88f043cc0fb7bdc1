"""The command line: its commands, its error messages, Ctrl-C."""

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from small import SMALL_FLAGS, TEXT, run, start

from fusedlstm.lm import InputError, TrainConfig, checkpoint, data, files, memory, train
from fusedlstm.lm.cli import main


def test_train_generate_info(tmp_path, text, capsys):
    out = str(tmp_path / "model.safetensors")
    status, printed = run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--eval-every", "5"], capsys)
    assert status == 0
    assert [line.split("  held-out")[0] for line in printed.out.splitlines()[:3]] == [
        "step 5/14",
        "step 10/14",
        "step 14/14",
    ]
    assert "step 14/14  loss" in printed.err
    status, printed = run(["generate", out, "--prompt", "to be", "--length", "20", "--top-k", "3"], capsys)
    assert status == 0
    assert printed.out.startswith("to be")
    assert run(["train", "--out", out, "--resume"], capsys)[1].out.startswith(f"{out} is complete at step 14")
    assert run(["train", "--out", out, "--resume", "--steps", "16"], capsys)[0] == 0
    assert checkpoint.load(out).step == 16
    assert run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--steps", "2", "--force"], capsys)[0] == 0
    assert checkpoint.load(out).step == 2
    assert run(["info"], capsys)[1].out.startswith("fusedlstm")


def test_minutes_end_the_run_early(tmp_path, text, capsys):
    out = str(tmp_path / "model.safetensors")
    status, printed = run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--minutes", "1e-9"], capsys)
    assert status == 0
    assert "time is up" in printed.out
    assert checkpoint.load(out).step == 1


ERRORS = {
    "no command": ([], "COMMAND"),
    "not a number": (["train", "--steps", "many"], "--steps: invalid int value: 'many'"),
    "negative size": (["train", "--hidden-size", "-3"], "--hidden-size must be at least 1 and below 2**31, got -3"),
    "zero layers": (["train", "--num-layers", "0"], "--num-layers must be at least 1 and below 2**31, got 0"),
    "dropout": (["train", "--dropout", "1"], "--dropout must be at least 0 and below 1, got 1.0"),
    "rate": (["train", "--learning-rate", "nan"], "--learning-rate must be a finite number above 0, got nan"),
    "held-out": (["train", "--held-out", "1.5"], "--held-out must be a fraction between 0 and 1, got 1.5"),
    "minutes": (["train", "--minutes", "0"], "--minutes must be a finite number above 0, got 0.0"),
    "eval-every": (["train", "--eval-every", "0"], "--eval-every must be at least 1, got 0"),
    "endless minutes": (["train", "--minutes", "1e400"], "--minutes must be a finite number above 0, got inf"),
    "a billion wide": (["train", "--hidden-size", "1000000000"], "sizes must let the run fit into"),
    "a million wide": (["train", "--hidden-size", "1000000"], "got a model and batch that need at least 64,"),
    "a billion layers": (["train", "--num-layers", "1000000000"], "sizes must let the run fit into"),
    "beyond int64": (
        ["train", "--hidden-size", "9" * 20],
        f"--hidden-size must be at least 1 and below 2**31, got {'9' * 20}",
    ),
    "beyond int": (["train", "--hidden-size", "9" * 5000], "argument --hidden-size: invalid int value: '999"),
    **{
        f"device {name}": (["train", "--device", name], f"--device must be the CPU or one that torch sees, got {name};")
        for name in ("mps", "xla", "hpu", "mtia", "mkldnn", "privateuseone", "meta", "cuda:99", "")
    },
    "terminal codes": (["train", "--cell", "\x1b[2J\n\udcff"], "one of lstm, torch, rnn, got \\x1b[2J \\udcff"),
    "device": (["train", "--device", "gpu"], "--device must be the CPU or one that torch sees, got gpu; try cpu"),
    "cell": (["train", "--cell", "gru"], "--cell must be one of lstm, torch, rnn, got gru"),
    "vocabulary": (["train", "--vocabulary", "chars"], "--vocabulary must be bytes or words, got chars"),
    "max-words": (["train", "--max-words", "9"], "--max-words must be left out with a vocabulary of bytes"),
    "no such text": (["train", "--data", "absent.txt"], "--data must be readable files, cannot read absent.txt"),
    "text is a folder": (["train", "--data", "."], "--data must be readable files, cannot read ."),
    "text without a name": (["train", "--data", ""], "--data must be readable files, cannot read an empty name"),
    "text is a device": (["train", "--data", "/dev/zero"], "cannot read /dev/zero: it is a device; check the path"),
    "text has a zero byte": (["train", "--data", "a\0b"], "cannot read a\\x00b: its name holds a zero byte"),
    "huge text": (["train", "--data", "huge.txt"], "bytes on this machine, got more: huge.txt; give less text"),
    "empty text": (["train", "--data", "empty.txt"], "--data must hold text, got an empty file: empty.txt"),
    "short text": (["train", "--data", "short.txt"], "--data must hold at least 2,049 training tokens"),
    "tiny text": (["train", "--data", "tiny.txt"], "--data must leave at least 2 tokens to the held-out part, got 1"),
    "out exists": (["train", "--out", "saved.safetensors"], "--out must not exist yet, got saved.safetensors"),
    "out nowhere": (["train", "--out", "absent/model"], "--out must be a file in a folder that exists"),
    "out is a folder": (["train", "--out", "."], "--out must be a file in a folder that exists"),
    "out without a name": (["train", "--out", "", "--force"], "got an empty name: the name of a file is missing"),
    "out is a device": (["train", "--out", "/dev/null", "--force"], "got /dev/null: it is a device; choose another"),
    "out is a link": (
        ["train", "--out", "dangling", "--force"],
        "got dangling: it is a link to no file; choose another",
    ),
    "out in /proc": (["train", "--out", "/proc/model"], "got /proc/model: cannot lock it by /proc/model.lock"),
    "out has a long name": (["train", "--out", "m" * 252], ".lock: File name too long; choose another"),
    "out is the text": (
        ["train", "--out", "short.txt", "--data", "short.txt", "--force"],
        "--out must be another file than --data, got short.txt for both",
    ),
    "out is in use": (
        ["train", "--out", "busy"],
        f"--out must be free, got busy, which another run writes: process {os.getpid()} on",
    ),
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
    "endless temperature": (
        ["generate", "saved.safetensors", "--temperature", "inf"],
        "--temperature must be a finite",
    ),
    "half a character": (
        ["generate", "saved.safetensors", "--prompt", "\ud800"],
        "--prompt must be text, got half of a",
    ),
    "generate without a name": (["generate", ""], "cannot read an empty name"),
    "generate from a device": (["generate", "/dev/zero"], "cannot read /dev/zero: it is a device"),
    "top-k": (["generate", "saved.safetensors", "--top-k", "0"], "--top-k must be at least 1, got 0"),
    "seed": (["generate", "saved.safetensors", "--seed", "-1"], "--seed must be at least 0"),
    "unknown word": (["generate", "words.safetensors", "--prompt", "to hurry"], "got 'hurry'; write <unk> for it"),
}


def _contents(folder):
    regular = (path for path in folder.iterdir() if path.exists())
    return {path: path.read_bytes() if path.stat().st_size < 2**20 else "huge" for path in regular}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_nothing_is_overwritten(case, tmp_path, saved, saved_words, text, monkeypatch, capsys):
    arguments, message = ERRORS[case]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text(TEXT[:300])
    (tmp_path / "tiny.txt").write_text("tiny text")
    (tmp_path / "other.txt").write_text(TEXT + TEXT)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 2**31)
    (tmp_path / "dangling").symlink_to("absent")
    before = _contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "host", lambda: 2**32)
    with files.lock("busy"):
        status, printed = run(arguments, capsys)
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("fusedlstm: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert _contents(tmp_path) == before


def test_an_error_is_one_write_so_that_texts_of_processes_do_not_mix(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: None))
    assert main(["generate", "missing.safetensors"]) == 2
    assert len(written) == 1
    assert written[0].endswith("\n")


def _run_without(package, *arguments):
    code = f"import sys; sys.modules['{package}'] = None; from fusedlstm.lm.cli import main; sys.exit(main())"
    process = start(["-c", code, *arguments])
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


def test_a_setting_of_the_environment_that_is_wrong(tmp_path, text):
    """`info` still shows the rest."""
    flags = ["train", "--data", text, "--out", str(tmp_path / "model"), *SMALL_FLAGS]
    code = f"from fusedlstm.lm.cli import main; main(['info']); raise SystemExit(main({flags}))"
    process = start(["-c", code], FUSEDLSTM_ISA="bogus")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    lines = output.splitlines()
    assert lines[0].startswith("fusedlstm")
    assert "not usable: FUSEDLSTM_ISA must be one this processor has" in lines[-2]
    assert lines[-1].startswith("CUDA kernels")
    assert errors.splitlines()[1].startswith("fusedlstm: error: FUSEDLSTM_ISA must be one this processor has")
    assert len(errors.splitlines()) == 2


def _fail(error):
    def fail(*arguments):
        raise error

    return fail


@pytest.mark.parametrize(
    "allocate",
    [
        lambda *_: torch.empty(2**60),
        lambda *_: torch.empty(2**62),
        _fail(MemoryError()),
        _fail(torch.OutOfMemoryError("no")),
    ],
    ids=["CPU", "more than int64 counts", "Python", "GPU"],
)
def test_memory_that_is_not_there(allocate, tmp_path, text, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_corpus", allocate)
    status, printed = run(["train", "--data", text, "--out", str(tmp_path / "model"), *SMALL_FLAGS], capsys)
    assert status == 2
    assert printed.err.startswith("fusedlstm: error: memory must hold model and batch, got the error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, ZeroDivisionError])
def test_a_fault_of_the_program_has_a_traceback(kind, tmp_path, text, monkeypatch):
    monkeypatch.setattr(train, "load_corpus", _fail(kind("a fault")))
    with pytest.raises(kind, match="a fault"):
        main(["train", "--data", text, "--out", str(tmp_path / "model"), *SMALL_FLAGS])
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_the_first_says_why_and_all_end(first, tmp_path, monkeypatch, capsys):
    from fusedlstm.lm import parallel

    (tmp_path / "model").touch()
    monkeypatch.setattr(parallel, "rank", lambda: 0 if first else 1)
    monkeypatch.setattr(parallel, "any_process", lambda condition: True)
    status, printed = run(["train", "--out", str(tmp_path / "model")], capsys)
    assert status == 2
    assert ("--out must not exist yet" in printed.err) == first
    assert printed.err.count("\n") == int(first)


def test_names_that_no_stream_can_show(tmp_path, text):
    """Bytes that are no UTF-8, and a terminal's codes."""
    out = os.fsencode(tmp_path) + b"/\xff\x1b[2J"
    flags = ["train", "--data", text, "--out", out, *SMALL_FLAGS, "--steps", "1"]
    output, errors = start(["-m", "fusedlstm", *flags]).communicate(timeout=60)
    assert f"saved {tmp_path}/\\udcff\\x1b[2J; try it with" in output
    assert "Traceback" not in errors
    assert checkpoint.load(os.fsdecode(out)).step == 1


def test_an_endless_pipe_is_not_read_to_its_end(tmp_path, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.write(writer, b"a" * 5000)  # and it stays open
    monkeypatch.setattr(memory, "host", lambda: 4 * 1000)
    monkeypatch.setattr(data, "_READ_BYTES", 100)
    try:
        status, printed = run(["train", "--out", str(tmp_path / "model"), "--data", f"/dev/fd/{reader}"], capsys)
    finally:
        os.close(reader)
        os.close(writer)
    assert status == 2
    assert f"--data must be at most 1,000 bytes on this machine, got more: /dev/fd/{reader}" in printed.err


def test_memory_is_a_lower_bound_with_every_parameter():
    config = TrainConfig(embed_size=5, hidden_size=7, num_layers=4, window=3)
    parameters = [parameter.numel() for parameter in config.build_model(11).parameters()]
    activations = 3 * 2 * (2 * 11 + 4 * 7)
    assert memory._needed(config, 11, 2) == 4 * (4 * sum(parameters) + activations) + 1000 * len(parameters)
    with pytest.raises(InputError, match="sizes must let the run fit"):
        memory.require(replace(config, window=2**30), 256, 2**10, torch.device("cpu"))


def test_a_device_without_our_kernels_is_for_other_cells(monkeypatch):
    monkeypatch.setattr(train.torch, "zeros", lambda size, device: torch.empty(size))  # torch sees it
    monkeypatch.setattr(train, "gpu_is_usable", lambda: False)
    for name in ("cuda", "xpu"):
        with pytest.raises(InputError, match=f"device must be one that fusedlstm has kernels for, got {name}; try cpu"):
            train._usable(name, "lstm")
        assert train._usable(name, "torch").type == name
