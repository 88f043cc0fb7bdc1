"""Tensors that reach past their storage, as FSDP and offloading leave them, end in an error: no crash, no result.

A case may kill its process, so each runs in a child of a program of its own: this file, run as one.
"""

import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedlstm

T, N, I, H, P = 5, 3, 4, 6, 2
_ops = torch.ops.fusedlstm


def _free(tensor, bytes=0):
    tensor.untyped_storage().resize_(bytes)
    return tensor


def _cut(tensor):
    return _free(tensor, tensor.nbytes - 1)


def _cut_strided(tensor):
    pairs = torch.stack([tensor, tensor], -1)
    return _free(pairs[..., 0], pairs.nbytes - pairs.itemsize - 1)


def _cut_behind_an_offset(tensor):
    twice = torch.cat([tensor.flatten(), tensor.flatten()])
    return _free(twice[tensor.numel() :].view(tensor.shape), tensor.nbytes)


SPOILS = {"freed": _free, "cut": _cut, "strided": _cut_strided, "offset": _cut_behind_an_offset}

_WEIGHTS = {
    "weight_ih": (4 * H, I),
    "weight_hh": (4 * H, P),
    "bias_ih": (4 * H,),
    "bias_hh": (4 * H,),
    "weight_hr": (P, H),
}
_SAVED = {"y": (T, N, 2 * P), "cells": (T, N, 2 * H), "gates": (T, N, 8 * H)}
_GRADS = {"grad_y": (T, N, 2 * P), "grad_h_n": (2, N, P), "grad_c_n": (2, N, H), "grad_cells": (T, N, 2 * H)}
_INPUTS = {
    "input": (T, N, I),
    "h0": (2, N, P),
    "c0": (2, N, H),
    **{f"{name} of direction {d}": shape for d in (0, 1) for name, shape in _WEIGHTS.items()},
}
OPERATORS = {
    "lstm_inference": (*_INPUTS, "lengths", "resets"),
    "lstm_forward": (*_INPUTS, "lengths", "resets"),
    "lstm_recompute": (*_INPUTS, "lengths", "resets", "y"),
    "lstm_backward": (*_INPUTS, "lengths", "resets", *_SAVED, *_GRADS),
}


def call_operator(operator, name, spoil):
    """Calls an operator with all its arguments as they must be, but for one."""
    given = {each: torch.randn(shape) for each, shape in (_INPUTS | _SAVED | _GRADS).items()}
    given |= {"lengths": torch.tensor([T, 0, 2]), "resets": torch.rand(T, N) < 0.3}
    given[name] = spoil(given[name])
    x, h0, c0, *weights = (given[each] for each in _INPUTS)
    inputs = x, h0, c0, weights, given["lengths"], given["resets"], None, False
    saved, grads = ([given[each] for each in names] for names in (_SAVED, _GRADS))
    arguments = {
        "lstm_inference": inputs,
        "lstm_forward": (*inputs, True, True),
        "lstm_recompute": (*inputs, given["y"]),
        "lstm_backward": (*grads, *inputs, *saved, True, True, [1] * len(weights)),
    }
    getattr(_ops, operator)(*arguments[operator])


def _module(**options):
    return fusedlstm.LSTM(I, H, **options)


def _state(dtype=torch.float32):
    return torch.randn(1, N, H, dtype=dtype), torch.randn(1, N, H, dtype=dtype)


def call_module(name, dtype, grad):
    lstm, x, hx = _module(dtype=dtype), torch.randn(T, N, I, dtype=dtype), _state(dtype)
    _free({"input": x, "hx": hx[1], "weight": lstm.weight_hh_l0.data, "bias": lstm.bias_ih_l0.data}[name])
    with torch.set_grad_enabled(grad):
        lstm(x, hx)


def freed_before_the_backward_pass(name, recompute=False, create_graph=False):
    lstm, x = _module(recompute=recompute), torch.randn(T, N, I, requires_grad=True)
    y, _ = lstm(x)
    grad = torch.randn(y.shape)
    _free({"input": x.data, "output": y.data, "weight": lstm.weight_hh_l0.data, "gradient": grad}[name])
    torch.autograd.grad(y, x, grad, create_graph=create_graph)


def freed_gates():
    x, weights = torch.randn(T, N, I), [torch.randn(4 * H, I, requires_grad=True), torch.randn(4 * H, H)]
    y, *_, gates = _ops.lstm_forward(x, *_state(), weights, None, None, None, False, True, True)
    _free(gates)
    y.sum().backward()


def cell(name):
    module, x, hx = fusedlstm.LSTMCell(I, H), torch.randn(N, I), (torch.randn(N, H), torch.randn(N, H))
    _free({"input": x, "hx": hx[0], "weight": module.weight_ih.data}[name])
    module(x, hx)


def packed(name):
    sequence, hx = pack_padded_sequence(torch.randn(T, N, I), [3, 5, 2], enforce_sorted=False), _state()
    _free({"input": sequence.data, "hx": hx[0], "order": sequence.sorted_indices}[name])
    _module()(sequence, hx)


def with_lengths(name, spoil):
    x, lengths = torch.randn(T, N, I), torch.tensor([3, 5, 2])
    given = {"input": x, "lengths": lengths}
    given[name] = spoil(given[name])
    _module()(given["input"], lengths=given["lengths"])


def function_with_lengths(spoil):
    lstm, lengths = _module(), spoil(torch.tensor([3, 5, 2]))
    fusedlstm.lstm(torch.randn(T, N, I), _state(), list(lstm.parameters()), lengths=lengths)


def with_resets():
    _module()(torch.randn(T, N, I), resets=_free(torch.zeros(T, N, dtype=torch.bool)))


def in_autocast(spoil):
    with torch.autocast("cpu"):
        _module()(spoil(torch.randn(T, N, I)))


def in_a_transform(transform, spoil):
    lstm, x = _module(), spoil(torch.randn(T, N, I))
    if transform == "vjp":
        torch.func.vjp(lambda x: lstm(x)[0], x)
    elif transform == "vmap":
        torch.func.vmap(lambda x: lstm(x)[0])(x[:, :, None])
    else:
        torch.func.jvp(lambda x: lstm(x)[0], (x,), (torch.ones(T, N, I),))


def batched_gradients():
    lstm, x = _module(), torch.randn(T, N, I, requires_grad=True)
    y = lstm(x)[0]
    _free(x.data)
    torch.autograd.grad(y, lstm.weight_hh_l0, torch.randn(2, *y.shape), is_grads_batched=True)


def _cases():
    for operator, names in OPERATORS.items():
        for name in names:
            for how, spoil in SPOILS.items():
                yield f"{operator} {name} {how}", lambda o=operator, n=name, s=spoil: call_operator(o, n, s)
    for name in ("input", "hx", "weight", "bias"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for grad in (False, True):
                yield f"LSTM {name} {dtype} {grad}", lambda n=name, d=dtype, g=grad: call_module(n, d, g)
    for name in ("input", "output", "weight", "gradient"):
        for options in ({}, {"recompute": True}, {"create_graph": True}):
            if not (options.get("create_graph") and name == "output"):  # which second derivatives do not read
                yield (
                    f"backward {name} {options}",
                    lambda n=name, o=options: freed_before_the_backward_pass(n, **o),
                )
    yield "gates", freed_gates
    for name in ("input", "hx", "weight"):
        yield f"LSTMCell {name}", lambda n=name: cell(n)
    for name in ("input", "hx", "order"):
        yield f"packed {name}", lambda n=name: packed(n)
    for how, spoil in SPOILS.items():
        for name in ("input", "lengths"):
            yield f"lengths {name} {how}", lambda n=name, s=spoil: with_lengths(n, s)
        yield f"function lengths {how}", lambda s=spoil: function_with_lengths(s)
        yield f"autocast {how}", lambda s=spoil: in_autocast(s)
        for transform in ("vjp", "vmap", "jvp"):
            yield f"{transform} {how}", lambda t=transform, s=spoil: in_a_transform(t, s)
    yield "resets", with_resets
    yield "batched gradients", batched_gradients


CASES = dict(_cases())


def _in_a_child(case):
    """What became of a case: the error that it raised, "ran", or the signal that ended its process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            case()
            text = "ran"
        except Exception as error:
            text = f"{'RuntimeError' if isinstance(error, RuntimeError) else type(error).__name__}: {error}"
        os.write(writer, text.encode()[:1000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        text = told.read()
    status = os.waitpid(child, 0)[1]
    return f"died of signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text


@pytest.fixture(scope="module")
def outcomes():
    run = subprocess.run([sys.executable, "-W", "ignore", __file__], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# Where torch's own view or index of the tensor comes first, torch's own error says the same.
TORCHS_OWN = {
    "packed order": "The tensor has a non-zero number of elements, but its data is not allocated yet",
    **dict.fromkeys(("LSTMCell input", "LSTMCell hx"), "setStorage: .* are out of bounds for storage of size 0"),
    **{f"{of} {how}": "setStorage: .* are out of bounds for storage of" for of in ("vmap", "jvp") for how in SPOILS},
}


@pytest.mark.parametrize("case", CASES)
def test_memory_that_a_tensor_does_not_own_is_refused(case, outcomes):
    own = r"lstm: .* must have a storage of at least \d+ bytes, got one of \d+; it was freed or shrunk"
    assert re.match(f"RuntimeError: {TORCHS_OWN.get(case, own)}", outcomes[case]), outcomes[case]


def test_the_error_names_the_tensor(outcomes):
    for operator, names in OPERATORS.items():
        for name in names:
            assert outcomes[f"{operator} {name} freed"].startswith(f"RuntimeError: lstm: {name} must have a storage of")


def test_an_empty_tensor_needs_no_storage():
    lstm = fusedlstm.LSTM(I, H)
    y, (h_n, _) = lstm(_free(torch.randn(0, N, I)), _state())
    assert (y.shape, h_n.shape) == ((0, N, H), (1, N, H))


def test_a_restored_storage_is_read_again():
    lstm, x = fusedlstm.LSTM(I, H), torch.randn(T, N, I)
    expected, values, bytes = lstm(x)[0], x.clone(), x.nbytes
    _free(x)
    with pytest.raises(RuntimeError, match="input must have a storage of at least 240 bytes, got one of 0"):
        lstm(x)
    _free(x, bytes)
    x.copy_(values)
    assert torch.equal(lstm(x)[0], expected)


def test_nn_lstm_raises_a_runtime_error_too():
    for kind in (nn.LSTM, fusedlstm.LSTM):
        with pytest.raises(RuntimeError):
            kind(I, H)(torch.randn(T, N, I), (_free(torch.randn(1, N, H)), torch.randn(1, N, H)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps({name: _in_a_child(case) for name, case in CASES.items()}))
