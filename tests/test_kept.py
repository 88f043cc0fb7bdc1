"""What a 16-bit layer keeps for its backward pass: no more bytes than nn.LSTM, and as accurate as float32."""

import pytest
import torch
from torch import nn

import fusedlstm
from benchmarks.accuracy import assert_as_accurate
from benchmarks.growth import kept_bytes
from fusedlstm import fakes

DTYPES = [torch.bfloat16, torch.float16]


def _reserved_bytes(lstm, T, N, x):
    """What nn.LSTM keeps beside its input.

    cuDNN tells the size of its reserve space by a query alone (cudnnGetRNNTempSpaceSizes), and a GPU is asked. On a CPU
    it is the least that a backward pass without a second forward pass reads, in the type of nn.LSTM: four gates, c and
    h of each unit and step.
    """
    if x.is_cuda:
        return sum(kept_bytes(lstm, x))
    return T * N * lstm.num_layers * (1 + lstm.bidirectional) * lstm.hidden_size * 6 * x.element_size()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "both_directions"])
def test_no_more_bytes_are_kept_than_by_nn_lstm(options, dtype, device):
    if dtype == torch.float16 and device.type not in fakes.float16_devices:
        pytest.skip("the CPU widens float16")
    T, N, I, H = 50, 4, 24, 32
    x = torch.randn(T, N, I, dtype=dtype, device=device, requires_grad=True)
    theirs = nn.LSTM(I, H, **options, dtype=dtype, device=device)
    states = 4 * N * H * theirs.num_layers * (1 + theirs.bidirectional) * dtype.itemsize  # h0, c0, h_n and c_n
    reserved = _reserved_bytes(theirs, T, N, x)
    ours = fusedlstm.replace_lstm(theirs)
    assert sum(kept_bytes(ours, x)) <= reserved + states


class _Rounded(torch.autograd.Function):
    """Rounds to a type, forward or backward."""

    @staticmethod
    def forward(ctx, value, dtype, backward):
        ctx.dtype = dtype if backward else None
        return value.clone() if backward else value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad if ctx.dtype is None else grad.to(ctx.dtype).to(grad.dtype), None, None


def _by_equations(x, h, c, weights, dtype=None):
    """In the type of ``x``; with a ``dtype`` what every 16-bit layer rounds is rounded: h, and the gates' gradients."""

    def rounded(value, backward):
        return value if dtype is None else _Rounded.apply(value, dtype, backward)

    weight_ih, weight_hh, bias_ih, bias_hh = weights
    outputs = []
    for of_step in x @ weight_ih.T + bias_ih + bias_hh:
        i, f, g, o = rounded(of_step + h @ weight_hh.T, backward=True).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = rounded(o.sigmoid() * c.tanh(), backward=False)
        outputs.append(h)
    return torch.stack(outputs), h[None], c[None]


def _assert_as_accurate_as_float32_gates(gates, dtype, recompute, device):
    """Over 100 steps f is 0.998, of which bfloat16 would make 1: gradients would be half as much again."""
    T, N, I, H = 100, 4, 6, 16
    lstm = fusedlstm.LSTM(I, H, recompute=recompute, dtype=dtype, device=device)
    with torch.no_grad():
        for bias, mean in zip(
            lstm.bias_ih_l0.chunk(4), [0, 6, 0, 0] if gates == "long_memory" else [4] * 4, strict=True
        ):
            bias.copy_(torch.randn(H) * 0.3 + mean)
    x, h0, c0 = (torch.randn(shape).to(lstm.weight_ih_l0) for shape in ((T, N, I), (1, N, H), (1, N, H)))
    leaves = {"x": x, "h0": h0, "c0": c0} | {name: weight.detach() for name, weight in lstm.named_parameters()}
    cotangents = [torch.randn(shape).to(x) for shape in ((T, N, H), (1, N, H), (1, N, H))]

    def gradients(function, compute):
        own = {name: leaf.to(compute).requires_grad_() for name, leaf in leaves.items()}
        outputs = function(*own.values())
        grads = torch.autograd.grad(outputs, list(own.values()), [cotangent.to(compute) for cotangent in cotangents])
        return dict(zip(own, grads, strict=True))

    def by_module(x, h0, c0, *weights):
        named = dict(zip(list(leaves)[3:], weights, strict=True))
        y, state = torch.func.functional_call(lstm, named, (x, (h0, c0)))
        return y, *state

    def by_equations(rounded):
        return lambda x, h0, c0, *weights: _by_equations(x, h0[0], c0[0], weights, rounded)

    ours = gradients(by_module, dtype)
    truth = gradients(by_equations(None), torch.float64)
    in_float32 = gradients(by_equations(dtype), torch.float32)
    assert_as_accurate(ours, [{name: grad.to(dtype) for name, grad in in_float32.items()}], truth)


def _cases(test):
    test = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])(test)
    test = pytest.mark.parametrize("dtype", DTYPES, ids=str)(test)
    return pytest.mark.parametrize("gates", ["long_memory", "saturated"])(test)


@_cases
def test_gradients_are_those_of_gates_in_float32(gates, dtype, recompute):
    _assert_as_accurate_as_float32_gates(gates, dtype, recompute, torch.device("cpu"))


@_cases
@pytest.mark.parametrize("strategy", ["stepwise", "persistent"])
def test_gradients_on_a_gpu_are_those_of_gates_in_float32(gates, dtype, recompute, strategy, machine):
    with machine.running(strategy, machine.multiprocessors):
        _assert_as_accurate_as_float32_gates(gates, dtype, recompute, machine.device)
