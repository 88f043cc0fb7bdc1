"""What the operators return for meta and fake tensors: shapes and dtypes, and errors of devices."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fusedlstm import errors


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


def _check_devices(x: Tensor, inputs: tuple[Any, ...], others: Iterable[tuple[str, Tensor]] = ()) -> None:
    """The operators' own check, where torch calls a fake kernel since any one tensor is fake or on the meta device.

    ``inputs`` are the operator's arguments from h0 to resets. Names may ask for a size that a compiler leaves open, so
    they are made for an error alone.
    """
    h0, c0, weights, lengths, resets = inputs
    tensors = h0, c0, *weights, lengths, resets, *(tensor for _, tensor in others)
    if all(tensor is None or tensor.device == x.device for tensor in tensors):
        return
    for name, tensor in (*errors.named(*inputs), *others):
        if tensor.device != x.device:
            raise errors.ArgumentError(f"lstm: {name} must be on the device of input, {x.device}, got {tensor.device}")


def _inference(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    batch_sizes: Tensor | None,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(x, (h0, c0, weights, lengths, resets))
    D, N, P = h0.shape
    return x.new_empty((*x.shape[:-1], D * P)), x.new_empty((D, N, P)), x.new_empty((D, N, c0.shape[2]))


def _forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    batch_sizes: Tensor | None,
    allow_tf32: bool,
    keep_cells: bool,
    keep_gates: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    cells, gates = _kept(x, c0, keep_cells, keep_gates)
    return *_inference(x, h0, c0, weights, lengths, resets, batch_sizes, allow_tf32), cells, gates


def _recompute(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    batch_sizes: Tensor | None,
    allow_tf32: bool,
    y: Tensor,
) -> tuple[Tensor, Tensor]:
    _check_devices(x, (h0, c0, weights, lengths, resets), [("y", y)])
    return _kept(x, c0, True, True)


def _kept(x: Tensor, c0: Tensor, keep_cells: bool, keep_gates: bool) -> tuple[Tensor, Tensor]:
    D, _, H = c0.shape
    dtype = torch.promote_types(x.dtype, torch.float32)  # of 16-bit layers too, cell states and gates are float32

    def sequence(columns: int, kept: bool) -> Tensor:
        return x.new_empty((*x.shape[:-1], columns) if kept else (0,), dtype=dtype)

    return sequence(D * H, keep_cells), sequence(D * 4 * H, keep_gates)


def _backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    batch_sizes: Tensor | None,
    allow_tf32: bool,
    y: Tensor,
    cells: Tensor,
    gates: Tensor,
    need_x: bool,
    need_h0: bool,
    need_weights: list[int],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    saved = ("y", y), ("cells", cells), ("gates", gates)
    grads = errors.named_gradients(grad_y, grad_h_n, grad_c_n, grad_cells)
    _check_devices(x, (h0, c0, weights, lengths, resets), [*saved, *grads])

    def like(tensor: Tensor, needed: bool | int) -> Tensor:
        return tensor.new_empty(tensor.shape if needed else (0,))

    grad_weights = [like(weight, needed) for weight, needed in zip(weights, need_weights, strict=True)]
    return like(x, need_x), like(h0, need_h0), like(c0, True), grad_weights
