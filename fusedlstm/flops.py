"""How many floating-point operations our operators do, for ``torch.utils.flop_counter``.

As in torch's own formulas, two for each multiplication and addition of the matrix products, and none for the rest.
Shapes are all that a formula knows: steps past the end of a sequence count too, as they do in plain torch.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

_Shape = Sequence[int]


def register(flop_counter: Any) -> None:
    """Gives ``FlopCounterMode`` the formulas of our operators.

    Args:
        flop_counter: the module ``torch.utils.flop_counter``.
    """
    operators = torch.ops.fusedlstm
    flop_counter.register_flop_formula([operators.lstm_inference, operators.lstm_forward])(_forward)
    flop_counter.register_flop_formula(operators.lstm_recompute)(_recompute)
    flop_counter.register_flop_formula(operators.lstm_backward)(_backward)


def _forward(x: _Shape, h0: _Shape, c0: _Shape, weights: Sequence[_Shape], *others: Any, **kwargs: Any) -> int:
    return 2 * _rows(x) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _recompute(x: _Shape, h0: _Shape, c0: _Shape, weights: Sequence[_Shape], *others: Any, **kwargs: Any) -> int:
    """The outputs are given, so nothing is projected."""
    gates = 4 * c0[2]
    return 2 * _rows(x) * c0[0] * gates * (x[-1] + h0[2])


def _backward(
    grad_y: _Shape | None,
    grad_h_n: _Shape | None,
    grad_c_n: _Shape | None,
    grad_cells: _Shape | None,
    x: _Shape,
    h0: _Shape,
    c0: _Shape,
    weights: Sequence[_Shape],
    lengths: _Shape | None,
    resets: _Shape | None,
    batch_sizes: _Shape | None,
    allow_tf32: bool,
    y: _Shape,
    cells: _Shape,
    gates: _Shape,
    need_x: bool,
    need_h0: bool,
    need_weights: Sequence[int],
    **kwargs: Any,
) -> int:
    (D, N, P), H = h0, c0[2]
    rows = _rows(x)
    to_previous = rows if need_h0 else max(rows - N, 0)  # the first step passes its gradient to h0
    products = D * 4 * H * (x[-1] * rows * need_x + P * to_previous)
    if P != H:
        products += D * H * P * rows
    of_weights = zip(weights, need_weights, strict=True)
    return 2 * (products + rows * sum(prod(weight) for weight, need in of_weights if need and len(weight) == 2))


def _rows(x: _Shape) -> int:
    """Steps of all sequences."""
    return prod(x[:-1])
