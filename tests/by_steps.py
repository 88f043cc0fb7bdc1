"""An LSTM with lengths and resets computed step by step by torch.lstm_cell, each sequence and each segment alone."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Results(NamedTuple):
    """D directions, L layers; zero past the end of a sequence."""

    y: Tensor  # [T, N, D*P]
    h_n: Tensor  # [L*D, N, P]
    c_n: Tensor  # [L*D, N, H]
    h_all: Tensor  # [L*D, T, N, P]
    c_all: Tensor  # [L*D, T, N, H]


def run(module: nn.RNNBase, x: Tensor, h0: Tensor, c0: Tensor, lengths: list[int], resets: Tensor) -> Results:
    """All layers, without dropout; x is [T, N, I], resets bool [T, N]."""
    D = 1 + module.bidirectional
    weights = [getattr(module, name) for name in module._flat_weights_names]
    each = len(weights) // (module.num_layers * D)
    h_n, c_n, h_all, c_all = [], [], [], []
    for layer in range(module.num_layers):
        for index in range(layer * D, (layer + 1) * D):
            sequences = [
                _one(
                    x[:length, n],
                    h0[index, n],
                    c0[index, n],
                    weights[index * each :][:each],
                    resets[:length, n],
                    index % D,
                )
                for n, length in enumerate(lengths)
            ]
            h, c, h_last, c_last = zip(*sequences, strict=True)
            h_n.append(torch.stack(h_last))
            c_n.append(torch.stack(c_last))
            h_all.append(_padded(h, len(x)))
            c_all.append(_padded(c, len(x)))
        x = torch.cat(h_all[-D:], 2)
    return Results(x, *map(torch.stack, (h_n, c_n, h_all, c_all)))


def _one(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], resets: Tensor, reverse: int) -> tuple[Tensor, ...]:
    """One sequence in one direction: x is [length, I]; returns every h and c, and the last of each."""
    weight_ih, weight_hh, *rest = weights
    weight_hr = rest.pop() if len(rest) % 2 else None
    weight_hh_wide = F.pad(weight_hh, (0, len(c) - len(h)))
    borders = [0, *(t for t in range(1, len(x)) if resets[t]), len(x)]
    segments = [range(begin, end) for begin, end in pairwise(borders) if begin < end]
    if not reverse and len(x) and resets[0]:
        h, c = torch.zeros_like(h), torch.zeros_like(c)
    every_h, every_c = [None] * len(x), [None] * len(x)
    for number, segment in enumerate(reversed(segments) if reverse else segments):
        if number > 0:
            h, c = torch.zeros_like(h), torch.zeros_like(c)
        for t in reversed(segment) if reverse else segment:
            # torch.lstm_cell has no projection: h is padded to H, and weight_hh by columns of zero.
            wide = F.pad(h, (0, len(c) - len(h)))[None], c[None]
            h, c = (state[0] for state in torch.lstm_cell(x[t, None], wide, weight_ih, weight_hh_wide, *rest))
            if weight_hr is not None:
                h = weight_hr @ h
            every_h[t], every_c[t] = h, c
    return _stacked(every_h, h), _stacked(every_c, c), h, c


def _stacked(states: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(states) if states else like.new_zeros(0, len(like))


def _padded(sequences: list[Tensor], T: int) -> Tensor:
    return torch.stack([F.pad(each, (0, 0, 0, T - len(each))) for each in sequences], 1)
