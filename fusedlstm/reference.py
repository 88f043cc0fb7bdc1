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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer, all its directions, step by step; differentiable any number of times.

    Args:
        x: input, [T, N, I].
        h0: first hidden state of each direction, [D, N, P] (P = H without a projection).
        c0: first cell state of each direction, [D, N, H].
        weights: per direction weight_ih [4H, I], weight_hh [4H, P], then bias_ih and bias_hh [4H] if there
            are biases, then weight_hr [P, H] if there is a projection.
        lengths: steps of each sequence, int64 [N]; None means T for all.
        resets: where a segment begins, bool [T, N]; each direction enters a segment with states of zero.

    Returns:
        y [T, N, D*P], h_n [D, N, P], c_n [D, N, H] and every cell state [T, N, D*H].

    Source: the documentation of ``torch.nn.LSTM``.

    Example:
        >>> x, state = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
        >>> weights = [torch.randn(16, 3), torch.randn(16, 4)]
        >>> reference.layer(x, state, state, weights)[0].shape
        torch.Size([5, 2, 4])
    """
    each = enumerate(_split(weights, h0.shape[0]))
    directions = [_direction(x, h0[d], c0[d], w, lengths, resets, d == 1) for d, w in each]
    y, h_n, c_n, cells = zip(*directions, strict=True)
    return torch.cat(y, 2), torch.stack(h_n), torch.stack(c_n), torch.cat(cells, 2)


def _split(weights: Sequence[Tensor], directions: int) -> list[Sequence[Tensor]]:
    each = len(weights) // directions
    return [weights[d * each : (d + 1) * each] for d in range(directions)]


def _direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight_ih, weight_hh, *rest = weights
    weight_hr = rest.pop() if len(rest) % 2 else None
    bias = rest[0] + rest[1] if rest else None
    T = len(x)
    y, cells = [x.new_zeros(h.shape)] * T, [x.new_zeros(c.shape)] * T
    for t in reversed(range(T)) if reverse else range(T):
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
    return _stack(y, h), h, c, _stack(cells, c)


def _stack(steps: list[Tensor], state: Tensor) -> Tensor:
    return torch.stack(steps) if steps else state.new_zeros((0, *state.shape))
