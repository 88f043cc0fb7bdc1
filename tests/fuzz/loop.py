"""The truth: an LSTM as a loop over layers, directions, sequences and steps, written for the fuzz alone.

It shares no line with fusedlstm/reference.py, and computes one sequence at a time, so that it has no batch, padding or
order of sequences. Gradients are autograd's.
"""

import torch
from fuzz.problem import Problem
from torch import Tensor


def run(
    problem: Problem, x: Tensor, h0: Tensor, c0: Tensor, weights: list[Tensor], resets: Tensor | None
) -> dict[str, Tensor]:
    """All outputs, zero past the end of a sequence.

    x is [T, N, I] (never read past the end of a sequence), h0 [L*D, N, P], c0 [L*D, N, H], resets bool [T, N]. Results
    are y [T, N, D*P], h_n, c_n as h0, c0, and h_all, c_all [L*D, T, N, P or H].
    """
    T, N, D = problem.T, problem.N, problem.D
    inputs = [list(step.unbind()) for step in x.unbind()]  # inputs[t][n]
    starts = [[0] * N for _ in range(T)] if resets is None else resets.int().tolist()
    each = problem.weights_of_each
    h_all, c_all, h_n, c_n = [], [], [], []  # [L*D] of [T][N] and of [N]
    for index in range(problem.L * D):
        reverse = index % D == 1
        h_of_step = [[h0.new_zeros(problem.outputs)] * N for _ in range(T)]
        c_of_step = [[h0.new_zeros(problem.H)] * N for _ in range(T)]
        h_last, c_last = [], []
        for n, length in enumerate(problem.steps):
            h, c = h0[index, n], c0[index, n]
            order = range(length - 1, -1, -1) if reverse else range(length)
            before = None
            for t in order:
                # In a later segment (or an earlier one, in reverse) than the step before: nothing is carried over.
                border = starts[t][n] if not reverse else before is not None and starts[before][n]
                if border:
                    h, c = torch.zeros_like(h), torch.zeros_like(c)
                h, c = _step(inputs[t][n], h, c, weights[index * each : (index + 1) * each], problem.P > 0)
                h_of_step[t][n], c_of_step[t][n] = h, c
                before = t
            h_last.append(h)
            c_last.append(c)
        h_all.append(h_of_step)
        c_all.append(c_of_step)
        h_n.append(h_last)
        c_n.append(c_last)
        if index % D == D - 1:
            layer = h_all[-D:]
            inputs = [[torch.cat([of_one[t][n] for of_one in layer]) for n in range(N)] for t in range(T)]
    states = (problem.L * D,)
    return {
        "y": _stacked([inputs], (1, T, N, D * problem.outputs), h0)[0],
        "h_n": _stacked([h_n], (1, *states, N, problem.outputs), h0)[0],
        "c_n": _stacked([c_n], (1, *states, N, problem.H), h0)[0],
        "h_all": _stacked(h_all, (*states, T, N, problem.outputs), h0),
        "c_all": _stacked(c_all, (*states, T, N, problem.H), h0),
    }


def _step(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], projected: bool) -> tuple[Tensor, Tensor]:
    H = len(c)
    sums = weights[0] @ x + weights[1] @ h
    if len(weights) >= 4:
        sums = sums + weights[2] + weights[3]
    enter, keep, show = torch.sigmoid(sums[:H]), torch.sigmoid(sums[H : 2 * H]), torch.sigmoid(sums[3 * H :])
    c = keep * c + enter * torch.tanh(sums[2 * H : 3 * H])
    h = show * torch.tanh(c)
    return weights[-1] @ h if projected else h, c


def _stacked(nested: list[list[list[Tensor]]], shape: tuple[int, ...], like: Tensor) -> Tensor:
    flat = [vector for outer in nested for inner in outer for vector in inner]
    return torch.stack(flat).view(shape) if flat else like.new_zeros(shape)
