"""Calls with one thing wrong: each must be an error that names the argument, and never end the process."""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm

Arguments = dict[str, Any]


_OF_HX = ("hx", "h0", "c0")  # the pair, or the state that an operator refuses
_OF_SPARSE = ("Sparse", "memory format")  # torch's own words, for a sparse tensor


@dataclass(frozen=True)
class BadCall:
    """A call that must fail."""

    text: str  # what is wrong
    names: tuple[str, ...]  # one of which the error must have
    run: Callable[[], object]


def check(seed: int) -> None:
    """Makes the bad call of a seed.

    Raises:
        AssertionError: it succeeds, or its error is not one for users.
    """
    call = draw(seed)
    failure = _error_of(call)
    assert failure, f"{call.text}: no error"
    told = f"{call.text}: {type(failure).__name__}: {failure}"
    assert isinstance(failure, TypeError | ValueError | RuntimeError | IndexError), told
    assert any(name in str(failure) for name in (*call.names, *_OF_SPARSE)), (
        f"the error names none of {call.names}: {told}"
    )


def _error_of(call: BadCall) -> Exception | None:
    try:
        call.run()
    except Exception as error:
        return error
    return None


def draw(seed: int) -> BadCall:
    """The bad call of a seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    return rng.choice((_module, _cell, _function, _packed, _operator))(rng)


# Things that are wrong with a tensor whatever its role: text and value.


def _wrong_shape(rng: random.Random, right: Tensor, free: tuple[int, ...] = ()) -> tuple[str, Tensor]:
    """Another rank, or another size of a dimension that is not free."""
    fixed = [dim for dim in range(right.dim()) if dim not in free]
    kind = rng.choice(("more", "less", "empty", "rank", "rank", "flat"))
    if kind == "rank" or not fixed:
        return "shape", right[None, None]
    if kind == "flat":
        return "shape", right.flatten()[:1].squeeze()
    dim = rng.choice(fixed)
    size = {"more": right.shape[dim] + 1, "less": right.shape[dim] - 1, "empty": 0}[kind]
    shape = list(right.shape)
    shape[dim] = size
    return "shape", torch.zeros(shape, dtype=right.dtype)


def _wrong_tensor(rng: random.Random, right: Tensor) -> tuple[str, Any]:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool]
    dtypes = [dtype for dtype in [*dtypes, torch.complex64, torch.float8_e5m2] if dtype != right.dtype]
    kind = rng.choice(("dtype", "dtype", "device", "no tensor", "sparse"))
    if kind == "dtype":
        dtype = rng.choice(dtypes)
        return f"dtype {dtype}", torch.zeros(right.shape, dtype=dtype)
    if kind == "sparse":
        return kind, right.to_sparse()
    if kind == "device":
        return kind, right.to("meta")
    value = rng.choice((3, "text", [1.0], {}, right.tolist(), right.numpy, object()))
    return f"{type(value).__name__} instead of a tensor", value


def _spoil(rng: random.Random, right: Tensor, free: tuple[int, ...] = ()) -> tuple[str, Any]:
    return _wrong_shape(rng, right, free) if rng.random() < 0.5 else _wrong_tensor(rng, right)


def _wrong_lengths(rng: random.Random, right: Tensor, T: int) -> tuple[str, Any]:
    if rng.random() < 0.5:
        value = rng.choice((-1, T + 1, T + 1000, 2**31, 2**62, -(2**63), 2**63 - 1))
        lengths = right.clone()
        lengths[rng.randrange(len(lengths))] = value
        return f"length {value}", lengths
    kind = rng.choice(("dtype", "shape", "device", "no tensor"))
    if kind == "dtype":
        dtype = rng.choice((torch.float32, torch.bool, torch.complex64))
        return f"dtype {dtype}", right.to(dtype)
    if kind == "shape":
        return _wrong_shape(rng, right)
    return kind, right.to("meta") if kind == "device" else right.tolist()


def _wrong_resets(rng: random.Random, right: Tensor) -> tuple[str, Any]:
    kind = rng.choice(("dtype", "shape", "device", "no tensor"))
    if kind == "dtype":
        return kind, right.to(rng.choice((torch.float32, torch.uint8, torch.int64)))
    if kind == "shape":
        return _wrong_shape(rng, right)
    return kind, right.to("meta") if kind == "device" else right.tolist()


def _wrong_hx(rng: random.Random, h0: Tensor, c0: Tensor) -> tuple[str, Any]:
    which = rng.choice(("h0", "c0", "pair"))
    if which == "pair":
        value = rng.choice((h0, (h0,), (h0, c0, c0), (h0, None), (None, c0), {"h0": h0, "c0": c0}, 3, "ab"))
        return f"hx a {type(value).__name__}", value
    text, value = _spoil(rng, h0 if which == "h0" else c0)
    return f"{which} {text}", (value, c0) if which == "h0" else (h0, value)


@dataclass(frozen=True)
class _Sizes:
    T: int
    N: int
    I: int
    H: int
    L: int
    D: int
    P: int

    @property
    def outputs(self) -> int:
        return self.P or self.H

    def tensors(self) -> Arguments:
        states = self.L * self.D
        return {
            "input": torch.randn(self.T, self.N, self.I),
            "h0": torch.randn(states, self.N, self.outputs),
            "c0": torch.randn(states, self.N, self.H),
            "lengths": torch.randint(0, self.T + 1, (self.N,)),
            "resets": torch.rand(self.T, self.N) < 0.5,
        }


def _sizes(rng: random.Random) -> _Sizes:
    H = rng.choice((2, 3, 9, 17))
    P = rng.choice((0, 0, H - 1))
    # No two sizes that stand for each other are alike, or a wrong shape might be right.
    return _Sizes(
        rng.choice((1, 2, 5)), rng.choice((3, 4)), rng.choice((1, 6)), H, rng.choice((1, 2)), rng.choice((1, 2)), P
    )


def _lstm(size: _Sizes) -> fusedlstm.LSTM:
    return fusedlstm.LSTM(size.I, size.H, size.L, bidirectional=size.D == 2, proj_size=size.P)


def _module(rng: random.Random) -> BadCall:
    size = _sizes(rng)
    given, lstm = size.tensors(), _lstm(size)
    which = rng.choice(("input", "hx", "lengths", "resets"))
    arguments = {"input": given["input"], "hx": (given["h0"], given["c0"])}
    arguments |= {name: given[name] for name in ("lengths", "resets") if rng.random() < 0.5}
    if which == "input":
        text, arguments["input"] = _spoil(rng, given["input"], free=(0,))
        arguments.pop("resets", None)  # which would no longer fit
        names = ("input", "hx")  # hx does not fit the batch of this input
    elif which == "hx":
        text, arguments["hx"] = _wrong_hx(rng, given["h0"], given["c0"])
        names = _OF_HX
    else:
        wrong = (
            _wrong_lengths(rng, given["lengths"], size.T) if which == "lengths" else _wrong_resets(rng, given["resets"])
        )
        text, arguments[which] = wrong
        names = (which,)
    return BadCall(f"LSTM {size}, {which}: {text}", names, lambda: lstm(**arguments))


def _cell(rng: random.Random) -> BadCall:
    I, H, N = 3, 5, 4
    cell, x, h, c = fusedlstm.LSTMCell(I, H), torch.randn(N, I), torch.randn(N, H), torch.randn(N, H)
    if rng.random() < 0.4:
        text, x = _spoil(rng, x)
        return BadCall(f"LSTMCell, input: {text}", ("input", "hx"), lambda: cell(x, (h, c)))
    text, hx = _wrong_hx(rng, h, c)
    return BadCall(f"LSTMCell, {text}", _OF_HX, lambda: cell(x, hx))


def _function(rng: random.Random) -> BadCall:
    size = _sizes(rng)
    given, weights = size.tensors(), [weight.detach() for weight in _lstm(size).parameters()]
    arguments = {"input": given["input"], "hx": (given["h0"], given["c0"]), "weights": weights}
    arguments |= {"num_layers": size.L, "bidirectional": size.D == 2}
    which = rng.choice(("input", "hx", "weights", "weight", "num_layers", "lengths", "resets"))
    names: tuple[str, ...] = (which,)
    if which == "input":
        text, arguments["input"] = _wrong_shape(rng, given["input"], free=(0,))
        names = ("input", "h0", "weight_ih")
    elif which == "hx":
        h0 = rng.random() < 0.5
        text, wrong = _wrong_shape(rng, given["h0" if h0 else "c0"])
        arguments["hx"] = (wrong, given["c0"]) if h0 else (given["h0"], wrong)
        names = (*_OF_HX, "weight")
    elif which == "weights":
        text, arguments["weights"] = rng.choice(
            (("none", []), ("one less", weights[:-1]), ("one more", [*weights, weights[0]]))
        )
    elif which == "weight":
        index = rng.randrange(len(weights))
        text, wrong = _wrong_shape(rng, weights[index])
        arguments["weights"] = [*weights[:index], wrong, *weights[index + 1 :]]
        names = ("weight", "bias")
    elif which == "num_layers":
        text, arguments["num_layers"] = "out of range", rng.choice((0, -1, 7))
        names = ("num_layers", "weights")
    elif which == "lengths":
        value = rng.choice((-1, size.T + 1, 2**62, -(2**63)))
        text, arguments["lengths"] = f"length {value}", torch.tensor([value] * size.N)
    else:
        text, arguments["resets"] = _wrong_shape(rng, given["resets"])
    return BadCall(f"lstm(), {size}, {which}: {text}", names, lambda: fusedlstm.lstm(**arguments))


def _packed(rng: random.Random) -> BadCall:
    lstm = fusedlstm.LSTM(3, 5, bidirectional=rng.random() < 0.5)
    right = pack_sequence([torch.randn(length, 3) for length in (4, 2, 5)], enforce_sorted=False)
    fields = right._asdict()
    options: Arguments = {}
    which = rng.choice(("data", "hx", "lengths", "resets", "return_states", "batch_sizes", "indices"))
    names: tuple[str, ...] = (which,)
    if which == "data":
        text, fields["data"] = (
            _wrong_shape(rng, right.data, free=(0,)) if rng.random() < 0.5 else ("dtype", right.data.int())
        )
        names = ("input",)
    elif which == "hx":
        h0, c0 = torch.randn(1 + lstm.bidirectional, 3, 5), torch.randn(1 + lstm.bidirectional, 3, 5)
        text, options["hx"] = _wrong_hx(rng, h0, c0)
        names = _OF_HX
    elif which == "batch_sizes":
        text, names = "of another sequence", ("batch_sizes", "batch of", "index 0", "negative dimension", "memory")
        wrong = (
            [3, 3, 2, 2, -1],
            [3, 3, 3, 3, 3],
            [1, 3, 3, 2, 2],
            [-3, 3, 2, 2, 1],
            [3, 3, 2],
            [3, 2, 3, 2, 1],
            [],
            [2**40, 1],
        )
        fields["batch_sizes"] = torch.tensor(rng.choice(wrong), dtype=torch.int64)
    elif which == "indices":
        text = "out of range"
        fields[rng.choice(("sorted_indices", "unsorted_indices"))] = torch.tensor([0, 1, rng.choice((3, 2**40, -4))])
        options["hx"], names = (torch.randn(1 + lstm.bidirectional, 3, 5),) * 2, ("INDICES", "index")  # torch's own
    else:
        text = "given"
        options[which] = {"lengths": torch.tensor([1, 2, 3]), "resets": torch.ones(5, 3).bool(), "return_states": True}[
            which
        ]
    if rng.random() < 0.5 or which != "batch_sizes":
        return BadCall(f"PackedSequence, {which}: {text}", names, lambda: lstm(PackedSequence(**fields), **options))
    state = (torch.randn(1 + lstm.bidirectional, 3, 5),) * 2
    weights, D = list(lstm.parameters()), lstm.bidirectional
    call = functools.partial(fusedlstm.lstm, hx=state, weights=weights, bidirectional=D)
    return BadCall(f"lstm(PackedSequence), {which}: {text}", names, lambda: call(PackedSequence(**fields)))


def _operator(rng: random.Random) -> BadCall:
    """The operators themselves, which read memory as their arguments say."""
    size = replace(_sizes(rng), L=1)
    given, weights = size.tensors(), [weight.detach() for weight in _lstm(size).parameters()]
    names = "x", "h0", "c0", "weights", "lengths", "resets", "batch_sizes", "tf32"
    arguments: Arguments = dict(zip(names, [given["input"], given["h0"], given["c0"], weights], strict=False))
    arguments |= {"lengths": given["lengths"], "resets": given["resets"], "batch_sizes": None, "tf32": False}
    name = rng.choice(("lstm_inference", "lstm_forward", "lstm_recompute", "lstm_backward"))
    if name == "lstm_forward":
        arguments |= {"keep_cells": True, "keep_gates": True}
    if name in ("lstm_recompute", "lstm_backward"):
        arguments["y"] = torch.randn(size.T, size.N, size.D * size.outputs)
    if name == "lstm_backward":
        grads = {
            "grad_y": torch.randn_like(arguments["y"]),
            "grad_h_n": torch.randn_like(given["h0"]),
            "grad_c_n": torch.randn_like(given["c0"]),
            "grad_cells": torch.randn(size.T, size.N, size.D * size.H),
        }
        arguments = grads | arguments | {"cells": torch.randn(size.T, size.N, size.D * size.H)}
        arguments |= {"gates": torch.rand(size.T, size.N, size.D * 4 * size.H), "need_x": True, "need_h0": True}
        arguments["need_weights"] = [1] * len(weights)
    which = rng.choice([key for key, value in arguments.items() if isinstance(value, Tensor | list)])
    right = arguments[which]
    if which == "need_weights":
        text, arguments[which] = "one less", right[:-1]
    elif which == "weights":
        index = rng.randrange(len(right))
        text, wrong = _wrong_shape(rng, right[index])
        arguments[which] = [*right[:index], wrong, *right[index + 1 :]] if rng.random() < 0.7 else right[:-1]
    elif which == "lengths" and rng.random() < 0.5:
        value = rng.choice((-1, size.T + 1, 2**62, -(2**63)))
        text, arguments[which] = f"length {value}", torch.full_like(right, value)
    elif which in ("x", "h0", "c0", "lengths", "resets") and rng.random() < 0.4:
        dtype = torch.float64 if right.dtype != torch.float64 else torch.float32
        text, arguments[which] = "dtype", right.to(dtype)
    else:
        text, arguments[which] = _wrong_shape(rng, right)
    operator = getattr(torch.ops.fusedlstm, name)
    return BadCall(f"{name}, {size}, {which}: {text}", ("must",), lambda: operator(*arguments.values()))
