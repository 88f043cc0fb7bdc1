"""A stack of LSTM layers as a function: layers in order, dropout between them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fusedlstm import ops


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
    """Runs a stack of LSTM layers with the given weights.

    Args:
        input: [T, N, I] ([N, T, I] with ``batch_first``), or a PackedSequence whose rows are in the order of
            ``hx`` once sorted; float32, float64, bfloat16 or float16.
        hx: first hidden state [num_layers * D, N, P] and cell state [num_layers * D, N, H], where D is 2 when
            ``bidirectional``, else 1, and P is H without a projection; dtype and device of ``input``.
        weights: for each layer and direction in turn weight_ih [4H, I], weight_hh [4H, P], then bias_ih and
            bias_hh [4H] if there are biases, then weight_hr [P, H] if there is a projection: the order of
            ``nn.LSTM.parameters()``.
        num_layers: how many layers the weights describe.
        bidirectional: whether each layer has a second direction that runs from the end to the start.
        dropout: probability with which an output of any layer but the last is zeroed.
        training: whether dropout is active.
        batch_first: whether ``input`` and the output are [N, T, ...]; hx is not affected.

    Returns:
        The output, [T, N, D*P] ([N, T, D*P] with ``batch_first``) or a PackedSequence, and the pair of last
        states, shaped as ``hx``.

    Raises:
        ValueError: ``num_layers`` is below 1, or ``weights`` cannot be divided among the layers and directions.
        RuntimeError: a shape, dtype or device does not fit.

    Source: ``torch.nn.LSTM``; unlike it, T may be 0, and then the last states are the first ones.

    Example:
        >>> module = torch.nn.LSTM(3, 4, num_layers=2)
        >>> hx = torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)
        >>> y, (h_n, c_n) = fusedlstm.lstm(torch.randn(7, 5, 3), hx, list(module.parameters()), num_layers=2)
        >>> y.shape
        torch.Size([7, 5, 4])
    """
    if isinstance(input, PackedSequence):
        return _packed(input, hx, weights, num_layers, bidirectional, dropout if training else 0.0)
    x = input.transpose(0, 1) if batch_first else input
    y, state = _stack(x, hx, weights, num_layers, bidirectional, dropout if training else 0.0)
    return y.transpose(0, 1) if batch_first else y, state


def _packed(
    input: PackedSequence,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    dropout: float,
) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
    # Without the indices, rows stay in their sorted order, which is the order of hx here.
    x, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
    y, state = _stack(x, hx, weights, num_layers, bidirectional, dropout, lengths)
    data = pack_padded_sequence(y, lengths).data
    return PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices), state


def _stack(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    lengths: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if num_layers < 1:
        raise ValueError(f"lstm: num_layers must be at least 1, got {num_layers}")
    directions = 2 if bidirectional else 1
    each, rest = divmod(len(weights), num_layers)
    if rest or each % directions:
        raise ValueError(
            f"lstm: weights must hold as many tensors for each of {num_layers} layers x {directions} directions,"
            f" got {len(weights)}"
        )
    row_lengths = None if lengths is None else lengths.to(x.device)
    h_n, c_n = [], []
    for layer in range(num_layers):
        if layer > 0 and dropout > 0:
            x = _dropout(x, dropout, lengths)
        first = layer * directions
        x, h, c = ops.lstm_layer(
            x,
            hx[0][first : first + directions],
            hx[1][first : first + directions],
            weights[layer * each : (layer + 1) * each],
            row_lengths,
        )
        h_n.append(h)
        c_n.append(c)
    if num_layers == 1:
        return x, (h_n[0], c_n[0])
    return x, (torch.cat(h_n), torch.cat(c_n))


def _dropout(x: Tensor, p: float, lengths: Tensor | None) -> Tensor:
    """torch's own dropout, drawn over the valid steps alone as nn.LSTM does: the same seed, the same masks."""
    if lengths is None:
        return F.dropout(x, p)
    packed = pack_padded_sequence(x, lengths)
    return pad_packed_sequence(packed._replace(data=F.dropout(packed.data, p)))[0]
