"""Every instruction set that this processor has, not the best alone."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedlstm
from fusedlstm import _C

ROOT = Path(__file__).parent.parent


EMULATED_AMX = "amx, emulated"
NOT_THERE = "FUSEDLSTM_ISA must be one this processor has"


def run(isa, *arguments):
    python = [sys.executable, *(["-m", "tests.emulated_tiles"] if isa == EMULATED_AMX else [])]
    return subprocess.run(
        [*python, *arguments],
        env={**os.environ, "FUSEDLSTM_ISA": isa.split(",")[0]},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module", params=["plain", "avx2", "avx512", "avx512_bf16", "amx", EMULATED_AMX])
def isa(request):
    """The emulation has the tile instructions of AMX alone, and needs AVX512_BF16 for the others."""
    name = "avx512_bf16" if request.param == EMULATED_AMX else request.param
    done = run(name, "-m", "fusedlstm", "info")
    if NOT_THERE in done.stderr + done.stdout:
        pytest.skip(f"this processor has no {name}")
    assert f"usable, {name}" in done.stdout, done.stderr
    return request.param


def check_that_tiles_are_used():
    products = ctypes.CDLL(_C.__file__).fusedlstm_tile_products
    counts = [products()]
    x = torch.ones(3, 17, 5, dtype=torch.bfloat16, requires_grad=True)
    y, _ = fusedlstm.LSTM(5, 7, dtype=torch.bfloat16)(x)
    counts.append(products())
    y.sum().backward()
    counts.append(products())
    assert 0 == counts[0] < counts[1] < counts[2], counts


def test_tiles_are_used(isa):
    if isa != EMULATED_AMX:
        pytest.skip("the emulation alone counts its instructions")
    done = run(isa, "-c", "import tests.test_instruction_sets as t; t.check_that_tiles_are_used()")
    assert done.returncode == 0, done.stderr[-2000:]


def test_values_and_gradients(isa):
    if isa == _C.instruction_set():
        pytest.skip("the rest of the suite runs with it")
    tests = [
        "test_gradients.py::test_values_and_gradients",
        "test_kept.py",
        "test_limits_of_gates.py",
        "test_resets.py",
    ]
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "not emulated and not cuda and not gpu"]
    done = run(isa, "-m", "pytest", *(f"tests/{name}" for name in tests), *options)
    assert done.returncode == 0, done.stdout[-2000:]


def test_every_16_bit_weight(isa):
    done = run(isa, "-c", "import tests.test_instruction_sets as t; t.check_every_16_bit_weight()")
    assert done.returncode == 0, done.stderr[-2000:]


def test_reads_end_with_the_tensors(isa):
    done = run(isa, "-c", "import tests.test_instruction_sets as t; t.check_that_reads_end_with_the_tensors()")
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"


def test_in_turns_with_torchs_own_bfloat16():
    """Its products use the same tile registers, in other shapes."""
    linear, x = torch.nn.Linear(96, 64, dtype=torch.bfloat16), torch.randn(40, 96, dtype=torch.bfloat16)
    ours, theirs = (cell(32, 48, dtype=torch.bfloat16) for cell in (fusedlstm.LSTM, torch.nn.LSTM))
    inputs = torch.randn(9, 13, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = [linear(x), theirs(inputs)[0], ours(inputs)[0]]
        for _ in range(5):
            for module, argument, wanted in ((ours, inputs, expected[2]), (linear, x, expected[0])):
                out = module(argument)
                torch.testing.assert_close(out[0] if isinstance(out, tuple) else out, wanted, rtol=0, atol=0)
            torch.testing.assert_close(ours(inputs[:, :7])[0], expected[2][:, :7], rtol=0, atol=0)
            torch.testing.assert_close(theirs(inputs)[0], expected[1], rtol=0, atol=0)


def _before_a_guard_page(tensor):
    """A copy that ends where memory ends that may be read."""
    pages = -(-tensor.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages * mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    offset = pages * mmap.PAGESIZE - tensor.nbytes
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return copy.view(tensor.shape).copy_(tensor)


def check_that_reads_end_with_the_tensors():
    """Packed weights and unpacked ones, of units and features that fill no vector and no tile."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for T, N, I, H in ((1, 3, 37, 21), (60, 5, 35, 33)):
            weights = [torch.randn(4 * H, size, dtype=dtype) for size in (I, H)]
            tensors = [torch.randn(shape, dtype=dtype) for shape in ((T, N, I), (1, N, H), (1, N, H))]
            x, h0, c0, *weights = [_before_a_guard_page(tensor).requires_grad_() for tensor in (*tensors, *weights)]
            y, h_n, c_n, *_ = fusedlstm.ops.lstm_layer(x, h0, c0, weights)
            torch.autograd.grad((y.sum() + h_n.sum() + c_n.sum()), [x, h0, c0, *weights])


def check_every_16_bit_weight():
    """A projection multiplies each of the 65536 values there are by one half and by zeros, 256 in a call."""
    H, P = 272, 256
    for dtype in (torch.float16, torch.bfloat16):
        # Gates of zero are one half each, but g; and tanh(c0 / 2) of a large c0 is 1: h is one half in unit 5 alone.
        c0 = torch.zeros(1, 1, H, dtype=dtype)
        c0[..., 5] = 100
        weight_hr = torch.zeros(P, H, dtype=dtype)
        weights = [torch.zeros(4 * H, 1, dtype=dtype), torch.zeros(4 * H, P, dtype=dtype), weight_hr]
        x, h0 = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, P, dtype=dtype)
        for values in torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).split(P):
            weight_hr[:, 5] = values
            y, *_ = fusedlstm.ops.lstm_layer(x, h0, c0, weights)
            torch.testing.assert_close(y.flatten(), (values.float() / 2).to(dtype), rtol=0, atol=0, equal_nan=True)
