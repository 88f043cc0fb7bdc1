"""Errors of a call: their classes, and better ones for what an operator or torch's dispatcher could only half say."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class ArgumentError(ValueError, RuntimeError):
    """A shape, dtype, device, length or memory does not fit: a ValueError, and what ``nn.LSTM`` raises for most."""


class ArgumentTypeError(TypeError, AttributeError, RuntimeError):
    """An argument is of the wrong type: a TypeError, and the others since ``nn.LSTM`` raises any of the three."""


def explain(error: Exception, x: Tensor, others: Iterable[tuple[str, Any]]) -> None:
    """Raises a clearer error in place of one that a call of an operator has raised, if there is one.

    torch's dispatcher refuses what is no dense tensor before the operator sees it, and names no argument. An error of
    memory has lost its class, since C++ exceptions do not pass the stable ABI; torch raises its own once asked for the
    same number of bytes.

    Args:
        error: what the call has raised.
        x: the call's input.
        others: name and value of each other tensor of the call; a tensor that may be absent only if it is given.

    Raises:
        ArgumentTypeError: one of the others is no tensor.
        ArgumentError: a tensor has another layout than torch.strided, or is quantized.
        torch.OutOfMemoryError: a GPU has too little memory.

    Example:
        >>> try:
        ...     y = torch.ops.fusedlstm.lstm_inference(x, h0, c0, weights, None, None, False)
        ... except RuntimeError as error:
        ...     errors.explain(error, x, [("h0", h0), ("c0", c0)])
        ...     raise
    """
    for name, tensor in [("input", x), *others]:
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"lstm: {name} must be a torch.Tensor, got {type(tensor).__name__}") from None
        if tensor.layout != torch.strided:
            raise ArgumentError(f"lstm: {name} must be strided, got {tensor.layout}; use .to_dense()") from None
        if tensor.is_quantized:
            raise ArgumentError(f"lstm: {name} must not be quantized, got {tensor.dtype}; use .dequantize()") from None
    if failed := re.search(r"could not allocate (\d+) bytes on (cuda:\d+)", str(error)):
        torch.empty(int(failed[1]), dtype=torch.uint8, device=failed[2])
