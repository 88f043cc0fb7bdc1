"""Packed sequences."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedlstm.errors import ArgumentError
from fusedlstm.tracers import is_tracing


def batch_size(input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None) -> int:
    """Number of sequences N; from a shape if possible, since torch.compile cannot read values of ``batch_sizes``."""
    if input.sorted_indices is not None:
        return input.sorted_indices.shape[0]
    if is_tracing():
        return input.batch_sizes[0]  # type: ignore[return-value]  # int() would make it a constant of the trace
    if input.batch_sizes.dim() != 1 or input.batch_sizes.shape[0] == 0:
        got = list(input.batch_sizes.shape)
        raise ArgumentError(f"lstm: batch_sizes must be [steps], of at least one step, got {got}; use pack_sequence")
    N = int(input.batch_sizes[0])
    if hx is None or not torch.compiler.is_compiling():
        return N
    torch._check(  # type: ignore[no-untyped-call]
        hx[0].shape[1] == N, lambda: "lstm: hx must have the batch of the PackedSequence"
    )
    return hx[0].shape[1]
