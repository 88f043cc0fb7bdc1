"""Checkpoints that are damaged or made by hand are refused, with what is wrong in them."""

import json
import math
import os
import struct

import pytest
import safetensors.torch
import torch

from fusedlstm.lm import CheckpointError, Trainer, checkpoint, load_model, memory
from fusedlstm.lm.cli import main

STEP = "a step that is no whole number from 0 on"
POSITION = "a position that is no whole number from 0 on"
NESTED = "[" * 100_000 + "]" * 100_000

# What is wrong in metadata, as JSON text, and what the message says.
METADATA = {
    "step 1.5": ({"step": "1.5"}, f"{STEP}: 1.5"),
    "step NaN": ({"step": "NaN"}, f"{STEP}: nan"),
    "step -1": ({"step": "-1"}, f"{STEP}: -1"),
    "step true": ({"step": "true"}, f"{STEP}: True"),
    "step text": ({"step": '"3"'}, f"{STEP}: 3"),
    "step of another run": ({"step": "4"}, "losses F64 [3], which must be F64 [4]"),
    "no steps": ({"step": "0"}, "a tensor of something else, optimizer.0.exp_avg"),
    "endless step": ({"step": "9" * 5000}, "a damaged step"),
    "position -5": ({"position": "-5"}, f"{POSITION}: -5"),
    "position 0.5": ({"position": "0.5"}, f"{POSITION}: 0.5"),
    "position of a new epoch": ({"position": "0"}, "a tensor of something else, hidden.0"),
    "words 5": ({"words": "5"}, "words that are no list of texts: 5"),
    "words of numbers": ({"words": "[1, 2]"}, "words that are no list of texts: [1, 2]"),
    "words twice": ({"words": '["<unk>", "\\n", "a", "a"]'}, "words that repeat, or lack <unk>"),
    "words without unk": ({"words": '["\\n", "a"]'}, "words that repeat, or lack <unk>"),
    "words for bytes": ({"words": '["<unk>", "\\n"]'}, "words of another vocabulary than bytes"),
    "digest 5": ({"digest": "5"}, "a digest that is no text: 5"),
    "config 5": ({"config": "5"}, "a config that is no table of settings: 5"),
    "no JSON": ({"step": "{"}, "a damaged step"),
    **{f"nested {key}": ({key: NESTED}, f"a damaged {key}") for key in ("config", "words", "step", "digest")},
}
# A setting of the config, and what the message says.
SETTINGS = {
    "1e9 layers": ({"num_layers": 10**9}, "tensors for 1000000000 layers"),
    "another layer": ({"num_layers": 2}, "no tensor model.recurrent"),
    "wider": ({"hidden_size": 13}, "which must be F32 [52, 8]"),
    "a billion wide": ({"hidden_size": 10**9}, "sizes that no tensor can have"),
    "a million wide": ({"hidden_size": 10**6}, "which must be F32 [4000000, 8]"),
    "beyond int64": ({"embed_size": 10**19}, "embed_size must be at least 1 and below 2**31"),
    "width 1.5": ({"hidden_size": 1.5}, "hidden_size must be at least 1 and below 2**31, got 1.5"),
    "width true": ({"hidden_size": True}, "hidden_size must be at least 1 and below 2**31, got True"),
    "width text": ({"hidden_size": "12"}, "hidden_size must be at least 1"),
    "width nested": ({"hidden_size": json.loads("[" * 500 + "]" * 500)}, "a setting that is wrong"),
    "rate NaN": ({"learning_rate": math.nan}, "learning_rate must be a finite number above 0, got nan"),
    "rate of 400 digits": ({"learning_rate": 10**400}, "learning_rate must be a finite number above 0"),
    "dropout text": ({"dropout": "0"}, "dropout must be at least 0 and below 1, got 0"),
    "another batch": ({"batch_size": 10**9}, "which must be F32 [1, 1000000000, 12]"),
    "data a text": ({"data": "text"}, "data must be a tuple of file names"),
    "data of numbers": ({"data": [5]}, "data must be a tuple of file names"),
    "no data": ({"data": None}, "data must be a tuple of file names"),
    "cell a list": ({"cell": ["lstm"]}, "cell must be one of lstm, torch, rnn"),
    "cell rnn": ({"cell": "rnn"}, "a tensor of something else, hidden.1"),
    "surplus": ({"colour": "red"}, "a setting that this fusedlstm has not: colour"),
    "words without a list": ({"vocabulary": "words"}, "words of another vocabulary than words"),
}
WEIGHT = "model.output.weight"
# A tensor to put in place, None to leave it out, and what the message says.
TENSORS = {
    "NaN": (WEIGHT, torch.full((256, 12), math.nan), f"NaN or infinity in {WEIGHT}"),
    "infinity": (WEIGHT, torch.full((256, 12), -math.inf), f"NaN or infinity in {WEIGHT}"),
    "missing": (WEIGHT, None, f"no tensor {WEIGHT}"),
    "surplus": ("model.more", torch.zeros(2), "a tensor of something else, model.more"),
    "shape": (WEIGHT, torch.zeros(12, 256), f"{WEIGHT} F32 [12, 256], which must be F32 [256, 12]"),
    "dtype": (WEIGHT, torch.zeros(256, 12).half(), f"{WEIGHT} F16 [256, 12], which must be F32 [256, 12]"),
    "no moment": ("optimizer.0.exp_avg", None, "no tensor optimizer.0.exp_avg"),
    "moment's shape": ("optimizer.0.exp_avg", torch.zeros(3), "optimizer.0.exp_avg F32 [3], which must be"),
    "negative square": ("optimizer.0.exp_avg_sq", -torch.ones(256, 8), "negative squares in optimizer.0.exp_avg_sq"),
    "optimizer's step": ("optimizer.1.step", torch.tensor(-1.0), "optimizer.1.step -1 at step 3"),
    "NaN step": ("optimizer.1.step", torch.tensor(math.nan), "NaN or infinity in optimizer.1.step"),
    "no state": ("hidden.1", None, "no tensor hidden.1"),
    "losses": ("losses", torch.zeros(2, dtype=torch.float64), "losses F64 [2], which must be F64 [3]"),
}


def _edit(saved, metadata=(), settings=(), tensors=()):
    """Changes the checkpoint where it lies."""
    with safetensors.safe_open(saved, framework="pt") as file:
        old = file.metadata()
    config = json.dumps({**json.loads(old["config"]), **dict(settings)})
    parts = {**safetensors.torch.load_file(saved), **dict(tensors)}
    parts = {name: tensor for name, tensor in parts.items() if tensor is not None}
    safetensors.torch.save_file(parts, saved, {**old, "config": config, **dict(metadata)})


def _assert_refused(saved, message):
    for open_checkpoint in (load_model, Trainer.resume):
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(saved)
        assert message in str(refused.value)
        assert str(saved) in str(refused.value)


@pytest.mark.parametrize("case", METADATA)
def test_metadata(case, saved):
    metadata, message = METADATA[case]
    _edit(saved, metadata)
    _assert_refused(saved, message)


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case, saved):
    settings, message = SETTINGS[case]
    _edit(saved, settings=settings)
    _assert_refused(saved, message)


def test_a_setting_nested_as_deep_as_can_be_parsed(saved):
    for depth in range(800, 1000, 10):
        with safetensors.safe_open(saved, framework="pt") as file:
            metadata = file.metadata()
        nested = f'{{"data": [], "hidden_size": {"[" * depth}{"]" * depth}}}'
        safetensors.torch.save_file({"a": torch.zeros(1)}, saved, {**metadata, "config": nested})
        with pytest.raises(CheckpointError, match=r"a setting that is wrong|a damaged config"):
            checkpoint.load(saved)


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case, saved):
    name, tensor, message = TENSORS[case]
    _edit(saved, tensors={name: tensor})
    _assert_refused(saved, message)


def test_another_version_and_missing_metadata(saved):
    tensors = safetensors.torch.load_file(saved)
    for metadata, message in (
        ({"version": "2"}, "must be of format version 1, got 2"),
        ({"version": "1"}, "no config"),
    ):
        safetensors.torch.save_file(tensors, saved, {"format": "fusedlstm.lm", **metadata})
        _assert_refused(saved, message)


@pytest.mark.parametrize("position", [4, 10**9])
def test_a_position_elsewhere_in_the_text_is_refused(position, saved):
    _edit(saved, {"position": str(position)})
    load_model(saved)  # which reads no text
    with pytest.raises(CheckpointError, match=f"at window 3 of the text at step 3, got .* with position {position}"):
        Trainer.resume(saved)


def test_files_that_are_no_whole_safetensors(saved, monkeypatch):
    whole = saved.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    nested = NESTED.encode()
    broken = [whole[:size] for size in (0, 7, 8, 100, 8 + header, len(whole) - 1)]
    broken += [struct.pack("<Q", size) + whole[8:] for size in (0, 2**31, 2**63, 2**64 - 1)]
    broken += [os.urandom(500), struct.pack("<Q", len(nested)) + nested]
    for data in broken:
        saved.write_bytes(data)
        _assert_refused(saved, "damaged or foreign")
    saved.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "host", lambda: len(whole) - 1)
        _assert_refused(saved, f"{len(whole):,} bytes, more than this machine has memory")
    assert checkpoint.load(saved).step == 3


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("link")
    for path, message in (
        ("", "cannot read an empty name: the name of a file is missing"),
        ("a\0b", "its name holds a zero byte"),
        ("/dev/zero", "it is a device"),
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "it is a pipe"),
        (tmp_path / "link", "Too many levels of symbolic links"),
        (tmp_path / "absent", "No such file or directory"),
    ):
        with pytest.raises(OSError, match=message):
            checkpoint.load(path)


@pytest.mark.parametrize("command", ["generate", "train"])
def test_a_command_says_it_in_one_line(command, saved, capsys):
    _edit(saved, {"step": NESTED})
    arguments = [str(saved)] if command == "generate" else ["--out", str(saved), "--resume"]
    assert main([command, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("fusedlstm: error: checkpoint must be a file that 'python -m fusedlstm train' wrote")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("steps", [0, 3, 7])
@pytest.mark.parametrize("cell", ["lstm", "torch", "rnn"])
def test_whatever_is_saved_is_accepted(steps, cell, saved):
    """At the start, within an epoch, and at its end, where no state is carried."""
    config = checkpoint.load(saved).config
    trainer = Trainer(type(config)(**{**vars(config), "cell": cell}))
    trainer.run(steps)
    trainer.save(saved)
    assert checkpoint.load(saved).position == steps % 7
    assert Trainer.resume(saved).step == steps


def test_a_full_disk_keeps_the_previous_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()
    trainer = Trainer.resume(saved)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*: No space left on device; a previous one is kept"):
        trainer.save(saved)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("part", ["weight", "moment"])
def test_a_diverged_model_does_not_replace_a_good_one(part, saved):
    before = saved.read_bytes()
    trainer = Trainer.resume(saved)
    bias = trainer.model.output.bias
    (bias.data if part == "weight" else trainer._optimizer.state[bias]["exp_avg"])[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"learning_rate must keep the weights finite, got others at step 3"):
        trainer.save(saved)
    assert saved.read_bytes() == before
