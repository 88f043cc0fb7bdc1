"""Whether a run can fit into memory at all: what it needs at least, and what there is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from fusedlstm.lm.config import TrainConfig
from fusedlstm.lm.errors import InputError
from fusedlstm.lm.model import LanguageModel

_CONTAINER_LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
_COPIES = 4  # of each parameter: itself, its gradient and Adam's two moments
_OBJECT_BYTES = 1000  # of Python and torch for each parameter and its copies
_UNCOUNTABLE = 2**63


def host() -> int:
    """Return the memory of this machine or container, in bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def _total(device: torch.device) -> float:
    """Memory of a device in bytes; without limit where it cannot be known."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return host() if device.type == "cpu" else math.inf


def require(config: TrainConfig, vocab_size: int, sequences: int, device: torch.device) -> None:
    """Refuse a run that cannot fit: allocating it would fail late, or let the kernel kill the process.

    Args:
        config: settings of the run.
        vocab_size: number of tokens, V.
        sequences: part of the batch that this process trains.
        device: where the run is.

    Raises:
        InputError: the run needs more memory than the device has.
    """
    there, needed = _total(device), _needed(config, vocab_size, sequences)
    if needed > there:
        raise InputError(
            f"sizes must let the run fit into the {there / 1e9:,.1f} GB of {device}, got a model and batch that need "
            f"at least {needed / 1e9:,.1f} GB; choose smaller sizes, fewer layers, or a smaller window or batch"
        )


def _needed(config: TrainConfig, vocab_size: int, sequences: int) -> int:
    """A lower bound, in bytes; exact for the parameters, of the activations logits and outputs alone."""
    try:
        with torch.device("meta"):
            first, second = (replace(config, num_layers=n).build_model(vocab_size) for n in (1, 2))
    except RuntimeError:  # a tensor of 2**63 bytes or more
        return _COPIES * _UNCOUNTABLE
    deeper = config.num_layers - 1

    def whole(count: Callable[[LanguageModel], int]) -> int:
        return count(first) + deeper * (count(second) - count(first))

    parameters = whole(lambda model: sum(parameter.numel() for parameter in model.parameters()))
    objects = whole(lambda model: len([*model.parameters()]))
    # Logits and their gradient, and the output of each layer.
    activations = config.window * sequences * (2 * vocab_size + config.num_layers * config.hidden_size)
    return 4 * (_COPIES * parameters + activations) + _OBJECT_BYTES * objects
