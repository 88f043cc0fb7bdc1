"""How kernels are started: what other threads, and a device that refuses, do not break."""

import emulated
import machines
import pytest
import torch
from test_persistent import Problem, Shape

from fusedlstm import _C

pytestmark = pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")


def _results(shape, strategy):
    torch.manual_seed(0)
    with emulated.operators(strategy, shape.multiprocessors):
        return Problem(shape, torch.bfloat16).run()


def _forward_plans(shape):
    problem = _C.Problem(steps=shape.T, batch=shape.N, hidden=shape.H, dtype="bfloat16")
    limits = machines.Emulator().limits(shape.multiprocessors)
    return [plan for plan, _ in _C.persistent_plans(problem, limits, "data")]


def test_a_launch_leaves_the_shared_memory_of_others():
    """All threads of a process share what a kernel may have: a launch of less than the one before must not lower it."""
    more, less = Shape(2, 70, 250, multiprocessors=5), Shape(2, 9, 250, multiprocessors=5)
    plans = [_forward_plans(shape)[0] for shape in (more, less)]
    assert plans[0].k_blocks == plans[1].k_blocks
    assert plans[0].shared_bytes > plans[1].shared_bytes > 48 * 1024
    for shape in (more, less):
        _results(shape, "persistent")  # the emulator refuses to lower it


def test_a_device_that_refuses_a_launch_runs_step_by_step():
    """As a green context does, which has fewer multiprocessors than its device says."""
    shape = Shape(3, 9, 40)
    expected, with_all = _results(shape, "stepwise"), _results(shape, "persistent")
    emulated.load().fusedlstm_emulation_refuse_cooperative_launches(True)
    try:
        got = _results(shape, "persistent")
    finally:
        emulated.load().fusedlstm_emulation_refuse_cooperative_launches(False)
    assert not all(torch.equal(got[name], value) for name, value in with_all.items())
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def _forward(shape):
    torch.manual_seed(0)
    problem = Problem(shape, torch.bfloat16)
    return torch.ops.fusedlstm.lstm_inference(*problem.inputs, problem.weights, *problem.steps, False)[0].float()


def test_a_division_of_ones_own(monkeypatch):
    shape = Shape(3, 70, 128, multiprocessors=8)
    plans = _forward_plans(shape)
    assert len({(plan.groups, plan.members) for plan in plans}) > 3
    with emulated.operators("stepwise"):
        expected = _forward(shape)
    for plan in plans:
        monkeypatch.setenv("FUSEDLSTM_PLAN", f"{plan.groups},{plan.weight_tiles},{plan.row_tiles_per_chunk}")
        with emulated.operators("persistent", shape.multiprocessors):
            torch.testing.assert_close(_forward(shape), expected, rtol=0.02, atol=0.02)
            assert emulated.work() < 10  # one launch, not one a step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2,4", "FUSEDLSTM_PLAN must be groups,weight_tiles,row_tiles_per_chunk, such as 2,4,4, got 2,4"),
        ("2,4,4x", "got 2,4,4x"),
        ("", "got "),
        ("9,2,1", "must divide this layer on the device, got 9,2,1"),
    ],
)
def test_a_division_that_is_none(text, message, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_PLAN", text)
    with emulated.operators("persistent"), pytest.raises((RuntimeError, ValueError), match=message):
        _forward(Shape(3, 5, 20))
