"""How threads share a layer on the CPU: the plan is a pure function, and what it chooses for named shapes is written
down here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedlstm._C import make_cpu_plan

SHAPES = {
    # steps, batch, input, hidden, directions, threads, backward: groups, unit_threads, row_threads, time_block, packs
    "one small step is not worth a team": ((1, 1, 16, 16, 1, 8, False), (1, 1, 1, 1, False)),
    "a step that its own cache brings": ((1, 1, 128, 128, 1, 2, False), (1, 1, 1, 1, False)),
    "small steps are not worth meeting for": ((1000, 1, 64, 64, 1, 2, False), (1, 1, 1, 48, False)),
    "one step": ((1, 1, 512, 512, 1, 2, False), (1, 2, 1, 1, False)),
    "one step of some rows": ((1, 32, 512, 512, 1, 2, False), (1, 2, 1, 1, False)),
    "one step of many rows": ((1, 64, 512, 512, 1, 2, False), (1, 2, 1, 1, False)),
    "one sequence": ((100, 1, 512, 512, 1, 2, False), (1, 2, 1, 48, False)),
    "a batch that shares the units": ((35, 20, 650, 650, 1, 2, False), (1, 2, 1, 2, True)),
    "a batch with rows enough for each": ((256, 128, 512, 512, 1, 2, False), (1, 1, 2, 1, True)),
    "weights that fit the cache of each": ((168, 64, 32, 64, 1, 4, False), (1, 1, 4, 1, True)),
    "too few rows for all": ((100, 24, 64, 64, 1, 4, False), (1, 2, 2, 1, True)),
    "threads that rows do not divide": ((100, 512, 64, 64, 1, 3, False), (1, 1, 3, 1, True)),
    "both directions at once": ((400, 16, 320, 320, 2, 2, False), (2, 1, 1, 3, True)),
    "an odd team takes them in turn": ((400, 16, 320, 320, 2, 3, False), (1, 3, 1, 3, True)),
    "backward takes them in turn": ((400, 16, 320, 320, 2, 2, True), (1, 2, 1, 16, True)),
    "a short sequence is one time block": ((6, 4, 320, 320, 1, 2, True), (1, 2, 1, 6, True)),
    "few rows are not worth packing for backward": ((1, 23, 320, 320, 1, 2, True), (1, 2, 1, 1, False)),
    "nothing to do": ((0, 0, 8, 8, 1, 2, False), (1, 1, 1, 1, False)),
}


def plan(steps, batch, input, hidden, directions, threads, backward):
    return make_cpu_plan(
        steps=steps,
        batch=batch,
        input=input,
        hidden=hidden,
        directions=directions,
        threads=threads,
        backward=backward,
    )


@pytest.mark.parametrize(("problem", "expected"), SHAPES.values(), ids=SHAPES)
def test_named_shapes(problem, expected):
    chosen = plan(*problem)
    found = (chosen.groups, chosen.unit_threads, chosen.row_threads, chosen.time_block, chosen.packs)
    assert found == expected


@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(1, 600),
    st.integers(1, 600),
    st.integers(1, 2),
    st.integers(1, 64),
    st.booleans(),
)
def test_every_thread_has_a_place(steps, batch, input, hidden, directions, threads, backward):
    chosen = plan(steps, batch, input, hidden, directions, threads, backward)
    assert chosen.groups * chosen.unit_threads * chosen.row_threads <= threads
    assert directions % chosen.groups == 0
    assert chosen.row_threads == 1 or batch >= 8 * chosen.row_threads
    assert 1 <= chosen.time_block <= max(steps, 1)


def test_tiles_pack_for_a_single_sequence():
    sizes = {"steps": 48, "batch": 1, "input": 512, "hidden": 512, "threads": 2}
    assert [make_cpu_plan(**sizes, packed_from_rows=rows).packs for rows in (1, 2)] == [True, False]


def test_tiles_pack_for_fewer_gradients():
    sizes = {"steps": 1, "batch": 16, "input": 512, "hidden": 512, "threads": 2, "backward": True}
    assert [make_cpu_plan(**sizes, packed_from_entries=entries).packs for entries in (8, 24)] == [True, False]


def test_weights_are_kept_where_the_cache_holds_them():
    sizes = {"steps": 100, "batch": 32, "input": 200, "hidden": 200, "threads": 2}
    small, large = (make_cpu_plan(**sizes, cached_weight_bytes=kib << 10) for kib in (256, 1024))
    # W_hh takes 625 KiB as float32: where each thread can keep all of it, the threads divide the batch.
    assert (small.row_threads, small.unit_threads, small.time_block) == (1, 2, 1)
    assert (large.row_threads, large.unit_threads, large.time_block) == (2, 1, 3)
