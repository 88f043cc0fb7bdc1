"""A stack of LSTM layers as a function: layers in order, dropout between them."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import memory, ops
from fusedlstm.packing import batch_size

State = tuple[Tensor, Tensor]
_LayerInputs = tuple[Tensor, Tensor, Sequence[Tensor]]  # h0, c0 and weights, as ops.lstm_layer takes them


@overload
def lstm(
    input: Tensor, hx: State, weights: Sequence[Tensor], *, num_layers: int = 1, bidirectional: bool = False,
    dropout: float = 0.0, training: bool = False, batch_first: bool = False, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[False] = False, recompute: bool = False,
) -> tuple[Tensor, State]: ...  # fmt: skip
@overload
def lstm(
    input: Tensor, hx: State, weights: Sequence[Tensor], *, num_layers: int = 1, bidirectional: bool = False,
    dropout: float = 0.0, training: bool = False, batch_first: bool = False, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[True], recompute: bool = False,
) -> tuple[Tensor, State, State]: ...  # fmt: skip
@overload
def lstm(
    input: Tensor, hx: State, weights: Sequence[Tensor], *, num_layers: int = 1, bidirectional: bool = False,
    dropout: float = 0.0, training: bool = False, batch_first: bool = False, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: bool, recompute: bool = False,
) -> tuple[Tensor, State] | tuple[Tensor, State, State]: ...  # fmt: skip
@overload
def lstm(
    input: PackedSequence, hx: State, weights: Sequence[Tensor], *, num_layers: int = 1, bidirectional: bool = False,
    dropout: float = 0.0, training: bool = False, batch_first: bool = False, lengths: None = None,
    resets: None = None, return_states: Literal[False] = False, recompute: bool = False,
) -> tuple[PackedSequence, State]: ...  # fmt: skip
def lstm(
    input: Tensor | PackedSequence,
    hx: State,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    recompute: bool = False,
) -> Any:
    """Runs a stack of LSTM layers with the given weights.

    Args:
        input: [T, N, I] ([N, T, I] with ``batch_first``), or a PackedSequence whose sequences, once sorted, are in the
            order of ``hx``; float32, float64, bfloat16 or float16.
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
        lengths: steps of each sequence, int64 [N] on the device of ``input``, 0 to T, in any order; None means T for
            all. ``input`` is ignored past the end of a sequence. Not with a PackedSequence, which has its own lengths.
        resets: where a segment of a sequence begins, bool [T, N] ([N, T] with ``batch_first``) on the device of
            ``input``. True at (t, n) zeroes the states of sequence n, of every layer, before its step t, and cuts the
            gradient there. The reverse direction has the same segments: it leaves one at its first step t and enters
            the one before, which ends at t - 1, with states of zero. True at t = 0 replaces the forward direction's
            hx; True past the end of a sequence has no effect. Not with a PackedSequence.
        return_states: whether every state of every layer is returned too. Not with a PackedSequence.
        recompute: whether the backward pass recomputes the gates, by products over all steps, instead of keeping
            them: less memory for more work.

    Returns:
        The output, [T, N, D*P] ([N, T, D*P] with ``batch_first``) or a PackedSequence, and the pair of last
        states, shaped as ``hx``. With ``lengths`` the output is zero past the end of a sequence and the last states
        are those of its last step (hx for a sequence of no steps). With ``return_states`` also a pair (h_all, c_all)
        of [num_layers * D, T, N, P] and [num_layers * D, T, N, H]: the states after each step, zero past the end.

    Raises:
        ValueError: ``num_layers`` is below 1, ``weights`` or ``hx`` do not fit the layers and directions, or a
            PackedSequence comes with ``lengths``, ``resets`` or ``return_states``.
        RuntimeError: a shape, dtype or device does not fit.

    Source: ``torch.nn.LSTM``; unlike it, T may be 0, and then the last states are the first ones.

    Example:
        >>> module = torch.nn.LSTM(3, 4, num_layers=2)
        >>> hx = torch.zeros(2, 5, 4), torch.zeros(2, 5, 4)
        >>> y, (h_n, c_n) = fusedlstm.lstm(torch.randn(7, 5, 3), hx, list(module.parameters()), num_layers=2)
        >>> y.shape
        torch.Size([7, 5, 4])
    """
    directions = 2 if bidirectional else 1
    layers = _layers(hx, weights, num_layers, directions)
    p = dropout if training else 0.0
    if isinstance(input, PackedSequence):
        given = {"lengths": lengths is not None, "resets": resets is not None, "return_states": return_states}
        for name in (name for name, is_given in given.items() if is_given):
            raise ValueError(f"lstm: {name} must not come with a PackedSequence; use pad_packed_sequence(input)")
        return _packed(input, hx, layers, p, recompute)
    x = input.transpose(0, 1) if batch_first else input
    if resets is not None and batch_first:
        resets = resets.transpose(0, 1)
    if lengths is not None:  # the gradient of weight_ih multiplies the padding by zero, and NaN times zero is NaN
        memory.check("input", x)
        memory.check("lengths", lengths)
        past = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths
        x = x.masked_fill(past[:, :, None], 0)
    y, last, every = _run(x, layers, p, lengths=lengths, resets=resets, keep_cells=return_states, recompute=recompute)
    if batch_first:
        y = y.transpose(0, 1)
    if not return_states:
        return y, last
    h_all, c_all = (
        torch.cat([_by_direction(each, directions) for each in states]) for states in zip(*every, strict=True)
    )
    return y, last, (h_all, c_all)


def _layers(hx: State, weights: Sequence[Tensor], num_layers: int, directions: int) -> list[_LayerInputs]:
    if num_layers < 1:
        raise ValueError(f"lstm: num_layers must be at least 1, got {num_layers}")
    each, rest = divmod(len(weights), num_layers)
    if rest or each % directions:
        raise ValueError(
            f"lstm: weights must hold as many tensors for each of {num_layers} layers x {directions} directions,"
            f" got {len(weights)}"
        )
    h0, c0 = hx
    for index, shape in enumerate((h0.shape, c0.shape)):
        if len(shape) != 3 or shape[0] != num_layers * directions:
            raise ValueError(
                f"lstm: hx[{index}] must be [{num_layers * directions}, batch, units], a state for each of {num_layers}"
                f" layers x {directions} directions, got {list(shape)}"
            )
    if num_layers == 1:
        return [(h0, c0, weights)]
    parts = [(slice(n * directions, (n + 1) * directions), slice(n * each, (n + 1) * each)) for n in range(num_layers)]
    return [(h0[states], c0[states], weights[own]) for states, own in parts]


def _packed(
    input: PackedSequence, hx: State, layers: list[_LayerInputs], dropout: float, recompute: bool
) -> tuple[PackedSequence, State]:
    N = hx[0].shape[1]
    if (sequences := batch_size(input, hx)) != N:
        raise ValueError(f"lstm: hx must have a batch of {sequences} as the PackedSequence, got {N}")
    if input.data.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "lstm: input must not be a PackedSequence in a CUDA graph, which cannot read batch_sizes on the host;"
            " use a padded batch, with lengths"
        )
    y, last, _ = _run(
        input.data, layers, dropout, batch_sizes=input.batch_sizes, recompute=recompute, cpu_autocast=False
    )
    return PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices), last


def _run(x: Tensor, layers: list[_LayerInputs], dropout: float, **options: Any) -> tuple[Tensor, State, list[State]]:
    """With the options of ops.lstm_layer: the last layer's output, all last states, and all states that are kept."""
    last: list[State] = []
    every: list[State] = []
    for h0, c0, weights in layers:
        if last and dropout > 0:
            x = F.dropout(x, dropout)
        x, h_n, c_n, cells = ops.lstm_layer(x, h0, c0, weights, **options)
        last.append((h_n, c_n))
        if cells is not None:  # otherwise the output of a layer is freed once the next layer has run
            every.append((x, cells))
    if len(last) == 1:
        return x, last[0], every
    return x, (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last])), every


def _by_direction(states: Tensor, directions: int) -> Tensor:
    """[T, N, D*H] as [D, T, N, H]."""
    T, N, width = states.shape
    return states.reshape(T, N, directions, width // directions).permute(2, 0, 1, 3)
