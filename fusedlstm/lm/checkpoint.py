"""Checkpoints: one safetensors file with everything a run needs to continue, replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from fusedlstm.lm.config import TrainConfig
from fusedlstm.lm.data import ByteVocabulary, Vocabulary, WordVocabulary

FORMAT = "fusedlstm.lm"
VERSION = 1


class CheckpointError(ValueError):
    """A file is not a checkpoint of this package, or is damaged."""


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
    path = Path(path)
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
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(safetensors.torch.save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"cannot write checkpoint {path}: {error.strerror or error}; a previous one is kept") from error
    finally:
        temporary.unlink(missing_ok=True)


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
    path = Path(path)
    rule = "checkpoint must be a file that 'python -m fusedlstm train' wrote"
    try:
        path.open("rb").close()  # for the reason, which safetensors does not give
    except OSError as error:
        raise OSError(f"{rule}, cannot read {path}: {error.strerror}; check the path") from error
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{rule}, got a damaged or foreign file: {path} ({error}); give another file") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{rule}, got a safetensors file of something else: {path}; give another file")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"checkpoint must be of format version {VERSION}, got {metadata.get('version')}: {path}; "
            "use the fusedlstm that wrote it"
        )
    try:
        config, words, step, position, digest = (
            json.loads(metadata[name]) for name in ("config", "words", "step", "position", "digest")
        )
        settings = TrainConfig(**{**config, "data": tuple(config["data"])})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{rule}, got damaged metadata in {path} ({error}); give another file") from error
    vocabulary = ByteVocabulary() if words is None else WordVocabulary(words)
    return Checkpoint(settings, vocabulary, step, position, digest, tensors)
