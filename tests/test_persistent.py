"""The persistent kernels, on the emulator and on a GPU: every shape against float64, every schedule the same bits."""

import random
from dataclasses import dataclass

import emulated
import pytest
import torch
from comparison import Tf32Products

from benchmarks.accuracy import assert_as_accurate
from fusedlstm import _C, reference

STRATEGIES = ["persistent", "persistent_flags"]
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """One layer and the device it runs on; lengths and resets are drawn where they are asked for."""

    T: int
    N: int
    H: int
    D: int = 1
    I: int = 5
    multiprocessors: int = 8
    bias: bool = True
    lengths: bool = False
    resets: bool = False
    packed: bool = False


class Problem:
    """A shape's inputs and cotangents, in values that a 16-bit type holds; the same on every device."""

    def __init__(self, shape, dtype, device="cpu"):
        narrow = torch.float16 if dtype == torch.float32 else dtype

        def values(*sizes, scale=1.0):
            return (torch.randn(sizes) * scale).to(narrow).to(device, dtype)

        s, states = shape, (shape.D, shape.N, shape.H)
        self.weights = []
        for _ in range(s.D):
            self.weights += [values(4 * s.H, s.I, scale=0.5), values(4 * s.H, s.H, scale=s.H**-0.5)]
            self.weights += [values(4 * s.H), values(4 * s.H)] if s.bias else []
        lengths = torch.randint(0, s.T + 1, (s.N,)).to(device) if s.lengths else None
        resets = (torch.rand(s.T, s.N) < 0.3).to(device) if s.resets else None
        sizes = torch.randint(0, s.N + 1, (s.T,)).sort(descending=True)[0] if s.packed else None
        self.steps = lengths, resets, sizes
        entries = (s.T, s.N) if sizes is None else (int(sizes.sum()),)
        self.inputs = [values(*entries, s.I), values(*states), values(*states)]
        self.cotangents = [values(*entries, s.D * s.H), values(*states), values(*states)]
        self.cotangents.append(values(*entries, s.D * s.H))

    def run(self, dtype=None):
        """By the operators; in another dtype if one is given."""
        inputs, weights = ([t.to(dtype or t.dtype) for t in tensors] for tensors in (self.inputs, self.weights))
        grads = [t.to(dtype or t.dtype) for t in self.cotangents]
        layer = (*inputs, weights, *self.steps, inputs[0].dtype == torch.float32)
        y, h_n, c_n, cell, gates = torch.ops.fusedlstm.lstm_forward(*layer, True, True)
        rest = (y, cell, gates, True, True, [1] * len(weights))
        grad_x, grad_h0, grad_c0, grad_weights = torch.ops.fusedlstm.lstm_backward(*grads, *layer, *rest)
        return self._named([y, h_n, c_n, cell], [grad_x, grad_h0, grad_c0, *grad_weights])

    def truth(self):
        leaves = [t.double().requires_grad_() for t in (*self.inputs, *self.weights)]
        outputs = reference.layer(*leaves[:3], leaves[3:], *self.steps)
        connected = [out + 0 * leaves[0].sum() for out in outputs]
        grads = torch.autograd.grad(connected, leaves, [t.double() for t in self.cotangents], allow_unused=True)
        return self._named(
            outputs, [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]
        )

    @staticmethod
    def _named(outputs, grads):
        named = dict(zip(("y", "h_n", "c_n", "cell"), (out.detach() for out in outputs), strict=True))
        return named | {f"grad_{index}": grad for index, grad in enumerate(grads)}


def _plans(shape, dtype, machine, strategy):
    """Of the forward and the backward pass."""
    name = {"bf16": "bfloat16", "f16": "float16", "tf32": "float32"}[dtype]
    sizes = {"steps": shape.T, "batch": shape.N, "hidden": shape.H, "directions": shape.D}
    problems = [_C.Problem(**sizes, dtype=name, tf32=True, backward=backward) for backward in (False, True)]
    return [_C.make_plan(problem, machine.limits(shape.multiprocessors), strategy) for problem in problems]


def _as_returned(results, dtype):
    """In the layer's type, as the module returns them.

    A GPU's exponential is off by up to two units of float32. Cells are float32 inside the operators, and single ones
    would show it.
    """
    return {name: value.to(dtype) for name, value in results.items()}


def _check(shape, dtype, machine):
    """At most twice the error of the stepwise kernels, themselves held to nn.LSTM's; for TF32, of the equations'."""
    problem = Problem(shape, TYPES[dtype], machine.device)
    with machine.running("persistent", shape.multiprocessors):
        ours = machine.in_one_launch(problem.run)
    with machine.running("persistent_flags", shape.multiprocessors):
        with_flags = problem.run()
    plans = [_plans(shape, dtype, machine, strategy) for strategy in STRATEGIES]
    assert {plan.strategy for each in plans for plan in each} == {"persistent"}
    by_data, by_flags = ([str(plan).split(", signal")[0] for plan in each] for each in plans)
    if by_data == by_flags:
        assert all(torch.equal(ours[name], value) for name, value in with_flags.items())
    truth, others = problem.truth(), []
    if dtype == "tf32":
        with Tf32Products():
            others.append({name: value.float() for name, value in problem.truth().items()})
    if dtype != "tf32" or machine.device.type == "cuda":  # whose products add up in an order of their own
        with machine.running("stepwise", machine.multiprocessors):
            others.append(problem.run())
    if machine.device.type == "cuda":
        ours, with_flags, *others = (_as_returned(results, TYPES[dtype]) for results in (ours, with_flags, *others))
    assert_as_accurate(ours, others, truth)
    assert_as_accurate(with_flags, others, truth)


SHAPES = {
    "one_of_everything": Shape(1, 1, 1),
    "one_step": Shape(1, 9, 40),
    "many_steps": Shape(40, 2, 24),
    "both_directions": Shape(5, 9, 33, D=2, multiprocessors=16),
    "no_bias": Shape(3, 5, 16, bias=False),
    "chunks": Shape(3, 70, 128, multiprocessors=4),
    "groups": Shape(3, 33, 70, multiprocessors=16),
    "lengths": Shape(5, 20, 40, D=2, lengths=True, multiprocessors=16),
    "resets": Shape(5, 20, 40, D=2, resets=True, multiprocessors=16),
    "packed": Shape(6, 20, 40, D=2, packed=True, multiprocessors=16),
    "lengths_and_resets": Shape(6, 20, 40, D=2, lengths=True, resets=True, multiprocessors=16),
    "weights_in_shared_memory": Shape(3, 9, 250, multiprocessors=16),
    "room_for_more_units_than_there_are": Shape(3, 9, 250, multiprocessors=6),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes(shape, dtype, machine):
    _check(shape, dtype, machine)


def _row_tiles(shape):
    return -(-shape.N // 8)


# Divisions of a layer: a shape that has each, in both passes and with either signal, and how a plan shows it.
DIVISIONS = {
    "several_chunks": (
        Shape(18, 70, 20, multiprocessors=3),  # by data more steps than slots, and the next chunk loaded ahead
        lambda plan, shape: plan.chunks > 1,
    ),
    "several_chunks_in_one_step": (
        Shape(1, 70, 20, multiprocessors=3),
        lambda plan, shape: plan.chunks > 1,
    ),
    "several_chunks_with_lengths_and_resets": (
        Shape(6, 49, 68, D=2, lengths=True, resets=True, multiprocessors=6),
        lambda plan, shape: plan.chunks > 1 and plan.members > 1,
    ),
    "several_chunks_packed": (
        Shape(6, 49, 68, D=2, packed=True, multiprocessors=6),
        lambda plan, shape: plan.chunks > 1 and plan.members > 1,
    ),
    "two_quads": (
        Shape(4, 9, 60, multiprocessors=1),
        lambda plan, shape: plan.quads == 2,
    ),
    "two_quads_the_second_not_full": (
        Shape(4, 9, 44, multiprocessors=1),
        lambda plan, shape: plan.quads == 2 and plan.octets * plan.row_tiles_per_chunk < 8,
    ),
    "last_chunk_with_fewer_row_tiles": (
        Shape(4, 49, 68, multiprocessors=3),
        lambda plan, shape: plan.groups == 1 and plan.chunks > 1 and _row_tiles(shape) % plan.row_tiles_per_chunk,
    ),
    "last_group_with_fewer_chunks": (
        Shape(4, 33, 36, multiprocessors=3),
        lambda plan, shape: plan.chunks > 1 and _row_tiles(shape) % (plan.chunks * plan.row_tiles_per_chunk),
    ),
    "one_row": (
        Shape(4, 1, 40, multiprocessors=3),
        lambda plan, shape: plan.members > 1,
    ),
    "a_block_with_fewer_octets": (
        Shape(4, 9, 36, multiprocessors=3),
        lambda plan, shape: plan.members > 1 and -(-shape.H // 8) % plan.octets,
    ),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("shape", "has"), DIVISIONS.values(), ids=DIVISIONS)
def test_divisions(shape, has, dtype, machine):
    for strategy in STRATEGIES:
        for plan in _plans(shape, dtype, machine, strategy):
            assert has(plan.persistent, shape), plan
    _check(shape, dtype, machine)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k_blocks", [(2, 8), (3, 12), (4, 16)], ids=str)
def test_each_width_of_the_kernels(k_blocks, dtype, machine):
    """Forward and backward at the largest layer that each pair of widths takes; narrower ones are above."""
    hidden = k_blocks[0] * 8 * (16 if dtype == "tf32" else 32) - 3
    _check(Shape(2, 9, hidden, multiprocessors=-(-hidden // 16)), dtype, machine)


@pytest.mark.parametrize(("dtype", "narrower"), [("tf32", 4), ("tf32", 6), ("bf16", 4), ("f16", 4)])
def test_the_widest_kernels(narrower, dtype, machine):
    """Just past what a narrower pair takes: the emulator has stacks for about a hundred blocks. 17 rows are three
    tiles, of which the backward pass multiplies one while it asks for another."""
    hidden = narrower * 8 * (16 if dtype == "tf32" else 32) + 5
    shape = Shape(3, 17, hidden, multiprocessors=-(-hidden // 16))
    for strategy in STRATEGIES:
        backward = _plans(shape, dtype, machine, strategy)[1].persistent
        assert backward.k_blocks > 8, backward
        assert backward.chunks > 1, backward
    _check(shape, dtype, machine)


def _random_shape(seed):
    draw = random.Random(seed)
    D = draw.choice([1, 1, 2])
    multiprocessors = draw.randint(4, 16)
    most = min(8 * 8 * (multiprocessors // D), 150)
    return Shape(
        T=draw.randint(1, 6),
        N=draw.choice([draw.randint(1, 9), draw.randint(1, 70)]),
        H=draw.randint(1, most),
        D=D,
        I=draw.randint(1, 8),
        multiprocessors=multiprocessors,
        bias=draw.random() < 0.8,
        lengths=draw.random() < 0.4,
        resets=draw.random() < 0.4,
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("first", range(0, 70, 10))
def test_random_shapes(first, dtype, machine):
    """Seventy for each type, each on a device of 4 to 16 multiprocessors."""
    for seed in range(first, first + 10):
        torch.manual_seed(seed)
        _check(_random_shape(seed), dtype, machine)


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_schedule_does_not_matter(dtype, strategy):
    """Blocks and threads in any order, stores as late as they may: the same bits."""
    shape = Shape(18, 20, 60, D=2, lengths=True, resets=True, multiprocessors=12)  # more steps than slots
    problem = Problem(shape, TYPES[dtype])
    with emulated.operators(strategy, shape.multiprocessors):
        expected = problem.run()
    for seed in range(2, 14):
        with emulated.operators(strategy, shape.multiprocessors, seed):
            assert all(torch.equal(expected[name], value) for name, value in problem.run().items())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_nan_is_no_sign_of_anything(dtype, strategy, machine):
    """With every bit set it is the sentinel of a word that has not been published."""
    problem = Problem(Shape(4, 9, 24), TYPES[dtype], machine.device)
    bits = torch.int32 if dtype == "tf32" else torch.int16
    for state in problem.inputs[1:]:
        state.view(bits)[0, 2] = -1
        assert state[0, 2].isnan().all()
    with machine.running(strategy, 4):
        y = machine.in_one_launch(problem.run)["y"]
    assert y[:, 2].isnan().all()
    assert not y[:, :2].isnan().any()
    assert not y[:, 3:].isnan().any()


def _one_element_in(tensor):
    """A copy that begins one element into its storage, so that no access of several elements is aligned."""
    view = tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape)
    return view.copy_(tensor)


@pytest.mark.parametrize("strategy", ["stepwise", *STRATEGIES])
@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_at_any_address(dtype, strategy, machine):
    """And with an odd number of units, so that no row is aligned either."""
    problem = Problem(Shape(5, 9, 33, D=2, multiprocessors=16), TYPES[dtype], machine.device)
    results = []
    for _ in range(2):
        with machine.running(strategy, 16):
            results.append(problem.run())
        for name in ("inputs", "weights", "cotangents"):
            setattr(problem, name, [_one_element_in(tensor) for tensor in getattr(problem, name)])
    aligned, shifted = results
    assert_as_accurate(shifted, [aligned], problem.truth())


def test_a_device_that_is_too_small_runs_step_by_step(machine):
    problem = Problem(Shape(3, 5, 200), torch.bfloat16, machine.device)
    results = []
    for strategy, multiprocessors in (("stepwise", 4), ("persistent", 1)):
        with machine.running(strategy, multiprocessors):
            results.append(problem.run())
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())


def test_multiprocessors_for_others(machine):
    problem = Problem(Shape(3, 5, 100), torch.bfloat16, machine.device)
    most = machine.multiprocessors - 1
    with machine.running("persistent", machine.multiprocessors), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDLSTM_SM_MARGIN", str(most))
        problem.run()
        patch.setenv("FUSEDLSTM_SM_MARGIN", str(most + 1))
        with pytest.raises(
            RuntimeError, match=f"FUSEDLSTM_SM_MARGIN must be a number from 0 to {most}, got {most + 1}"
        ):
            problem.run()
        patch.setenv("FUSEDLSTM_SM_MARGIN", "0")
        patch.setenv("FUSEDLSTM_STRATEGY", "quick")
        with pytest.raises(
            RuntimeError,
            match="FUSEDLSTM_STRATEGY must be fastest, stepwise, persistent or persistent_flags, got quick",
        ):
            problem.run()
