"""What tests compare with: nn.LSTM, a stack computed by the equations, products in TF32; and the gradients of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fusedlstm import reference

State = tuple[Tensor, Tensor]
Result = TypeVar("Result")


def unless_onednn_refuses(run: Callable[[], Result]) -> Result | None:
    """What ``run`` returns, or None where nn.LSTM failed because oneDNN has no LSTM of the dtype for this processor.

    Under autocast nn.LSTM uses oneDNN on every processor, where bfloat16 needs AVX-512 and float16 AVX512-FP16.
    """
    try:
        return run()
    except RuntimeError as error:
        if "could not create a primitive descriptor for the LSTM" not in str(error):
            raise
        return None


def reference_lstm(module: nn.RNNBase, x: Tensor, hx: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
    """A whole nn.LSTM (without dropout) by the equations alone; x and the output are [T, N, ...]."""
    D = 2 if module.bidirectional else 1
    weights = [getattr(module, name) for name in module._flat_weights_names]
    each = len(weights) // module.num_layers
    h_n, c_n = [], []
    for layer in range(module.num_layers):
        states = slice(layer * D, (layer + 1) * D)
        of_layer = weights[layer * each : (layer + 1) * each]
        x, h, c, _ = reference.layer(x, hx[0][states], hx[1][states], of_layer, lengths)
        h_n.append(h)
        c_n.append(c)
    return x, (torch.cat(h_n), torch.cat(c_n))


class Tf32Products(TorchFunctionMode):
    """Rounds the factors of the equations' products to TF32, 10 bits to nearest, forward and backward.

    float32 layers may use TF32 on a GPU. nn.LSTM alone does not show its error: for some sizes cuDNN does not use TF32
    (at H 127, N 7 the error is a seventh of what TF32 gives).
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            product = _Tf32Linear.apply(*args[:2])
            bias = (*args, None)[2]
            return product if bias is None else product + bias
        return function(*args, **(kwargs or {}))


class _Tf32Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight):
        ctx.save_for_backward(input, weight)
        return rounded_to_tf32(input) @ rounded_to_tf32(weight).t()

    @staticmethod
    def backward(ctx, grad):
        input, weight = (rounded_to_tf32(tensor) for tensor in ctx.saved_tensors)
        grad = rounded_to_tf32(grad)
        return grad @ weight, grad.flatten(0, -2).t() @ input.flatten(0, -2)


def rounded_to_tf32(tensor: Tensor) -> Tensor:
    bits = tensor.float().contiguous().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32).to(tensor.dtype)


def random_state(module: nn.RNNBase, N: int, dtype: torch.dtype, device: torch.device) -> State:
    states = module.num_layers * (2 if module.bidirectional else 1)
    sizes = module.proj_size or module.hidden_size, module.hidden_size
    h0, c0 = (torch.randn(states, N, size, dtype=dtype, device=device) for size in sizes)
    return h0, c0


def results(inputs: Mapping[str, Tensor], outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradient of every input under the given cotangents of the outputs."""
    named = dict(zip(("y", "h_n", "c_n"), (out.detach() for out in outputs), strict=True))
    grads = torch.autograd.grad(outputs, list(inputs.values()), cotangents, allow_unused=True)
    for (name, tensor), grad in zip(inputs.items(), grads, strict=True):
        named[f"grad_{name}"] = torch.zeros_like(tensor) if grad is None else grad
    return named
