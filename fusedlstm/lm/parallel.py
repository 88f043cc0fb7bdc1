"""One run in several processes: torchrun starts them, torch.distributed connects them, DistributedDataParallel trains.

Every process holds the whole model and trains its own part of the batch. In a single process all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Model = TypeVar("Model", bound=nn.Module)


class LostProcessError(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Number of this process, from 0; process 0 saves and prints."""
    return distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, until the end of the block.

    Raises:
        LostProcessError: in the block, if communication with another process failed.

    Example:
        >>> with process_group():
        ...     size()
        1
    """
    if not launched():
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
    except RuntimeError as error:  # gloo has no exception of its own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        text = f"lost another of the {size()} processes, which ended or cannot be reached"
        raise LostProcessError(text) from error
    finally:
        distributed.destroy_process_group()


def data_parallel(model: Model) -> Model | DistributedDataParallel:
    """The model to call in training, whose gradients are the mean over all processes."""
    return DistributedDataParallel(model) if size() > 1 else model


def own_part(batch: Tensor) -> Tensor:
    """The sequences of this process: [T, n] of a batch [T, N], or [L, n, H] of states [L, N, H]."""
    return batch.tensor_split(size(), 1)[rank()]


def gather_parts(part: Tensor) -> Tensor:
    """The whole batch from equal parts, the inverse of :func:`own_part`; every process must call it."""
    if size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts, 1)


def total(*values: float) -> list[float]:
    """Sums over all processes, in float64; every process must call it."""
    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    return sums.tolist()


def any_process(condition: bool) -> bool:
    """Whether the condition holds in any process, the same answer in all; every process must call it."""
    return total(float(condition))[0] > 0
