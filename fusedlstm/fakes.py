"""What the operators return for meta and fake tensors: shapes and dtypes, and errors of devices."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedlstm import errors

# The types of devices on which a float16 layer keeps float16 gates and cell states; on others it keeps float32. Layers
# of other dtypes keep their own everywhere.
float16_devices = {"cuda"}


def register() -> None:
    """Registers the fake kernels of the operators."""
    kernels: dict[str, Callable[..., Any]] = {
        "inference": _inference,
        "forward": _forward,
        "recompute": _recompute,
        "backward": _backward,
    }
    for name, kernel in kernels.items():
        torch.library.register_fake(f"fusedlstm::lstm_{name}", kernel)


# `inputs` are the arguments that all operators have, in the order of csrc/ops.cpp: x, h0, c0, weights, lengths, resets,
# batch_sizes, allow_tf32.


def _check_devices(inputs: Sequence[Any], others: Iterable[tuple[str, Tensor]] = ()) -> None:
    """The operators' own check, where torch calls a fake kernel since any one tensor is fake or on the meta device.

    Names may ask for a size that a compiler leaves open, so they are made for an error alone. batch_sizes are on the
    CPU for every device.
    """
    x, h0, c0, weights, lengths, resets, *_ = inputs
    tensors = h0, c0, *weights, lengths, resets, *(tensor for _, tensor in others)
    if all(tensor is None or tensor.device == x.device for tensor in tensors):
        return
    for name, tensor in (*errors.named(h0, c0, weights, lengths, resets), *others):
        if tensor.device != x.device:
            raise errors.ArgumentError(f"lstm: {name} must be on the device of input, {x.device}, got {tensor.device}")


def _inference(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(inputs)
    x, h0, c0, *_ = inputs
    D, N, P = h0.shape
    return x.new_empty((*x.shape[:-1], D * P)), x.new_empty((D, N, P)), x.new_empty((D, N, c0.shape[2]))


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *inputs, keep_cells, keep_gates = arguments
    return *_inference(*inputs), *_kept(inputs, keep_cells, keep_gates)


def _recompute(*arguments: Any) -> tuple[Tensor, Tensor]:
    *inputs, y = arguments
    _check_devices(inputs, [("y", y)])
    return _kept(inputs, True, True)


def _kept(inputs: Sequence[Any], keep_cells: bool, keep_gates: bool) -> tuple[Tensor, Tensor]:
    x, _h0, c0, *_ = inputs
    D, _, H = c0.shape
    widened = x.dtype == torch.float16 and x.device.type not in float16_devices
    dtype = torch.float32 if widened else x.dtype

    def sequence(columns: int, kept: bool) -> Tensor:
        empty: Tensor = x.new_empty((*x.shape[:-1], columns) if kept else (0,), dtype=dtype)
        return empty

    return sequence(D * H, keep_cells), sequence(D * 4 * H, keep_gates)


def _backward(
    grad_y: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None, grad_cells: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    *inputs, y, cells, gates, need_x, need_h0, need_weights = arguments
    saved = ("y", y), ("cells", cells), ("gates", gates)
    _check_devices(inputs, [*saved, *errors.named_gradients(grad_y, grad_h_n, grad_c_n, grad_cells)])
    x, h0, c0, weights, *_ = inputs

    def like(tensor: Tensor, needed: bool | int) -> Tensor:
        return tensor.new_empty(tensor.shape if needed else (0,))

    grad_weights = [like(weight, needed) for weight, needed in zip(weights, need_weights, strict=True)]
    return like(x, need_x), like(h0, need_h0), like(c0, True), grad_weights
