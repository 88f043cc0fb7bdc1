"""Values and gradients of the layers: the 2x rule over the option grid, gradcheck, gradgradcheck."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, Case
from comparison import Tf32Products, random_state, reference_lstm, results
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fusedlstm
from benchmarks.accuracy import assert_as_accurate

# Warnings of torch about its own paths, which are run for comparison.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN"),
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
]


# The largest error of a small problem varies by chance; that of several draws varies less.
DRAWS = 4


def _check(
    case: Case, dtype: torch.dtype, device: torch.device, recompute: bool = False, draws_of: int = DRAWS
) -> None:
    torchs = nn.LSTM(case.I, case.H, **case.options, dtype=dtype, device=device)
    ours = fusedlstm.LSTM(case.I, case.H, **case.options, dtype=dtype, device=device, recompute=recompute)
    ours.load_state_dict(torchs.state_dict())
    truth = nn.LSTM(case.I, case.H, **case.options, dtype=torch.float64)
    truth.load_state_dict(torchs.state_dict())
    draws = [_draw(truth, case, dtype) for _ in range(draws_of)]

    def run(module, forward):
        runs = [_run(module, forward, *draw) for draw in draws]
        return {name: torch.stack([results[name].cpu() for results in runs]) for name in runs[0]}

    true = run(truth, _by_equations)
    on_gpu = device.type == "cuda"
    for tf32 in (False, True) if on_gpu and dtype == torch.float32 else (False,):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            got = run(ours, _call)
        if dtype == torch.float64:
            for name in true:
                torch.testing.assert_close(got[name], true[name], msg=lambda text, name=name: f"{name}: {text}")
            return
        own = []
        for fast in (True, False):
            with (
                torch.backends.cudnn.flags(enabled=fast, allow_tf32=tf32)
                if on_gpu
                else torch.backends.mkldnn.flags(enabled=fast)
            ):
                own.append(run(torchs, _call))
        if tf32:
            with Tf32Products():
                rounded = run(truth, _by_equations)
            own.append({name: value.float() for name, value in rounded.items()})
        assert_as_accurate(got, own, true)


def _draw(truth: nn.RNNBase, case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Random x, h0, c0 and cotangents of y, h_n, c_n, rounded to dtype."""
    layout = (case.N, case.T) if truth.batch_first else (case.T, case.N)
    hx = random_state(truth, case.N, torch.float64, torch.device("cpu"))
    y = torch.randn(*layout, hx[0].shape[2] * (1 + truth.bidirectional))
    inputs = torch.randn(*layout, case.I), *hx
    cotangents = y, *(torch.randn_like(state) for state in hx)
    return [tensor.to(dtype) for tensor in inputs], [tensor.to(dtype) for tensor in cotangents]


def _run(module: nn.RNNBase, forward: Callable[..., Any], inputs: list[Tensor], cotangents: list[Tensor]):
    weight = module.weight_ih_l0
    x, h0, c0 = (tensor.to(weight).requires_grad_() for tensor in inputs)
    y, state = forward(module, x, (h0, c0))
    leaves = {"x": x, "h0": h0, "c0": c0} | dict(module.named_parameters())
    return results(leaves, (y, *state), [tensor.to(weight) for tensor in cotangents])


def _call(module, x, hx):
    return module(x, hx)


def _by_equations(module, x, hx):
    y, state = reference_lstm(module, x.transpose(0, 1) if module.batch_first else x, hx)
    return y.transpose(0, 1) if module.batch_first else y, state


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype, device):
    _check(case, dtype, device)


def test_gradients_of_weights_over_many_rows():
    """48,000 entries, as forecasters of many series have them. A sum that adds each of its parts to all those before it
    had four times the error of nn.LSTM's here."""
    _check(Case("many_rows", 20, 2400, 20, 64, {"num_layers": 2}), torch.float32, torch.device("cpu"), draws_of=1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("one_step", "odd", "long", "all")], ids=str)
def test_recomputed_gates_give_gradients_as_accurate(case, dtype, device):
    _check(case, dtype, device, recompute=True)


@given(
    T=st.integers(1, 9),
    N=st.integers(1, 15),
    I=st.integers(1, 20),
    H=st.integers(2, 40),
    num_layers=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    projected=st.booleans(),
    dtype=st.sampled_from(["f32", "f64", "bf16"]),
)
def test_values_and_gradients_of_any_option(T, N, I, H, num_layers, bias, batch_first, bidirectional, projected, dtype):
    options = {"num_layers": num_layers, "bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    _check(Case("any", T, N, I, H, options | {"proj_size": H // 2 * projected}), DTYPES[dtype], torch.device("cpu"))


def _leaves(*shapes, device):
    return [torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("lengths", [None, [3, 0, 2]], ids=["full", "lengths"])
@pytest.mark.parametrize("proj_size", [0, 2], ids=["plain", "projected"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "bidirectional"])
def test_gradcheck_and_gradgradcheck(bidirectional, proj_size, lengths, device):
    T, N, I, H = 3, 3, 2, 3
    module = fusedlstm.LSTM(I, H, bidirectional=bidirectional, proj_size=proj_size, dtype=torch.float64, device=device)
    D, P = 1 + bidirectional, proj_size or H
    x, h0, c0 = _leaves((T, N, I), (D, N, P), (D, N, H), device=device)
    row_lengths = None if lengths is None else torch.tensor(lengths, device=device)

    def layer(x, h0, c0, *weights):
        y, h_n, c_n, cells, _ = torch.ops.fusedlstm.lstm_forward(
            x, h0, c0, list(weights), row_lengths, None, None, False, True, True
        )
        return y, h_n, c_n, cells

    inputs = (x, h0, c0, *module.parameters())
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs)


def test_gradient_penalty_through_the_module(device):
    """WGAN-GP differentiates the norm of a gradient, which cuDNN cannot; torch without it can."""
    torchs = nn.LSTM(3, 4, 2, dtype=torch.float64, device=device)
    ours = fusedlstm.LSTM(3, 4, 2, dtype=torch.float64, device=device)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    penalties = []
    for module in (torchs, ours):
        with torch.backends.cudnn.flags(enabled=False) if device.type == "cuda" else contextlib.nullcontext():
            (grad,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        penalty = (grad.norm() - 1) ** 2
        penalties.append(torch.autograd.grad(penalty, [x, *module.parameters()], allow_unused=True))
    for ours_grad, torchs_grad in zip(penalties[1], penalties[0], strict=True):
        torch.testing.assert_close(ours_grad, torchs_grad)


def test_backward_in_eval_mode(device):
    module = fusedlstm.LSTM(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    grads = [torch.autograd.grad(module.train(mode)(x)[0].sum(), x)[0] for mode in (True, False)]
    assert torch.equal(*grads)


def test_retained_graph_gives_the_same_gradients(device):
    module = fusedlstm.LSTM(3, 4, 2, bidirectional=True, device=device)
    loss = module(torch.randn(5, 2, 3, device=device))[0].sum()
    first = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(module.parameters()))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0", "x"])
def test_a_frozen_input_leaves_the_other_gradients_alone(frozen, device):
    module = fusedlstm.LSTM(3, 6, proj_size=2, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)

    def grads():
        module.zero_grad()
        x.grad = None
        module(x)[0].square().sum().backward()
        return {"x": x.grad} | {name: p.grad for name, p in module.named_parameters()}

    everything = grads()
    (x if frozen == "x" else getattr(module, frozen)).requires_grad_(False)
    without = grads()
    assert without.pop(frozen) is None
    assert all(torch.equal(everything[name], grad) for name, grad in without.items())
