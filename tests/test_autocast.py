"""torch.autocast: the dtypes nn.LSTM gives, its accuracy, parameters in float32, gradient scaling."""

import copy
from itertools import product

import pytest
import torch
from comparison import random_state, reference_lstm, results, unless_onednn_refuses
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fusedlstm
from benchmarks.accuracy import assert_as_accurate
from fusedlstm import reference

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

LOWER = {"bf16": torch.bfloat16, "f16": torch.float16}
OPTIONS = {"plain": {"num_layers": 2}, "bidirectional": {"bidirectional": True}, "projected": {"proj_size": 3}}


def _flat(result):
    output, state = result
    return [output.data if isinstance(output, PackedSequence) else output, *state]


def _packed(x):
    return pack_padded_sequence(x, torch.tensor([5, 1, 4]), enforce_sorted=False)


def _call(module, lower, kind, inputs, device):
    x, hx = torch.randn(5, 3, 4, device=device), None
    if inputs == "lower":
        x = x.to(lower)
    if inputs == "lower_states":
        hx = tuple(state.to(lower) for state in random_state(module, 3, torch.float32, device))
    # Inference, since oneDNN computes gradients in bfloat16 only.
    with torch.no_grad(), torch.autocast(device.type, lower):
        return _flat(module(_packed(x) if kind == "packed" else x, hx))


def _dtypes(lower, options, kind, inputs, device):
    """The dtypes of output, h_n and c_n that `ops.lstm_layer` documents."""
    c_dtype = torch.float32 if inputs == "float32" else lower  # of the given states, otherwise of x
    if device.type == "cuda" or (kind == "padded" and "proj_size" not in options):
        return [lower, lower, lower]
    return [lower, lower, c_dtype] if "proj_size" in options else [c_dtype, c_dtype, c_dtype]


every_call = pytest.mark.parametrize(
    ("lower", "options", "kind", "inputs"),
    [
        pytest.param(LOWER[lower], OPTIONS[options], kind, inputs, id=f"{inputs}-{kind}-{options}-{lower}")
        for lower, options, kind, inputs in product(
            LOWER, OPTIONS, ("padded", "packed"), ("float32", "lower", "lower_states")
        )
    ],
)


@every_call
def test_dtypes_are_the_documented_ones(lower, options, kind, inputs, device):
    lstm = fusedlstm.LSTM(4, 7, **options, device=device)
    got = [tensor.dtype for tensor in _call(lstm, lower, kind, inputs, device)]
    assert got == _dtypes(lower, options, kind, inputs, device)


@every_call
def test_the_documented_dtypes_are_those_of_nn_lstm(lower, options, kind, inputs):
    """On a CPU only: on a GPU nn.LSTM computes in float16, whatever autocast's dtype."""
    cpu = torch.device("cpu")
    expected = unless_onednn_refuses(lambda: _call(nn.LSTM(4, 7, **options), lower, kind, inputs, cpu))
    if expected is None:
        pytest.skip(f"oneDNN has no LSTM of {lower} for this processor, and nn.LSTM fails under autocast")
    assert [tensor.dtype for tensor in expected] == _dtypes(lower, options, kind, inputs, cpu)


@pytest.mark.parametrize("lower", LOWER.values(), ids=LOWER)
@pytest.mark.parametrize("inputs", ["float32", "lower", "lower_states", "lower_and_no_states"])
def test_dtypes_are_those_of_nn_lstm_cell(lower, inputs, device):
    torchs = nn.LSTMCell(4, 7, device=device)
    ours = fusedlstm.replace_lstm(copy.deepcopy(torchs))
    x, h, c = (torch.randn(3, size, device=device) for size in (4, 7, 7))
    call = {
        "float32": (x, (h, c)),
        "lower": (x.to(lower), (h, c)),
        "lower_states": (x, (h.to(lower), c.to(lower))),
        "lower_and_no_states": (x.to(lower),),
    }[inputs]
    with torch.autocast(device.type, lower):
        assert [tensor.dtype for tensor in ours(*call)] == [tensor.dtype for tensor in torchs(*call)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_accuracy_is_that_of_nn_lstm(options, device):
    lower = torch.float16 if device.type == "cuda" else torch.bfloat16  # nn.LSTM's dtype on that device
    torchs = nn.LSTM(8, 33, **options, device=device)
    ours = fusedlstm.replace_lstm(copy.deepcopy(torchs))
    x, hx = torch.randn(6, 5, 8, device=device), random_state(torchs, 5, torch.float32, device)
    cotangents = [torch.randn_like(tensor) for tensor in _flat(torchs(x, hx))]

    def run(module, dtype=torch.float32, autocast=True):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, *hx)]
        inputs = dict(zip(("x", "h0", "c0"), leaves, strict=True)) | dict(module.named_parameters())
        with torch.autocast(device.type, lower, enabled=autocast):
            forward = module if autocast else lambda *args: reference_lstm(module, *args)
            outputs = _flat(forward(leaves[0], tuple(leaves[1:])))
        return results(inputs, outputs, [c.to(out) for c, out in zip(cotangents, outputs, strict=True)])

    truth = run(copy.deepcopy(torchs).double(), torch.float64, autocast=False)
    got = run(ours)
    own = unless_onednn_refuses(lambda: run(torchs))
    if own is None:
        # Without oneDNN torch computes only the products in autocast's dtype, and returns float32.
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            own = {name: value.to(got[name].dtype) for name, value in run(torchs).items()}
    assert_as_accurate(got, [own], truth)
    assert {got[f"grad_{name}"].dtype for name, _ in ours.named_parameters()} == {torch.float32}


class _CastCounter(TorchDispatchMode):
    def __init__(self, tensors):
        super().__init__()
        self.casts = {tensor.data_ptr(): 0 for tensor in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.casts:
            self.casts[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


def test_each_weight_is_cast_once_a_call(device):
    lstm = fusedlstm.LSTM(4, 7, 2, device=device)
    with _CastCounter(lstm.parameters()) as counter, torch.autocast(device.type, torch.bfloat16):
        lstm(torch.randn(9, 3, 4, device=device))[0].float().sum().backward()
    assert set(counter.casts.values()) == {1}
    assert {parameter.dtype for parameter in lstm.parameters()} == {torch.float32}


def test_float64_is_left_alone(device):
    lstm = fusedlstm.LSTM(4, 7, dtype=torch.float64, device=device)
    x = torch.randn(5, 3, 4, dtype=torch.float64, device=device)
    expected = lstm(x)[0]
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(lstm(x)[0], expected)
        with pytest.raises(ValueError, match=r"input must have the dtype of the parameters, torch\.float64"):
            lstm(x.float())


def test_extras_and_the_functional_form(device):
    lstm = fusedlstm.LSTM(4, 7, bidirectional=True, device=device)
    x, hx = torch.randn(5, 3, 4, device=device), random_state(lstm, 3, torch.float32, device)
    extras = {
        "lengths": torch.tensor([5, 0, 2], device=device),
        "resets": torch.rand(5, 3, device=device) < 0.3,
        "return_states": True,
    }
    with torch.autocast(device.type, torch.bfloat16):
        output, last, every = lstm(x, hx, **extras)
        again, _, _ = fusedlstm.lstm(x, hx, list(lstm.parameters()), bidirectional=True, **extras)
    assert {tensor.dtype for tensor in (output, *last, *every)} == {torch.bfloat16}
    assert torch.equal(output, again)
    lowered = copy.deepcopy(lstm).bfloat16()
    expected, _, _ = lowered(x.bfloat16(), tuple(state.bfloat16() for state in hx), **extras)
    assert torch.equal(output, expected)


def test_second_derivatives_and_transforms_under_autocast(device):
    lstm = fusedlstm.LSTM(4, 7, device=device)
    x = torch.randn(5, 3, 4, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16):
        (first,) = torch.autograd.grad(lstm(x)[0].float().square().sum(), x, create_graph=True)
        first.square().sum().backward()
        each = torch.func.vmap(lambda batch: lstm(batch)[0])(x.detach()[None])
    assert x.grad.isfinite().all()
    assert x.grad.any()

    def by_equations(dtype):
        inputs = (tensor.detach().to(dtype) for tensor in (x, x.new_zeros(1, 3, 7), x.new_zeros(1, 3, 7)))
        return {"y": reference.layer(*inputs, [weight.detach().to(dtype) for weight in lstm.parameters()])[0]}

    assert_as_accurate({"y": each[0]}, [by_equations(torch.bfloat16)], by_equations(torch.float64))


def test_gradient_scaling_skips_an_overflow_and_trains(device):
    lstm = fusedlstm.LSTM(4, 7).to(device)
    optimizer = torch.optim.SGD(lstm.parameters(), 0.5)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**30)
    x, target = torch.randn(5, 3, 4).to(device), 0.5 * torch.randn(5, 3, 7).tanh().to(device)
    before = copy.deepcopy(lstm.state_dict())
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            output, _ = lstm(x)
            loss = (output.float() - target).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        if step == 0:
            assert all(torch.equal(before[name], value) for name, value in lstm.state_dict().items())
            assert scaler.get_scale() < 2.0**30
    assert losses[-1] < 0.7 * losses[0]


def _train(module, lower, x, target):
    """Losses of 20 steps, of which the twelfth has an infinite one."""
    kind, overflows = x.device.type, 12
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    scaler = torch.amp.GradScaler(kind, init_scale=2.0**10)
    losses = []
    for step in range(20):
        before, scale = copy.deepcopy(module.state_dict()), scaler.get_scale()
        optimizer.zero_grad()
        with torch.autocast(kind, lower):
            output, _ = module(x)
            loss = (output.float() - target).square().mean()
        losses.append(loss.item())
        scaler.scale(loss * torch.inf if step == overflows else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        kept = [torch.equal(before[name], value) for name, value in module.state_dict().items()]
        assert all(kept) if step == overflows else not any(kept)
        assert scaler.get_scale() == (scale / 2 if step == overflows else scale)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    return torch.tensor(losses)


@pytest.mark.parametrize("lower", LOWER.values(), ids=LOWER)
def test_scaled_training_is_that_of_nn_lstm(lower, cuda):
    """nn.LSTM computes in float16 on a GPU, whatever autocast's dtype."""
    torchs = nn.LSTM(4, 7, 2).to(cuda)
    ours = fusedlstm.replace_lstm(copy.deepcopy(torchs))
    x, target = torch.randn(5, 3, 4).to(cuda), 0.5 * torch.randn(5, 3, 7).to(cuda).tanh()
    expected, got = (_train(module, lower, x, target) for module in (torchs, ours))
    assert got[-1] < 0.9 * got[0]
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0)
