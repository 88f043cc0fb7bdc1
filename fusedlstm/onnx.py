"""Translates the package's operators to ONNX's LSTM operator, for torch.onnx; needs the package onnxscript."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

try:
    from onnxscript import ir
    from onnxscript import opset18 as op
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fusedlstm.onnx needs the package {error.name}; install it with: pip install fusedlstm[onnx]", name=error.name
    ) from error

from fusedlstm import ops  # noqa: F401 - registers the operators

_ops = torch.ops.fusedlstm


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations with which ``torch.onnx.export(..., dynamo=True)`` exports the LSTMs of a model.

    Each layer becomes one LSTM operator of ONNX. ``dynamic_shapes`` may make the steps and the batch dynamic.

    Returns:
        A value for ``custom_translation_table``.

    Raises:
        ValueError: while exporting: ONNX's LSTM has no projection, no ``resets``, no ``return_states`` and no
            PackedSequence.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html

    Example:
        >>> from fusedlstm.onnx import translations
        >>> model, x, table = fusedlstm.LSTM(10, 20).eval(), torch.randn(5, 3, 10), translations()
        >>> program = torch.onnx.export(model, (x,), dynamo=True, custom_translation_table=table, verbose=False)
    """
    return {_ops.lstm_inference.default: _layer, _ops.lstm_forward.default: _layer_and_states}


def _layer(
    x: Any, h0: Any, c0: Any, weights: Sequence[Any], lengths: Any, resets: Any, batch_sizes: Any, allow_tf32: bool
) -> tuple[Any, Any, Any]:
    D, _, P = h0.shape
    H = c0.shape[2]
    _require(P == H, "proj_size must be 0", "a projection")
    _require(resets is None, "resets must be None", "a mask")
    _require(batch_sizes is None, "input must be padded, with lengths,", "a PackedSequence")
    each = len(weights) // D
    directions = [weights[d * each : (d + 1) * each] for d in range(D)]

    def stacked(index: int) -> Any:
        """One weight of each direction, [D, 4H, ...], in ONNX's order of gates."""
        return op.Concat(*[_in_onnx_order(direction[index]) for direction in directions], axis=0)

    bias = op.Concat(stacked(2), stacked(3), axis=1) if each == 4 else None
    steps: Any = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    kind = "bidirectional" if D == 2 else "forward"
    y, h_n, c_n = op.LSTM(x, stacked(0), stacked(1), bias, steps, h0, c0, hidden_size=H, direction=kind)
    if lengths is not None:  # the standard does not say what the last states of a sequence of no steps are
        some = op.Reshape(op.Greater(lengths, _integers(0)), _integers(1, -1, 1))
        h_n, c_n = op.Where(some, h_n, h0), op.Where(some, c_n, c0)
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), _integers(0, 0, D * H))  # from [T, D, N, H]
    return y, h_n, c_n


def _layer_and_states(*arguments: Any) -> None:
    _require(False, "return_states must be False", "True")


def _in_onnx_order(weight: Any) -> Any:
    """[4H, ...] of gates i, f, g, o as [1, 4H, ...] of i, o, f, g; the exporter folds it into the weight."""
    gates = op.Gather(op.Reshape(weight, _integers(4, -1)), _integers(0, 3, 1, 2), axis=0)
    return op.Reshape(gates, _integers(1, *weight.shape))


def _integers(*values: int) -> Any:
    return op.Constant(value_ints=values)


def _require(holds: bool, rule: str, got: str) -> None:
    if not holds:
        raise ValueError(f"lstm: {rule} in an export to ONNX, whose LSTM has nothing like it, got {got}")
