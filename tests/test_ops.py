"""The operators as torch sees them: schemas, fake kernels, memory, threads, errors of direct callers."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from cases import DTYPES

from fusedlstm import _C, ops

_ops = torch.ops.fusedlstm


def _arguments(
    device,
    dtype=torch.float32,
    T=4,
    N=3,
    I=5,
    H=6,
    D=1,
    P=None,
    bias=True,
    lengths=None,
    resets=False,
    batch_sizes=None,
):
    def tensor(*shape):
        return torch.randn(shape, device=device).to(dtype)

    P = P or H
    weights = []
    for _ in range(D):
        weights += [tensor(4 * H, I), tensor(4 * H, P)]
        weights += [tensor(4 * H), tensor(4 * H)] if bias else []
        weights += [tensor(P, H)] if P != H else []
    lengths = None if lengths is None else torch.tensor(lengths, device=device)
    begins = torch.rand(T, N, device=device) < 0.4 if resets else None
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes, dtype=torch.int64)
    x = tensor(T, N, I) if sizes is None else tensor(sum(batch_sizes), I)
    return x, tensor(D, N, P), tensor(D, N, H), weights, lengths, begins, sizes, False


def _forward(*args):
    return _ops.lstm_forward(*args, True, True)


SHAPES = {
    "plain": {},
    "no_bias": {"bias": False},
    "bidirectional": {"D": 2},
    "projected": {"P": 2, "D": 2},
    "lengths": {"lengths": [4, 0, 2], "D": 2},
    "resets": {"resets": True, "lengths": [4, 0, 2], "D": 2, "P": 2},
    "packed": {"batch_sizes": [3, 3, 1, 1], "D": 2},
    "packed_and_projected": {"batch_sizes": [2, 1], "D": 2, "P": 2},
    "packed_without_steps": {"batch_sizes": []},
    "one_step": {"T": 1, "resets": True},
    "no_steps": {"T": 0},
    "empty_batch": {"N": 0},
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch 2.14's own
# The shapes that a fake kernel returns do not depend on the dtype: float32 has every shape, the others the fullest two.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (shape, dtype)
        for shape, dtype in itertools.product(SHAPES, DTYPES)
        if dtype == "f32" or shape in ("resets", "packed_and_projected")
    ],
)
def test_opcheck(shape, dtype, device):
    args = _arguments(device, DTYPES[dtype], **SHAPES[shape])
    torch.library.opcheck(_ops.lstm_inference.default, args)
    y, h_n, c_n, cells, gates = _forward(*args)
    torch.library.opcheck(_ops.lstm_recompute.default, (*args, y))
    for need in (True, False):
        rest = (y, cells, gates, need, need, [int(need)] * len(args[3]))
        torch.library.opcheck(_ops.lstm_backward.default, (y, h_n, c_n, cells, *args, *rest))
        torch.library.opcheck(_ops.lstm_backward.default, (None, None, None, None, *args, *rest))
    for tensor in (*args[:3], *args[3]):
        tensor.requires_grad_()
    torch.library.opcheck(_ops.lstm_inference.default, args, atol=1e-2, rtol=1e-2)
    for keep in ((True, True), (True, False)):
        torch.library.opcheck(_ops.lstm_forward.default, (*args, *keep), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inference_equals_forward(shape, dtype, device):
    """In 16 bits too, although cell states are kept in fewer bits than the recurrence has."""
    args = _arguments(device, DTYPES[dtype], **shape)
    for inference, forward in zip(_ops.lstm_inference(*args), _forward(*args), strict=False):
        assert torch.equal(inference, forward)


def test_lengths_cut_each_sequence(device):
    lengths = [4, 0, 2, 1]
    args = _arguments(device, T=4, N=4, D=2, P=3, lengths=lengths)
    x, h0, c0, weights, *_ = args
    y, h_n, c_n, cells, _gates = _forward(*args)
    for n, length in enumerate(lengths):
        one = slice(n, n + 1)
        alone = _forward(x[:length, one], h0[:, one], c0[:, one], weights, None, None, None, False)
        cut = y[:length, one], h_n[:, one], c_n[:, one], cells[:length, one]
        for whole, part in zip(cut, alone, strict=False):
            torch.testing.assert_close(whole, part)
        assert not y[length:, n].any()
        assert not cells[length:, n].any()


def test_lengths_hide_the_padding(device):
    """What the input holds past the end of a sequence, NaN included, affects no result."""
    x, h0, c0, weights, lengths, *_ = _arguments(device, T=4, N=3, lengths=[4, 0, 2])
    spoiled = x.clone()
    spoiled[2:, 2] = float("nan")
    spoiled[:, 1] = float("nan")
    clean = _forward(x, h0, c0, weights, lengths, None, None, False)[:4]
    for expected, got in zip(clean, _forward(spoiled, h0, c0, weights, lengths, None, None, False)[:4], strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_views_and_sentinels(offset, device):
    """Inputs at any offset and stride are read in place, and the memory around them is not written."""
    args = _arguments(device, T=5, N=3, I=7, H=9, D=2)
    expected = _forward(*args)

    def view(tensor):
        room = torch.full((tensor.numel() + 8,), 1e9, device=device)
        inner = room[offset : offset + tensor.numel()].view(tensor.shape)
        inner.copy_(tensor)
        rooms.append((room, tensor.numel()))
        return inner

    rooms = []
    x, h0, c0, weights, *_ = args
    got = _forward(view(x), view(h0), view(c0), [view(w) for w in weights], None, None, None, False)
    assert all(map(torch.equal, expected, got))
    for room, used in rooms:
        assert (room[:offset] == 1e9).all()
        assert (room[offset + used :] == 1e9).all()

    def strided(tensor):
        return tensor.repeat_interleave(2, -1)[..., ::2]

    got = _forward(strided(x), strided(h0), strided(c0), [strided(w) for w in weights], None, None, None, False)
    assert all(map(torch.equal, expected, got))


def test_expanded_inputs_and_gradients(device):
    x, h0, c0, weights, *_ = _arguments(device, D=2)
    x = x[:, :1].expand(-1, 3, -1)
    h0, c0 = h0[:, :1].expand(-1, 3, -1), c0[:1].expand(2, -1, -1)
    results = []
    for prepare in (lambda t: t, torch.clone):
        leaves = [prepare(tensor).detach().requires_grad_() for tensor in (x, h0, c0, *weights)]
        y, *_ = ops.lstm_layer(*leaves[:3], leaves[3:])
        grad_y = torch.ones((), device=device).expand(y.shape)
        results.append((y, *torch.autograd.grad(y, leaves, prepare(grad_y))))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("P", [None, 40])
def test_bitwise_repeatable_for_any_number_of_threads(D, P, device):
    args = _arguments(device, T=6, N=33, I=20, H=120, D=D, P=P, lengths=[n % 7 for n in range(33)])

    def run():
        y, h_n, c_n, cells, gates = _forward(*args)
        rest = (y, cells, gates, True, True, [1] * len(args[3]))
        grad_x, grad_h0, grad_c0, grad_weights = _ops.lstm_backward(y, h_n, c_n, cells, *args, *rest)
        return y, h_n, c_n, cells, grad_h0, grad_c0, grad_x, *grad_weights

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            assert all(map(torch.equal, expected, run()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(_C.instruction_set() == "plain", reason="this processor has only the plain kernels")
def test_the_plain_kernels_are_right_too():
    """The gradient tests in a process that does not use the wider instruction sets."""
    tests = ["tests/test_gradients.py::test_values_and_gradients", "tests/test_ops.py::test_lengths_cut_each_sequence"]
    environment = os.environ | {"FUSEDLSTM_ISA": "plain"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", *tests]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_an_unknown_instruction_set_is_refused():
    script = "from fusedlstm import _C; _C.instruction_set()"
    environment = os.environ | {"FUSEDLSTM_ISA": "mmx"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "FUSEDLSTM_ISA must be one this processor has" in run.stderr


def test_saturated_and_non_finite_values_behave_as_in_torch():
    module = torch.nn.LSTM(1, 8)
    values = [0.0, -0.0, 1e-30, 1e4, -1e4, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]
    x = torch.tensor(values).view(1, -1, 1)
    hx = torch.randn(1, len(values), 8), torch.randn(1, len(values), 8)
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        expected, _ = module(x, hx)
    y, *_ = ops.lstm_layer(x, *hx, list(module.parameters()))
    torch.testing.assert_close(y, expected, equal_nan=True)


def test_a_long_sequence(device):
    """More steps than cuDNN takes (65,535)."""
    x, h0, c0, weights, *_ = _arguments(device, T=70_000, N=1, I=1, H=2)
    y, h_n, *_ = ops.lstm_layer(x, h0, c0, weights)
    half, state = y[:35_000], ops.lstm_layer(x[:35_000], h0, c0, weights)
    assert torch.equal(half, state[0])
    assert torch.equal(ops.lstm_layer(x[35_000:], state[1], state[2], weights)[1], h_n)


BAD = {
    "rank": (lambda a: (a[0][0], *a[1:]), r"input must be \[steps, batch, input_size\], got \[3, 5\]"),
    "batch": (lambda a: (a[0], a[1][:, :2], *a[2:]), r"h0 must be \[1, 3, 6\], got \[1, 2, 6\]"),
    "dtype": (lambda a: (a[0], a[1].double(), *a[2:]), r"h0 must be torch\.float32, got torch\.float64$"),
    "weight": (
        lambda a: (*a[:3], [a[3][0].T, *a[3][1:]], *a[4:]),
        r"weight_ih of direction 0 must be \[24, 5\], got \[",
    ),
    "wide": (lambda a: (a[0], a[1].repeat(1, 1, 2), *a[2:]), "h0 must have at most the 6 units of c0, got 12"),
    "no_units": (lambda a: (a[0], a[1][..., :0], a[2][..., :0], *a[3:]), "c0 must have at least 1 hidden unit, got 0"),
    "no_outputs": (lambda a: (a[0], a[1][..., :0], *a[2:]), "h0 must have at least 1 output, got 0"),
    "count": (lambda a: (*a[:3], a[3][:3], *a[4:]), "weights must hold 2 or 4 tensors"),
    "no_weights": (lambda a: (*a[:3], [], *a[4:]), "weights must hold 2 or 4 tensors"),
    "kind": (
        lambda a: (a[0].int(), a[1].int(), a[2].int(), [w.int() for w in a[3]], *a[4:]),
        "input must be float32, .*, got torch.int32$",
    ),
    "short": (lambda a: (*a[:4], torch.tensor([1, 2]), *a[5:]), r"lengths must be \[3\], got \[2\]"),
    "long": (lambda a: (*a[:4], torch.tensor([1, 5, 2]), *a[5:]), r"lengths\[1\] must be in 0\.\.4"),
    "negative": (lambda a: (*a[:4], torch.tensor([1, -1, 2]), *a[5:]), r"lengths\[1\] must be in 0\.\.4"),
    "mask": (lambda a: (*a[:5], torch.ones(3, 3, dtype=torch.bool), *a[6:]), r"resets must be \[4, 3\], got \[3, 3\]"),
    "mask_kind": (lambda a: (*a[:5], torch.ones(4, 3), *a[6:]), "resets must be torch.bool, got torch.float32$"),
    "floating": (
        lambda a: (*a[:4], torch.tensor([1.0, 2, 3]), *a[5:]),
        "lengths must be torch.int64, got torch.float32$",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_direct_callers_get_an_error(change, message):
    with pytest.raises(RuntimeError, match=message):
        _forward(*change(_arguments("cpu")))


def _with_sizes(arguments, *sizes, **kind):
    """The arguments with 6 entries of a packed batch of 3."""
    x, *others, _, allow_tf32 = arguments
    return x.flatten(0, 1)[:6], *others, torch.tensor(sizes, **kind), allow_tf32


BAD_SIZES = {
    "rank": (lambda a: (a[0], *_with_sizes(a, 3, 3)[1:]), r"input must be \[entries, input_size\] with batch_sizes"),
    "sum": (lambda a: _with_sizes(a, 3, 2), r"input must have 5 entries, the sum of batch_sizes, got 6"),
    "batch": (lambda a: _with_sizes(a, 4, 2), r"batch_sizes\[0\] must be in 0\.\.3, the batch of h0, got 4"),
    "rising": (
        lambda a: _with_sizes(a, 2, 3, 1),
        r"batch_sizes\[1\] must be in 0\.\.2, the entries of the step before",
    ),
    "negative": (lambda a: _with_sizes(a, 3, -3), r"batch_sizes\[1\] must be in 0\.\.3"),
    "wild": (lambda a: _with_sizes(a, 2**62, 2**62), r"batch_sizes\[0\] must be in 0\.\.3"),
    "kind": (lambda a: _with_sizes(a, 3, 3, dtype=torch.int32), "batch_sizes must be torch.int64, got torch.int32"),
    "matrix": (lambda a: _with_sizes(a, [3, 3]), r"batch_sizes must be \[steps\], got \[1, 2\]"),
    "lengths": (lambda a: (*_with_sizes(a, 3, 3)[:4], torch.ones(3).long(), *_with_sizes(a, 3, 3)[5:]), "must be None"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SIZES.values(), ids=BAD_SIZES)
def test_the_steps_of_a_packed_batch_are_checked(change, message):
    with pytest.raises(RuntimeError, match=message):
        _forward(*change(_arguments("cpu")))


@pytest.mark.parametrize("name", ["grad_y", "grad_h_n", "grad_c_n", "grad_cells", "y", "cells", "gates"])
def test_direct_callers_of_the_backward_pass_get_an_error(name, device):
    args = _arguments(device)
    y, h_n, c_n, cells, gates = _forward(*args)
    grads = {"grad_y": y, "grad_h_n": h_n, "grad_c_n": c_n, "grad_cells": cells}
    saved = {"y": y, "cells": cells, "gates": gates}
    for of_name in (grads, saved):
        if name in of_name:
            of_name[name] = of_name[name][..., :-1]
    with pytest.raises(RuntimeError, match=rf"{name} must be \[\d, 3, (6|24)\], got \[\d, 3, (5|23)\]"):
        _ops.lstm_backward(*grads.values(), *args, *saved.values(), True, True, [1] * 4)
    if name == "y":
        with pytest.raises(RuntimeError, match=r"y must be \[4, 3, 6\], got \[4, 3, 5\]"):
            _ops.lstm_recompute(*args, saved["y"])


def test_the_backward_pass_needs_a_truth_value_for_each_weight(device):
    args = _arguments(device)
    y, *_, cells, gates = _forward(*args)
    with pytest.raises(RuntimeError, match="need_weights must have 4 entries, got 3"):
        _ops.lstm_backward(y, None, None, None, *args, y, cells, gates, True, True, [1] * 3)


def test_kept_gates_have_no_gradient():
    x, h0, c0, weights, *_ = _arguments("cpu")
    *outputs, gates = _forward(x.requires_grad_(), h0, c0, weights, None, None, None, False)
    assert all(output.requires_grad for output in outputs)
    assert not gates.requires_grad
