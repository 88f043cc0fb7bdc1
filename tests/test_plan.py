"""The plan for named GPUs, which need not be here: it is arithmetic."""

import json
import math
from pathlib import Path

import pytest
from gpus import GPUS, MULTIPROCESSORS, SHARED_MEMORY, limits
from hypothesis import given
from hypothesis import strategies as st

from fusedlstm import _C

WIDEST = {"float32": 4, "float64": 2, "float16": 4, "bfloat16": 4}  # units in 16 bytes of the compute type
LANES, WARPS = 32, 8
ROW_TILE, WEIGHT_TILE, OCTET = 8, 16, 8  # rows of the batch, rows of weights, units
K_BLOCK_BYTES = 64  # of each row of a tile
REGISTER_FRAGMENTS = {"forward": 14, "backward": 11}  # the most that registers hold in any kernel


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
    plan = _plan(gpu, batch=batch, hidden=hidden).stepwise
    assert (plan.units, plan.threads, plan.blocks) == CHOICES[gpu, batch, hidden]


def test_prints_itself():
    assert repr(_plan("H200", batch=64, hidden=1024)) == (
        "KernelPlan(strategy=stepwise, units=4, threads=128, blocks=128, registers=64, launches_per_step=2,"
        ' stepwise_us=20.50, reason="no persistent kernel takes this layer on this device")'
    )
    assert repr(_plan("H200", steps=256, batch=64, hidden=1024, dtype="bfloat16")) == (
        "KernelPlan(strategy=persistent, groups=2, rows=32, members=64, weight_tiles=4, k_blocks=4,"
        " row_tiles_per_chunk=2, signal=data,"
        ' shared_bytes=119808, stepwise_us=20.50, persistent_us=3.15, reason="predicted to be faster")'
    )


def test_a_projection_takes_one_more_launch():
    assert _plan("A100", batch=8, hidden=64).stepwise.launches_per_step == 2
    assert _plan("A100", batch=8, hidden=64, outputs=32).stepwise.launches_per_step == 3


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    batch=st.integers(1, 4096),
    hidden=st.integers(1, 4100),
    directions=st.integers(1, 2),
    dtype=st.sampled_from(sorted(WIDEST)),
)
def test_every_cell_has_one_thread_within_the_limits(gpu, batch, hidden, directions, dtype):
    plan = _plan(gpu, batch=batch, hidden=hidden, directions=directions, dtype=dtype).stepwise
    assert plan.units in (1, WIDEST[dtype])
    assert hidden % plan.units == 0  # a vector never spans two gates
    assert plan.blocks == math.ceil(directions * batch * hidden / plan.units / plan.threads)
    assert plan.threads % LANES == 0
    assert plan.threads * plan.registers <= 65_536


# (signal, groups, members, rows, weight_tiles, k_blocks, row_tiles_per_chunk) forward and backward, for
# benchmark shapes of 16-bit layers, by the model's present constants: a change of one shows here.
PERSISTENT = {
    ("A100", 35, 20, 650): (("data", 3, 28, 8, 6, 3, 1), ("data", 3, 21, 8, 2, 12, 1)),
    ("A100", 512, 64, 512): (("data", 8, 13, 8, 10, 2, 1), ("data", 8, 11, 8, 3, 8, 1)),
    ("RTX 4090", 512, 8, 1024): (("data", 1, 128, 8, 2, 4, 1), ("data", 1, 64, 8, 1, 16, 1)),
    ("H200", 35, 20, 200): (("data", 3, 25, 8, 2, 1, 1), ("data", 3, 13, 8, 1, 4, 1)),
    ("H200", 512, 8, 1024): (("data", 1, 128, 8, 2, 4, 1), ("data", 1, 64, 8, 1, 16, 1)),
    ("H200", 256, 64, 1024): (("data", 2, 64, 32, 4, 4, 2), ("data", 4, 32, 16, 2, 16, 1)),
    ("H200", 128, 64, 2048): (("data", 1, 128, 64, 4, 8, 1), ("data", 1, 128, 64, 1, 32, 1)),
    ("H200", 128, 64, 4096): (("stepwise",), ("stepwise",)),
    ("H200 MIG 1g", 512, 8, 512): (("data", 1, 16, 8, 8, 2, 1), ("data", 1, 16, 8, 2, 8, 1)),
    ("H200 MIG 1g", 512, 8, 1024): (("stepwise",), ("stepwise",)),
    ("B200", 256, 64, 1024): (("data", 2, 64, 32, 4, 4, 2), ("data", 4, 32, 16, 2, 16, 1)),
}


def _shape(plan):
    return ("stepwise",) if plan.persistent is None else _shape_of(plan.persistent)


def _shape_of(p):
    return (p.signal, p.groups, p.members, p.rows, p.weight_tiles, p.k_blocks, p.row_tiles_per_chunk)


@pytest.mark.parametrize(("gpu", "steps", "batch", "hidden"), PERSISTENT)
def test_persistent_choice(gpu, steps, batch, hidden):
    problem = {"steps": steps, "batch": batch, "hidden": hidden, "dtype": "bfloat16"}
    plans = [_plan(gpu, **problem, backward=backward) for backward in (False, True)]
    assert tuple(map(_shape, plans)) == PERSISTENT[gpu, steps, batch, hidden]


MEASURED = Path(__file__).parent.parent / "benchmarks/results/h200/tiers.jsonl"

# us of a step of a persistent launch, forward and backward, of 16-bit layers on an H200: (N, H). Predictions of
# kernels that no GPU has run yet: `python -m benchmarks kernels` holds them to what it measures.
PREDICTED = {
    (64, 64): (1.12, 1.24),
    (64, 128): (1.14, 1.31),
    (64, 256): (1.26, 1.45),
    (64, 512): (1.60, 2.06),
    (8, 1024): (1.58, 2.45),
    (32, 1024): (2.13, 3.03),
    (64, 1024): (3.07, 4.46),
    (128, 1024): (4.96, 7.32),
}


def _took():
    """{(N, H, backward): us} of the kernels before those, the faster signal."""
    fastest = {}
    for tier in map(json.loads, MEASURED.read_text().splitlines()):
        name = tier["N"], tier["H"], tier["backward"]
        if tier["dtype"] == "bfloat16" and tier["kernel_us"]:
            fastest[name] = min(fastest.get(name, math.inf), tier["kernel_us"])
    return fastest


@pytest.mark.parametrize(("batch", "hidden"), PREDICTED)
def test_what_a_step_is_predicted_to_take(batch, hidden):
    took = _took()
    for backward, us in enumerate(PREDICTED[batch, hidden]):
        plan = _plan("H200", steps=256, batch=batch, hidden=hidden, dtype="bfloat16", backward=bool(backward))
        without_launch = plan.persistent_us - 20 / 256
        assert without_launch == pytest.approx(us, abs=0.005)
        assert without_launch < 0.8 * took[batch, hidden, bool(backward)]


IN_A_GRAPH = 0  # us that the host takes to launch a kernel
# Passes of the benchmarks in which a persistent launch is predicted to be faster than the host of the records launches
# steps, and slower in a graph.
FASTER_STEP_BY_STEP_IN_A_GRAPH = {
    ("t256_n128_h1024_l1", "float32", True),
    ("t256_n128_h1024_l4", "float32", True),
    ("t256_n256_h1024_l1", "float32", False),
    ("t256_n64_h2048_l1", "bfloat16", True),
    ("t70_n80_h1152_l3", "bfloat16", True),
}


def test_a_graph_gets_what_is_faster_on_the_device():
    differ = set()
    for tier in map(json.loads, MEASURED.read_text().splitlines()):
        sizes = {"steps": tier["T"], "batch": tier["N"], "hidden": tier["H"], "dtype": tier["dtype"]}
        problem = _C.Problem(**sizes, tf32=True, backward=tier["backward"])
        in_a_graph, eager = (_C.make_plan(problem, limits("H200", us)) for us in (IN_A_GRAPH, 5))
        if in_a_graph.strategy != eager.strategy:
            assert (in_a_graph.strategy, eager.strategy) == ("stepwise", "persistent")
            differ.add((tier["case"], tier["dtype"], tier["backward"]))
    assert differ == FASTER_STEP_BY_STEP_IN_A_GRAPH


# us of a step, as benchmarks/results/h200 has it for one where the host had no part in it.
DEVICE_STEPS = [
    # calibration.jsonl, "gemm", in a graph: 8.44 and 11.59 with the share of the product over all steps, 0.86 and 1.71.
    ({"batch": 64, "hidden": 1024, "dtype": "bfloat16"}, 7.58),
    ({"batch": 64, "hidden": 1024, "dtype": "float32"}, 9.88),
    # rows.csv, t128_n256_h2048_l2, which ran step by step, the device slower than the host: 41.75 and 69.53 with the
    # product over all steps, 13.4 and 26.8 at 640 and 320 TFLOP/s; training less inference 74.7, with three of them.
    ({"batch": 256, "hidden": 2048, "dtype": "bfloat16"}, 28.3),
    ({"batch": 256, "hidden": 2048, "dtype": "float32"}, 42.7),
    ({"batch": 256, "hidden": 2048, "dtype": "bfloat16", "backward": True}, 34.4),
]


@pytest.mark.parametrize(("problem", "took"), DEVICE_STEPS, ids=str)
def test_a_step_on_the_device_against_what_an_h200_took(problem, took):
    plan = _C.make_plan(_C.Problem(steps=256, tf32=True, **problem), limits("H200", IN_A_GRAPH), "stepwise")
    assert plan.stepwise_us == pytest.approx(took, rel=0.15)


def test_a_fast_host_gets_what_is_faster_on_the_device():
    problem = _C.Problem(steps=70, batch=80, hidden=1152, dtype="bfloat16", backward=True)
    chosen = {us: _C.make_plan(problem, limits("H200", us)).strategy for us in (0, 1.4, 4.9, 20)}
    assert chosen == {0: "stepwise", 1.4: "stepwise", 4.9: "persistent", 20: "persistent"}


def test_the_launch_time_counts_to_a_factor_of_two():
    """So that two runs on one machine, whose hosts are timed anew, choose alike."""
    plans = [str(_C.make_plan(_C.Problem(steps=9, batch=8, hidden=64), limits("H200", us))) for us in (3.6, 4.9, 7.0)]
    assert len(set(plans)) == 1
    assert plans[0] != str(_C.make_plan(_C.Problem(steps=9, batch=8, hidden=64), limits("H200", 7.2)))


def test_weights_beyond_the_cache_are_read_from_memory():
    """33.5 MB: an H200's cache keeps them from step to step, an H100's does not, whose memory is slower too."""
    problem = _C.Problem(steps=256, batch=8, hidden=2048, dtype="bfloat16")
    us = {name: _C.make_plan(problem, limits(name, IN_A_GRAPH), "stepwise").stepwise_us for name in ("H100", "H200")}
    assert us["H100"] - us["H200"] == pytest.approx(33.55 / (0.88 * 3.352) - 33.55 / 4.0, rel=0.1)


def test_a_division_on_demand():
    problem = _C.Problem(steps=256, batch=128, hidden=512, tf32=True)
    for signal, strategy in (("data", "persistent"), ("flag", "persistent_flags")):
        plans = _C.persistent_plans(problem, GPUS["H200"], signal)
        assert [us for _, us in plans] == sorted(us for _, us in plans)
        best = _C.make_plan(problem, GPUS["H200"], strategy)
        assert (str(best.persistent_us), _shape(best)) == (str(plans[0][1]), _shape_of(plans[0][0]))
        assert len({(p.groups, p.weight_tiles, p.row_tiles_per_chunk) for p, _ in plans}) == len(plans) > 6
        for plan, us in plans:
            division = plan.groups, plan.weight_tiles, plan.row_tiles_per_chunk
            forced = _C.make_plan(problem, GPUS["H200"], strategy, division)
            assert (forced.persistent_us, _shape(forced)) == (us, _shape_of(plan))
            assert _C.make_plan(problem, GPUS["H200"], division=division).strategy == "persistent"
    assert _C.make_plan(problem, GPUS["H200"], "stepwise", (1, 1, 1)).strategy == "stepwise"
    message = "must divide this layer on the device, got 5,4,4; fusedlstm._C.persistent_plans lists what does"
    with pytest.raises(ValueError, match=message):
        _C.make_plan(problem, GPUS["H200"], division=(5, 4, 4))
    with pytest.raises(ValueError, match="signal must be data or flag, got both"):
        _C.persistent_plans(problem, GPUS["H200"], "both")


@pytest.mark.parametrize("sizes", [{"hidden": 0}, {"hidden": 8, "outputs": 0}, {"hidden": 8, "directions": 0}], ids=str)
def test_a_problem_without_units_is_refused(sizes):
    name = list(sizes)[-1]
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        _C.make_plan(_C.Problem(steps=3, batch=2, dtype="bfloat16", **sizes), GPUS["H200"])


def test_strategies_on_demand():
    problem, limits = _C.Problem(steps=1, batch=8, hidden=64, dtype="float16"), GPUS["H200"]
    assert _C.make_plan(problem, limits).strategy == "stepwise"  # one step is no time for a persistent launch
    assert _C.make_plan(problem, limits, "persistent").strategy == "persistent"
    assert (
        _C.make_plan(_C.Problem(steps=999, batch=8, hidden=64, dtype="float16"), limits, "stepwise").persistent is None
    )
    with pytest.raises(
        ValueError, match="strategy must be fastest, stepwise, persistent or persistent_flags, got slow"
    ):
        _C.make_plan(problem, limits, "slow")


@pytest.mark.parametrize(
    "problem",
    [
        {"dtype": "float64"},
        {"dtype": "float32"},  # without TF32
        {"dtype": "float16", "outputs": 32},
        {"dtype": "float16", "hidden": 4096},
    ],
    ids=str,
)
def test_what_the_persistent_kernels_do_not_take(problem):
    problem = _C.Problem(**{"steps": 100, "batch": 8, "hidden": 64} | problem)
    plan = _C.make_plan(problem, GPUS["H200"], "persistent")
    assert plan.strategy == "stepwise"
    assert plan.reason == "no persistent kernel takes this layer on this device"


@given(
    gpu=st.sampled_from(sorted(GPUS)),
    steps=st.integers(1, 2000),
    batch=st.integers(1, 600),
    hidden=st.integers(1, 2100),
    directions=st.integers(1, 2),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    backward=st.booleans(),
)
def test_every_unit_row_and_term_is_somebodys_within_the_limits(gpu, steps, batch, hidden, directions, dtype, backward):
    limits = GPUS[gpu]
    problem = _C.Problem(
        steps=steps, batch=batch, hidden=hidden, directions=directions, dtype=dtype, tf32=True, backward=backward
    )
    fastest = _C.make_plan(problem, limits)
    if fastest.persistent_us:
        assert (fastest.strategy == "persistent") == (fastest.persistent_us < fastest.stepwise_us)
    plan = _C.make_plan(problem, limits, "persistent").persistent
    if plan is None:
        return
    # Groups share the rows, members the units; each has some.
    assert (plan.groups - 1) * plan.rows < batch <= plan.groups * plan.rows
    units = plan.weight_tiles * (WEIGHT_TILE if backward else WEIGHT_TILE // 4)
    assert (plan.members - 1) * units < hidden <= plan.members * units
    # The warps' k-blocks cover all terms of a sum: units, or the four gates of whole octets.
    terms = WARPS * plan.k_blocks * K_BLOCK_BYTES // (4 if dtype == "float32" else 2)
    assert terms >= (math.ceil(hidden / OCTET) * 4 * OCTET if backward else hidden)
    # In a chunk each warp updates one tile of cells at most, backward two.
    assert plan.rows % (ROW_TILE * plan.row_tiles_per_chunk) == 0
    cell_tiles = plan.row_tiles_per_chunk * (2 * plan.weight_tiles if backward else plan.weight_tiles // 2)
    assert cell_tiles <= (2 * WARPS if backward else WARPS)
    blocks = directions * plan.groups * plan.members
    assert blocks <= MULTIPROCESSORS[gpu]
    assert plan.shared_bytes <= SHARED_MEMORY[gpu]
    beyond_registers = plan.weight_tiles * plan.k_blocks - REGISTER_FRAGMENTS["backward" if backward else "forward"]
    weights = max(0, beyond_registers) * WARPS * WEIGHT_TILE * K_BLOCK_BYTES
    partial_sums = plan.row_tiles_per_chunk * plan.weight_tiles * WARPS * LANES * 16
    assert plan.shared_bytes >= weights + partial_sums


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
