"""Checkpoints: one safetensors file with everything a run needs to continue, replaced atomically."""

from __future__ import annotations

import json
import os
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from fusedlstm.lm import files, memory
from fusedlstm.lm.config import TrainConfig
from fusedlstm.lm.data import END_OF_LINE, UNKNOWN, ByteVocabulary, Vocabulary, WordVocabulary
from fusedlstm.lm.errors import CheckpointError, InputError
from fusedlstm.lm.layout import Layout, expected

FORMAT = "fusedlstm.lm"
VERSION = 1

_RULE = "checkpoint must be a file that 'python -m fusedlstm train' wrote"
_SHOWN = 100  # characters of a wrong value
_CONTENTS = "config", "words", "step", "position", "digest"
_LARGEST_STEP = 2**24  # of Adam, which counts in float32


class _DamageError(Exception):
    """What is wrong with the contents of a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        config: settings of the run.
        vocabulary: what its tokens mean.
        step: updates made.
        position: next window within the epoch.
        digest: SHA-256 of the text.
        tensors: weights, optimizer state, carried state and losses, by name.
    """

    config: TrainConfig
    vocabulary: Vocabulary
    step: int
    position: int
    digest: str
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors called ``name.*``, under the rest of their names."""
        start = name + "."
        return {key.removeprefix(start): tensor for key, tensor in self.tensors.items() if key.startswith(start)}


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint; if that fails or is interrupted, the old file at ``path`` stays as it was.

    Args:
        path: the file to create or replace.
        checkpoint: what to write.

    Raises:
        OSError: the file cannot be written; a previous one is untouched.

    Example:
        >>> save("copy.safetensors", load("model.safetensors"))  # doctest: +SKIP
    """
    contents = {
        "config": asdict(checkpoint.config),
        "words": checkpoint.vocabulary.words,
        "step": checkpoint.step,
        "position": checkpoint.position,
        "digest": checkpoint.digest,
    }
    metadata = {"format": FORMAT, "version": str(VERSION)}
    metadata |= {name: json.dumps(value) for name, value in contents.items()}
    # Copies, because safetensors refuses tensors that share memory, as the states of a recurrent layer may.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()}
    try:
        files.replace(path, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write checkpoint {os.fspath(path)}: {reason}; a previous one is kept") from error


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: a file that ``save`` wrote.

    Returns:
        Its contents, on the CPU.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: the file is not a checkpoint, is damaged, or is of another version.

    Example:
        >>> load("model.safetensors").step  # doctest: +SKIP
        2000
    """
    name = os.fspath(path)
    try:
        with files.open_to_read(name) as opened:
            return _load(opened, name)
    except OSError as error:  # here, since safetensors gives no reason
        reason = error.strerror or error
        raise OSError(f"{_RULE}, cannot read {name or 'an empty name'}: {reason}; check the path") from error


def _load(opened: BinaryIO, name: str) -> Checkpoint:
    try:
        size = os.fstat(opened.fileno()).st_size
        if size > memory.host():
            raise _DamageError(f"{size:,} bytes, more than this machine has memory")
        # safetensors opens names in UTF-8 alone.
        utf8 = name.encode(errors="replace").decode() == name
        with safetensors.safe_open(name if utf8 else f"/proc/self/fd/{opened.fileno()}", framework="pt") as file:
            return _read(file, name)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{_RULE}, got a damaged or foreign file: {name} ({error}); give another file") from error
    except _DamageError as error:
        raise CheckpointError(f"{_RULE}, got {name} with {error}; give another file") from error


def _read(file: Any, name: str) -> Checkpoint:
    """The checkpoint in an open safetensors file; whatever can be checked before tensors are read is."""
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{_RULE}, got a safetensors file of something else: {name}; give another file")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"checkpoint must be of format version {VERSION}, got {_short(metadata.get('version'))}: {name}; "
            "use the fusedlstm that wrote it"
        )
    contents = {key: _parse(key, metadata.get(key)) for key in _CONTENTS}
    config, vocabulary = _settings(contents["config"]), _vocabulary(contents["words"])
    step, position, digest = (contents[key] for key in ("step", "position", "digest"))
    if (vocabulary.words is None) != (config.vocabulary == "bytes"):
        raise _DamageError(f"words of another vocabulary than {config.vocabulary}")
    for key, value in (("step", step), ("position", position)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _DamageError(f"a {key} that is no whole number from 0 on: {_short(value)}")
    if not isinstance(digest, str):
        raise _DamageError(f"a digest that is no text: {_short(digest)}")
    tensors = _tensors(file, config, vocabulary.size, step, position)
    return Checkpoint(config, vocabulary, step, position, digest, tensors)


def _parse(key: str, text: str | None) -> Any:
    if text is None:
        raise _DamageError(f"no {key}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _DamageError(f"a damaged {key} ({error})") from error


def _settings(config: Any) -> TrainConfig:
    if not isinstance(config, dict):
        raise _DamageError(f"a config that is no table of settings: {_short(config)}")
    if surplus := config.keys() - {field.name for field in fields(TrainConfig)}:
        raise _DamageError(f"a setting that this fusedlstm has not: {_short(min(surplus))}")
    data = config.get("data")
    try:
        return TrainConfig(**{**config, "data": tuple(data) if isinstance(data, list) else data})
    except InputError as error:
        raise _DamageError(f"a setting that is wrong: {_short(str(error))}") from error


def _vocabulary(words: Any) -> Vocabulary:
    if words is None:
        return ByteVocabulary()
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _DamageError(f"words that are no list of texts: {_short(words)}")
    if len({*words}) < len(words) or not {UNKNOWN, END_OF_LINE} <= {*words}:
        raise _DamageError("words that repeat, or lack <unk> or the end of line")
    return WordVocabulary(words)


def _tensors(file: Any, config: TrainConfig, vocab_size: int, step: int, position: int) -> dict[str, Tensor]:
    names = {*file.keys()}
    try:
        # Each layer has tensors, so that more layers than tensors need no look at each.
        wanted = expected(config, vocab_size, step, position) if config.num_layers <= len(names) else {}
    except RuntimeError as error:
        raise _DamageError(f"sizes that no tensor can have ({_short(str(error))})") from error
    if not wanted:
        raise _DamageError(f"{len(names)} tensors for {config.num_layers} layers")
    for name in sorted(wanted.keys() ^ names):
        raise _DamageError(f"no tensor {name}" if name in wanted else f"a tensor of something else, {_short(name)}")
    for name, tensor in wanted.items():
        part = file.get_slice(name)
        found = Layout(part.get_dtype(), tuple(part.get_shape()))
        if found != tensor:
            raise _DamageError(f"{name} {found}, which must be {tensor}")
    tensors = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise _DamageError(f"NaN or infinity in {name}")
        if name.endswith(".exp_avg_sq") and (tensor < 0).any():
            raise _DamageError(f"negative squares in {name}")
        if name.startswith("optimizer.") and name.endswith(".step") and tensor != min(step, _LARGEST_STEP):
            raise _DamageError(f"{name} {tensor.item():g} at step {step}")
    return tensors


def _short(value: object) -> str:
    text = value if isinstance(value, str) else reprlib.repr(value)  # which stops inside nested lists
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
