"""Bad calls and unusual tensors: an error that nn.LSTM's callers catch, or nn.LSTM's numbers; never a silent result."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils import _pytree as pytree

import fusedlstm
from fusedlstm import errors

KINDS = {"LSTM": (nn.LSTM, fusedlstm.LSTM), "LSTMCell": (nn.LSTMCell, fusedlstm.LSTMCell)}
_ops = torch.ops.fusedlstm

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]


def _input(kind, *, state=False):
    batch = (3, 6 if state else 4)
    return torch.randn(batch if kind == "LSTMCell" else (1 if state else 5, *batch))


def _name(kind, weight):
    return weight if kind == "LSTMCell" else f"{weight}_l0"


def _set(module, name, weight):
    """What a user does who assigns to a module: the parameter has any shape, dtype and layout."""
    if isinstance(weight, torch.Tensor):
        weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
    module._parameters[name] = weight
    if isinstance(module, nn.LSTM):
        module._init_flat_weights()


CHANGES = {
    "double": lambda t: t.double(),
    "integers": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex64),
    "conjugated": lambda t: t.to(torch.complex64).conj(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "mkldnn": lambda t: t.to_mkldnn(),
    "none": lambda t: None,
    "numpy": lambda t: t.numpy(),
    "narrow": lambda t: t[..., :2],
    "rank": lambda t: t[None, None],
    "nested": lambda t: torch.nested.nested_tensor([t[0], t[0][:1]], layout=torch.jagged),
    "nested_strided": lambda t: torch.nested.nested_tensor([t[0], t[0][:1]]),
}
# nn.LSTM computes with some sparse tensors and none of another kind; we refuse all of them.
WORK_IN_NN_LSTM = {("LSTM", "hx[0]", "sparse"), ("LSTMCell", "hx[0]", "sparse"), ("LSTMCell", "input", "sparse")}
STATES = {
    "one": lambda h: h,
    "three": lambda h: (h, h, h),
    "text": lambda h: "hc",
    "none": lambda h: (h, None),
    "short": lambda h: (h[..., :1, :], h),
    "narrow": lambda h: (h, h[..., 1:]),
}


def _raised(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the question
        call()
    return caught.value


def _compare(kind, torchs_call, ours_call, nn_lstm_works=False):
    """The error of ours is one that a caller of nn.LSTM catches, and reads as ours; returns its text."""
    error = _raised(ours_call)
    if nn_lstm_works:
        torchs_call()
    else:
        expected = _raised(torchs_call)
        # These are of the dispatcher, and of a tensor that is taken for a pair; nobody means to catch them.
        by_chance = isinstance(expected, NotImplementedError | IndexError)
        assert isinstance(error, RuntimeError if by_chance else type(expected)), (expected, error)
    assert isinstance(error, ValueError | TypeError | RuntimeError)
    assert re.match(r"lstm(_cell)?: \S+( of direction 0| parameters)? must ", str(error)), error
    assert "csrc" not in str(error)
    return str(error)


def _kinds_and_changes(*but):
    """A cell takes no nested tensor of two dimensions, and of one of mkldnn torch makes no view."""
    for kind in KINDS:
        out = (*but, "nested", "nested_strided", "mkldnn") if kind == "LSTMCell" else but
        yield from ((kind, change) for change in CHANGES if change not in out)


@pytest.mark.parametrize(("kind", "change"), [*_kinds_and_changes()])
def test_an_input_of_another_kind(kind, change):
    modules = [module(4, 6) for module in KINDS[kind]]
    calls = [lambda m=module: m(CHANGES[change](_input(kind))) for module in modules]
    assert "input must" in _compare(kind, *calls, (kind, "input", change) in WORK_IN_NN_LSTM)


@pytest.mark.parametrize(("kind", "change"), [*_kinds_and_changes("nested", "nested_strided")])
def test_a_state_of_another_kind(kind, change):
    h = _input(kind, state=True)
    modules = [module(4, 6) for module in KINDS[kind]]
    calls = [lambda m=module: m(_input(kind), (CHANGES[change](h), h)) for module in modules]
    text = _compare(kind, *calls, (kind, "hx[0]", change) in WORK_IN_NN_LSTM)
    assert re.search(r"(hx\[0\]|h0) must", text)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_pair_of_states(kind, state):
    h = _input(kind, state=True)
    modules = [module(4, 6) for module in KINDS[kind]]
    text = _compare(kind, *(lambda m=module: m(_input(kind), STATES[state](h)) for module in modules))
    assert re.search(r"hx(\[[01]\])? must", text)


@pytest.mark.parametrize("change", ["double", "integers", "complex", "meta", "sparse", "quantized", "mkldnn", "none"])
@pytest.mark.parametrize("weight", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_another_kind(kind, weight, change):
    ours = KINDS[kind][1](4, 6)
    name = _name(kind, weight)
    _set(ours, name, CHANGES[change](getattr(ours, name).detach()))
    text = str(_raised(lambda: ours(_input(kind))))
    if weight == "weight_ih" and change not in ("sparse", "mkldnn"):  # the input is compared with it
        assert re.match(r"lstm(_cell)?: (input must .* the parameters|the parameters must be tensors)", text)
    else:
        assert re.match(rf"lstm: {weight} of direction 0 must ", text)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_the_error_names_the_weight(projected, bias, grad):
    lstm = fusedlstm.LSTM(4, 6, bidirectional=True, bias=bias, proj_size=2 if projected else 0)
    for name in lstm._flat_weights_names[1:]:
        kind, direction = name.removesuffix("_reverse").removesuffix("_l0"), int(name.endswith("_reverse"))
        kept = getattr(lstm, name)
        for changed, text in (
            (kept.double(), r"must be torch\.float32, got torch\.float64$"),
            (kept[:-1], r"must be \[.*\], got \["),
            (kept.to("meta"), "must be on the device of input, cpu, got meta$"),
            (None, r"must be a torch\.Tensor, got NoneType$"),
        ):
            _set(lstm, name, None if changed is None else changed.detach())
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as caught:
                lstm(torch.randn(5, 3, 4))
            assert re.match(f"lstm: {kind} of direction {direction} {text}", str(caught.value))
        _set(lstm, name, kept.detach())
    lstm(torch.randn(5, 3, 4))


def test_classes_of_errors():
    """What nn.LSTM raises for values and for types, whatever it is that a caller catches."""
    for of_values in (ValueError, RuntimeError):
        assert issubclass(errors.ArgumentError, of_values)
    for of_types in (TypeError, AttributeError, RuntimeError):
        assert issubclass(errors.ArgumentTypeError, of_types)
    with pytest.raises(errors.ArgumentError, match=r"lstm: lengths must be in 0\.\.5"):
        fusedlstm.LSTM(4, 6)(torch.randn(5, 3, 4), lengths=torch.tensor([1, 2, 6]))


@pytest.mark.parametrize("kind", KINDS)
def test_negated_and_imaginary_views(kind):
    """Views whose sign torch has only noted down."""
    torchs, ours = (module(4, 6) for module in KINDS[kind])
    ours.load_state_dict(torchs.state_dict())
    x, h = _input(kind), _input(kind, state=True)
    views = (torch._neg_view, lambda t: torch.complex(t, t).conj().imag)
    for view in views:
        expected = pytree.tree_leaves(torchs(view(x), (view(h), h)))
        assert view(x).is_neg()
        torch.testing.assert_close(pytree.tree_leaves(ours(view(x), (view(h), h))), expected)
    for module in (torchs, ours):
        name = _name(kind, "weight_hh")
        _set(module, name, torch._neg_view(getattr(module, name).detach()))
    torch.testing.assert_close(pytree.tree_leaves(ours(x)), pytree.tree_leaves(torchs(x)))


@pytest.mark.parametrize("mode", ["meta", "fake"])
@pytest.mark.parametrize("grad", [False, True])
def test_meta_and_fake_tensors(mode, grad):
    """Results as those of nn.LSTM, and shapes of our own options."""
    with FakeTensorMode() if mode == "fake" else torch.device("meta"), torch.set_grad_enabled(grad):
        torchs, ours = (module(4, 6, 2, bidirectional=True) for module in KINDS["LSTM"])
        x = torch.randn(5, 3, 4, requires_grad=grad)
        kind = type(x)
        for got, expected in zip(pytree.tree_leaves(ours(x)), pytree.tree_leaves(torchs(x)), strict=True):
            assert (type(got), got.shape, got.device, got.dtype) == (kind, expected.shape, x.device, expected.dtype)
        lengths, resets = torch.tensor([1, 5, 2]), torch.zeros(5, 3, dtype=torch.bool)
        y, (h_n, _), (h_all, c_all) = ours(x, lengths=lengths, resets=resets, return_states=True)
        assert (y.shape, h_n.shape) == ((5, 3, 12), (4, 3, 6))
        assert h_all.shape == c_all.shape == (4, 5, 3, 6)
        h, _c = fusedlstm.LSTMCell(4, 6)(x[0])
        assert h.shape == (3, 6)
        if grad:
            assert torch.autograd.grad(y.sum() + c_all.sum(), x)[0].shape == x.shape


def test_the_other_tensors_must_not_be_on_the_meta_device():
    lstm, x = fusedlstm.LSTM(4, 6), torch.randn(5, 3, 4)
    with pytest.raises(ValueError, match="lengths must be on the device of input, cpu, got meta"):
        lstm(x, lengths=torch.tensor([1, 2, 3], device="meta"))
    with pytest.raises(ValueError, match="resets must be on the device of input, cpu, got meta"):
        lstm(x, resets=torch.zeros(5, 3, dtype=torch.bool, device="meta"))


def _meta_calls():
    inputs = {"input": torch.randn(5, 3, 4), "h0": torch.randn(1, 3, 6), "c0": torch.randn(1, 3, 6)}
    inputs |= {"weight_ih of direction 0": torch.randn(24, 4), "weight_hh of direction 0": torch.randn(24, 6)}
    inputs |= {"lengths": torch.tensor([1, 2, 3]), "resets": torch.zeros(5, 3, dtype=torch.bool)}
    saved = {"y": torch.randn(5, 3, 6), "cells": torch.randn(5, 3, 6), "gates": torch.randn(5, 3, 24)}
    grads = {"grad_y": saved["y"], "grad_h_n": inputs["h0"], "grad_c_n": inputs["c0"], "grad_cells": saved["cells"]}
    return inputs, saved, grads


@pytest.mark.parametrize("name", [name for part in _meta_calls() for name in part if name != "input"])
def test_direct_callers_mix_no_devices(name):
    inputs, saved, grads = ({each: t.to("meta") if each == name else t for each, t in p.items()} for p in _meta_calls())
    x, h0, c0, *weights, lengths, resets = inputs.values()
    call = x, h0, c0, weights, lengths, resets, None, False
    message = f"{name} must be on the device of input, cpu, got meta"
    with pytest.raises(RuntimeError, match=message):
        _ops.lstm_backward(*grads.values(), *call, *saved.values(), True, True, [1, 1])
    if name in inputs:
        with pytest.raises(RuntimeError, match=message):
            _ops.lstm_inference(*call)
        with pytest.raises(RuntimeError, match=message):
            _ops.lstm_forward(*call, True, True)
    if name in {**inputs, "y": 0}:
        with pytest.raises(RuntimeError, match=message):
            _ops.lstm_recompute(*call, saved["y"])


class Marked(torch.Tensor):
    """A subclass with no behaviour of its own: torch's results are of it."""


def _two(tensor):
    return TwoTensor(tensor, 2 * tensor)


@pytest.mark.parametrize("wrap", [lambda t: t.as_subclass(Marked), _two], ids=["subclass", "wrapper"])
@pytest.mark.parametrize("what", ["input", "hx", "weight"])
def test_tensor_subclasses(what, wrap):
    """Class, numbers and gradients of nn.LSTM, which takes them too."""
    x, hx, results = torch.randn(5, 3, 4), (torch.randn(1, 3, 6), torch.randn(1, 3, 6)), []
    state = nn.LSTM(4, 6).state_dict()
    for kind in KINDS["LSTM"]:
        lstm = kind(4, 6)
        lstm.load_state_dict(state)
        if what == "weight":
            _set(lstm, "weight_hh_l0", wrap(lstm.weight_hh_l0.detach()).requires_grad_())
        given = (wrap(x), hx) if what == "input" else (x, (wrap(hx[0]), hx[1])) if what == "hx" else (x, hx)
        with torch.no_grad():
            outputs = pytree.tree_leaves(lstm(*given))
        y, _ = lstm(*given)
        results.append([*outputs, y, *torch.autograd.grad(y.sum(), [lstm.weight_ih_l0, lstm.weight_hh_l0])])
    for expected, got in zip(*results, strict=True):
        assert type(got) is type(expected)
        pairs = [(got.a, expected.a), (got.b, expected.b)] if isinstance(got, TwoTensor) else [(got, expected)]
        for ours, torchs in pairs:
            torch.testing.assert_close(ours.as_subclass(torch.Tensor), torchs.as_subclass(torch.Tensor))


@pytest.mark.parametrize("wrap", [lambda t: t.as_subclass(Marked), _two], ids=["subclass", "wrapper"])
def test_subclasses_in_our_options(wrap):
    lstm, x = fusedlstm.LSTM(4, 6), torch.randn(5, 3, 4)
    lengths, resets = torch.tensor([1, 5, 2]), torch.rand(5, 3) < 0.3
    expected, _ = lstm(x, lengths=lengths, resets=resets)
    for options in ({"lengths": TwoTensor(lengths, lengths)}, {"resets": TwoTensor(resets, resets)}):
        got, _ = lstm(x, **({"lengths": lengths, "resets": resets} | options))
        torch.testing.assert_close(got.a, expected)
    with pytest.raises(RuntimeError, match=r"lengths\[1\] must be in 0\.\.5 \(the steps of input\), got 7"):
        lstm(x, lengths=TwoTensor(torch.tensor([1, 7, 2]), lengths))


def _huge(T, N, I, H, device="cpu"):
    one = torch.zeros((), device=device)
    weights = [one.expand(4 * H, I), one.expand(4 * H, H)]
    return one.expand(T, N, I), one.expand(1, N, H), one.expand(1, N, H), weights, None, None, None, False


@pytest.mark.parametrize("operator", [_ops.lstm_inference, lambda *args: _ops.lstm_forward(*args, True, True)])
@pytest.mark.parametrize(
    ("sizes", "bytes"),
    [((2**40, 1, 1, 1), 2**42), ((1, 2**40, 1, 1), 2**42), ((2, 2, 2**40, 1), 2**44), ((2**44, 0, 3, 3), 2**47)],
    ids=str,
)
def test_out_of_memory_says_how_much(sizes, bytes, operator):
    with pytest.raises(RuntimeError, match=f"^lstm: out of memory: could not allocate {bytes} bytes on cpu$"):
        operator(*_huge(*sizes))


def _told(script):
    """What a program prints; if it dies, this test fails and no other."""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert run.returncode == 0, f"{run.returncode}: {run.stdout}{run.stderr}"
    return run.stdout.splitlines()


def test_sizes_beyond_any_memory_are_refused():
    """Products of the first wrap around to a number of bytes that could be allocated."""
    script = """
import torch
from test_errors import _huge
for sizes in ((2**40, 2**20, 4, 4), (2**31, 2**20, 2**10, 2**10), (1, 1, 1, 2**30), (2**60, 0, 2**10, 2**10)):
    try:
        torch.ops.fusedlstm.lstm_inference(*_huge(*sizes))
    except RuntimeError as error:
        print(error)
"""
    lines = _told(script)
    assert len(lines) == 4
    assert all(line.startswith("lstm: sizes must give tensors of less than 2^57 elements, got ") for line in lines)


def test_no_memory_for_a_workspace():
    """Weights and results fit into the memory of the process, packed weights do not."""
    script = """
import resource, torch, fusedlstm
weights = [torch.zeros(8192, 2048), torch.zeros(8192, 2048)]
x, state = torch.zeros(16, 8, 2048), torch.zeros(1, 8, 2048)
call = x, state, state, weights, None, None, None, False
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    torch.ops.fusedlstm.lstm_inference(*call)
except RuntimeError as error:
    print(error)
"""
    (line,) = _told(script)
    told = re.fullmatch(r"lstm: out of memory: could not allocate (\d+) bytes on cpu", line)
    assert told, line
    assert 2**27 <= int(told[1]) < 2**28


def test_torch_itself_says_that_a_gpu_is_out_of_memory(monkeypatch):
    """Its error has a class that callers catch; the operator's own has not."""
    asked = []

    def empty(*size, **options):
        asked.append((*size, options))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 TiB.")

    def run(*_args):
        raise RuntimeError("lstm: out of memory: could not allocate 4398046511104 bytes on cuda:1")

    lstm, x = fusedlstm.LSTM(4, 6), torch.randn(5, 3, 4)
    monkeypatch.setattr(torch, "empty", empty)
    for operator in ("_forward", "_inference"):
        monkeypatch.setattr(f"fusedlstm.ops.{operator}", run)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4\.00 TiB"):
            lstm(x)
    assert asked == [(4398046511104, {"dtype": torch.uint8, "device": "cuda:1"})] * 2


@pytest.mark.parametrize("grad", [False, True])
def test_a_gpu_out_of_memory(grad, cuda):
    lstm = fusedlstm.LSTM(1, 1, device=cuda)
    x = torch.zeros((), device=cuda).expand(2**40, 1, 1)
    with torch.set_grad_enabled(grad), pytest.raises(torch.OutOfMemoryError):
        lstm(x)
    assert lstm(torch.zeros(5, 3, 1, device=cuda))[0].shape == (5, 3, 1)
    with pytest.raises(RuntimeError, match=r"lstm: out of memory: could not allocate 4398046511104 bytes on cuda:0"):
        _ops.lstm_inference(*_huge(2**40, 1, 1, 1, cuda))
