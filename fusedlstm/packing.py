"""Packed sequences as padded ones and back."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fusedlstm.tracers import is_tracing


def batch_size(input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None) -> int:
    """Number of sequences N; from a shape if possible, since torch.compile cannot read values of ``batch_sizes``."""
    if input.sorted_indices is not None:
        return input.sorted_indices.shape[0]
    if is_tracing():
        return input.batch_sizes[0]  # type: ignore[return-value]  # int() would make it a constant of the trace
    N = int(input.batch_sizes[0])
    if hx is None or not torch.compiler.is_compiling():
        return N
    torch._check(  # type: ignore[no-untyped-call]
        hx[0].shape[1] == N, lambda: "lstm: hx must have the batch of the PackedSequence"
    )
    return hx[0].shape[1]


def check_batch_sizes(input: PackedSequence) -> None:
    """Checks that ``batch_sizes`` describe the data; where their values are known, which is not so in a trace."""
    sizes, steps = input.batch_sizes, input.data.shape[0]
    if is_tracing() or torch.compiler.is_compiling() or type(sizes) is not Tensor:
        return
    counts = sizes.tolist()
    if sizes.dim() != 1 or not counts or counts[-1] < 0 or sum(counts) != steps or counts != sorted(counts)[::-1]:
        raise ValueError(
            f"lstm: batch_sizes of a PackedSequence must not grow and must add up to the {steps} rows of its data, got"
            f" {counts}; use pack_padded_sequence or pack_sequence"
        )


class Packing:
    """Positions of the S steps of a packed sequence among the T * N of a padded one, with the batch in sorted order.

    It replaces ``pad_packed_sequence`` and ``pack_padded_sequence`` by indexing, which torch.compile can trace. The
    gradient of torch's functions costs O(T x data), that of indexing O(data).

    Args:
        input: the packed sequence.
        N: how many sequences it holds.

    Attributes:
        lengths: steps of each sequence, int64 [N], on the device of the data.

    Example:
        >>> packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
        >>> packing = Packing(packed, 2)
        >>> packing.pad(packed.data).shape, packing.lengths
        (torch.Size([3, 2, 2]), tensor([3, 1]))
    """

    def __init__(self, input: PackedSequence, N: int) -> None:
        sizes, steps = input.batch_sizes, input.data.shape[0]
        T = sizes.shape[0]  # torch.export would make len() a constant
        # The entries of step t begin at sizes[0] + .. + sizes[t - 1] in the packed data, at t * N in the padded.
        every_t, every_n, entries = (torch.arange(count, device=sizes.device) for count in (T, N, steps))
        shift = every_t * N - (sizes.cumsum(0) - sizes)
        positions = entries + shift.repeat_interleave(sizes, output_size=steps)
        lengths = (sizes > every_n[:, None]).sum(1)
        device = input.data.device
        self._positions, self.lengths = (index.to(device, non_blocking=True) for index in (positions, lengths))
        self._shape = T, N

    def pad(self, data: Tensor) -> Tensor:
        """[S, I] as [T, N, I], zero past the end of a sequence."""
        T, N = self._shape
        return data.new_zeros(T * N, data.shape[1]).index_copy(0, self._positions, data).view(T, N, data.shape[1])

    def pack(self, padded: Tensor) -> Tensor:
        """[T, N, I] as [S, I]."""
        return padded.flatten(0, 1).index_select(0, self._positions)
