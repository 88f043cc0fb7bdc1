"""The equations of an LSTM layer in plain torch: the tests' reference, and what computes second derivatives."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer, all its directions, step by step; differentiable any number of times.

    Args:
        x: input, [T, N, I], or [S, I] with ``batch_sizes``.
        h0: first hidden state of each direction, [D, N, P] (P = H without a projection).
        c0: first cell state of each direction, [D, N, H].
        weights: per direction weight_ih [4H, I], weight_hh [4H, P], then bias_ih and bias_hh [4H] if there
            are biases, then weight_hr [P, H] if there is a projection.
        lengths: steps of each sequence, int64 [N]; None means T for all.
        resets: where a segment begins, bool [T, N]; each direction enters a segment with states of zero.
        batch_sizes: of a packed input, int64 [T]: how many sequences, the first ones, have a step t. Without lengths
            and resets.

    Returns:
        y [T, N, D*P], h_n [D, N, P], c_n [D, N, H] and every cell state [T, N, D*H]; of a packed input y [S, D*P] and
        the cell states [S, D*H].

    Source: the documentation of ``torch.nn.LSTM``.

    Example:
        >>> x, state = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
        >>> weights = [torch.randn(16, 3), torch.randn(16, 4)]
        >>> reference.layer(x, state, state, weights)[0].shape
        torch.Size([5, 2, 4])
    """
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    steps = list(x) if sizes is None else list(torch.split(x, sizes)) if sizes else []
    each = enumerate(_split(weights, h0.shape[0]))
    directions = [_direction(steps, h0[d], c0[d], w, lengths, resets, d == 1) for d, w in each]
    y, h_n, c_n, cells = zip(*directions, strict=True)
    return _sequence(y, x, h0, sizes), torch.stack(h_n), torch.stack(c_n), _sequence(cells, x, c0, sizes)


def _sequence(directions: Sequence[list[Tensor]], x: Tensor, state: Tensor, sizes: list[int] | None) -> Tensor:
    """The results of all steps of each direction as one tensor, laid out as x."""
    if not directions[0]:
        return x.new_zeros((*x.shape[:-1], len(directions) * state.shape[2]))
    return torch.cat([(torch.stack if sizes is None else torch.cat)(steps) for steps in directions], -1)


def _split(weights: Sequence[Tensor], directions: int) -> list[Sequence[Tensor]]:
    each = len(weights) // directions
    return [weights[d * each : (d + 1) * each] for d in range(directions)]


def _direction(
    x: Sequence[Tensor],
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    weight_ih, weight_hh, *rest = weights
    weight_hr = rest.pop() if len(rest) % 2 else None
    bias = rest[0] + rest[1] if rest else None
    T = len(x)
    h, c = (h0[: len(x[-1])], c0[: len(x[-1])]) if reverse and T else (h0, c0)
    h_ended: list[Tensor] = []
    c_ended: list[Tensor] = []
    y, cells = [h] * T, [c] * T
    for t in reversed(range(T)) if reverse else range(T):
        h, c = _rows(h, h0, len(x[t]), h_ended), _rows(c, c0, len(x[t]), c_ended)
        begin = t + 1 if reverse else t  # in reverse a segment is entered from its end, just before the next one begins
        if resets is not None and begin < T:
            enters = resets[begin] if lengths is None else resets[begin] & (begin < lengths)
            h, c = h.masked_fill(enters[:, None], 0), c.masked_fill(enters[:, None], 0)
        i, f, g, o = (F.linear(x[t], weight_ih, bias) + F.linear(h, weight_hh)).chunk(4, 1)
        c_t = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h_t = o.sigmoid() * c_t.tanh()
        if weight_hr is not None:
            h_t = F.linear(h_t, weight_hr)
        if lengths is not None:  # past its end a sequence outputs zero and keeps its state
            live = (t < lengths)[:, None]
            y[t], cells[t] = h_t.where(live, 0), c_t.where(live, 0)
            h, c = h_t.where(live, h), c_t.where(live, c)
        else:
            y[t], cells[t] = h, c = h_t, c_t
    return y, _all_rows(h, h0, h_ended), _all_rows(c, c0, c_ended), cells


def _rows(state: Tensor, first: Tensor, n: int, ended: list[Tensor]) -> Tensor:
    """The state of the first n sequences; of a packed input others have ended since the step before, or begin."""
    if n < len(state):
        ended.append(state[n:])
    return torch.cat([state, first[len(state) : n]]) if n > len(state) else state[:n]


def _all_rows(state: Tensor, first: Tensor, ended: list[Tensor]) -> Tensor:
    rows = torch.cat([state, *reversed(ended)]) if ended else state
    return torch.cat([rows, first[len(rows) :]]) if len(rows) < len(first) else rows  # others have no step
