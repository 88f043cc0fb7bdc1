"""The plan for named GPUs, which need not be here: it is arithmetic."""

import math

import pytest
from gpus import GPUS
from hypothesis import given
from hypothesis import strategies as st

from fusedlstm import _C

WIDEST = {"float32": 4, "float64": 2, "float16": 4, "bfloat16": 4}  # units in 16 bytes of the compute type


def _plan(gpu, **problem):
    return _C.make_plan(_C.Problem(**{"steps": 100} | problem), GPUS[gpu])


# (units, threads, blocks) for hidden sizes and batches of language models.
CHOICES = {
    # Few cells: one unit a thread, so that as many multiprocessors as possible take part.
    ("A100", 8, 1024): (1, 128, 64),
    ("A10", 8, 1024): (1, 128, 64),
    ("A40", 8, 1024): (1, 128, 64),
    ("RTX 4090", 8, 1024): (1, 64, 128),
    ("H100", 8, 1024): (1, 64, 128),
    ("H200", 8, 1024): (1, 64, 128),
    ("B200", 8, 1024): (1, 64, 128),
    # 65,536 cells: vectors of four, in blocks as large as keeps the busiest multiprocessor least busy.
    ("A100", 64, 1024): (4, 64, 256),
    ("A10", 64, 1024): (4, 256, 64),
    ("A40", 64, 1024): (4, 256, 64),
    ("RTX 4090", 64, 1024): (4, 128, 128),
    ("H100", 64, 1024): (4, 128, 128),
    ("H200", 64, 1024): (4, 128, 128),
    ("B200", 64, 1024): (4, 128, 128),
    # Many cells: vectors in large blocks.
    ("H200", 256, 2048): (4, 256, 512),
    # 650 is no multiple of four.
    ("H200", 20, 650): (1, 128, 102),
}


@pytest.mark.parametrize(("gpu", "batch", "hidden"), CHOICES)
def test_choice(gpu, batch, hidden):
    plan = _plan(gpu, batch=batch, hidden=hidden)
    assert (plan.units, plan.threads, plan.blocks) == CHOICES[gpu, batch, hidden]


def test_prints_itself():
    assert repr(_plan("H200", batch=64, hidden=1024)) == (
        "Plan(strategy=stepwise, units=4, threads=128, blocks=128, registers=64, launches_per_step=2,"
        ' reason="65536 cells a step over 132 multiprocessors")'
    )


def test_a_projection_takes_one_more_launch():
    assert _plan("A100", batch=8, hidden=64).launches_per_step == 2
    assert _plan("A100", batch=8, hidden=64, outputs=32).launches_per_step == 3


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    batch=st.integers(1, 4096),
    hidden=st.integers(1, 4100),
    directions=st.integers(1, 2),
    dtype=st.sampled_from(sorted(WIDEST)),
)
def test_every_cell_has_one_thread_within_the_limits(gpu, batch, hidden, directions, dtype):
    plan = _plan(gpu, batch=batch, hidden=hidden, directions=directions, dtype=dtype)
    assert plan.strategy == "stepwise"
    assert plan.units in (1, WIDEST[dtype])
    assert hidden % plan.units == 0  # a vector never spans two gates
    assert plan.blocks == math.ceil(directions * batch * hidden / plan.units / plan.threads)
    assert plan.threads % 32 == 0
    assert plan.threads * plan.registers <= 65_536


def test_a_problem_too_large_for_32_bit_indices_is_refused():
    _plan("B200", batch=2**19 - 1, hidden=1024)
    with pytest.raises(ValueError, match=r"must be below 2\^31, got 2147483648; split the batch"):
        _plan("B200", batch=2**19, hidden=1024)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype must be float32, float64, float16 or bfloat16, got int8"):
        _C.Problem(steps=1, batch=1, hidden=1, dtype="int8")


def test_a_device_without_room_for_a_block_is_refused():
    with pytest.raises(ValueError, match="no block of 64 threads"):
        _C.make_plan(
            _C.Problem(steps=1, batch=1, hidden=1), _C.Limits(multiprocessors=1, threads_per_multiprocessor=32)
        )
