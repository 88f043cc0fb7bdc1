"""Errors of a call: their classes, and better ones for what an operator or torch's dispatcher could only half say."""

import re
from collections.abc import Iterable, Iterator, Sequence
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
        ...     y = torch.ops.fusedlstm.lstm_inference(x, h0, c0, weights, None, None, None, False)
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


def named(
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Any],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    batch_sizes: Tensor | None = None,
) -> Iterator[tuple[str, Any]]:
    """The tensors of a call besides its input, with the names that the operators' errors have for them."""
    yield from (("h0", h0), ("c0", c0))
    each = len(weights) // max(int(h0.shape[0]), 1)
    names = ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if each >= 4 else ()), *["weight_hr"] * (each % 2)]
    for index, weight in enumerate(weights):
        known = len(names) == each
        yield f"{names[index % each]} of direction {index // each}" if known else f"weights[{index}]", weight
    steps = ("lengths", lengths), ("resets", resets), ("batch_sizes", batch_sizes)
    yield from ((name, tensor) for name, tensor in steps if tensor is not None)


def named_gradients(*grads: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    names = "grad_y", "grad_h_n", "grad_c_n", "grad_cells"
    yield from ((name, grad) for name, grad in zip(names, grads, strict=False) if grad is not None)
