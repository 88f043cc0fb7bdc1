"""The exchange of the persistent kernels by itself: every interleaving of a small case, and ThreadSanitizer."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "protocol/ring.cpp"
BLOCKS, WARPS, STEPS = 2, 2, 4
EMPTY = -1


def _program(block, warp, fault):
    """What a warp does, one visible action after another; warp w multiplies what block w has published."""

    def slot(state, producer):
        return (0 if fault == "one_slot" else state % 2, *producer)

    yield "write", slot(0, (block, warp)), 0
    yield "barrier", block, None
    if warp == 0:
        yield "flag", block, 1
    for step in range(STEPS):
        yield "wait", warp, step + 1 - (fault == "waits_for_less")
        for other in range(WARPS):
            yield "read", slot(step, (warp, other)), step
        if fault != "no_barrier_after_products":
            yield "barrier", block, None
        yield "write", slot(step + 1, (block, warp)), step + 1
        if fault != "no_barrier_before_flag":
            yield "barrier", block, None
        if warp == 0:
            yield "flag", block, step + 2


def _explore(fault):
    """Visits every state that any order of actions leads to; gives the first error and the number of states."""
    warps = list(product(range(BLOCKS), range(WARPS)))
    programs = [list(_program(*warp, fault)) for warp in warps]
    places = sorted({place for program in programs for kind, place, _ in program if kind in ("write", "read")})
    start = ((0,) * len(warps), (EMPTY,) * len(places), (0,) * BLOCKS)
    seen, waiting = {start}, [start]
    while waiting:
        counters, slots, flags = waiting.pop()
        current = [program[at] if at < len(program) else None for program, at in zip(programs, counters, strict=True)]
        successors = []
        for index, action in enumerate(current):
            if action is None:
                continue
            kind, place, value = action
            moved, new_slots, new_flags = [index], slots, flags
            if kind == "barrier":
                moved = [other for other, (block, _) in enumerate(warps) if block == warps[index][0]]
                if index != moved[0] or any(current[other] != action for other in moved):
                    continue
            elif kind == "wait":
                if flags[place] < value:
                    continue
            elif kind == "flag":
                new_flags = (*flags[:place], value, *flags[place + 1 :])
            else:
                at = places.index(place)
                if kind == "write":
                    new_slots = (*slots[:at], value, *slots[at + 1 :])
                elif slots[at] != value:
                    return f"warp {warps[index]} reads state {slots[at]} instead of {value}", len(seen)
            successors.append((tuple(at + (i in moved) for i, at in enumerate(counters)), new_slots, new_flags))
        if not successors and any(current):
            return "nobody can go on", len(seen)
        for state in successors:
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return None, len(seen)


def test_every_interleaving_of_two_blocks_is_right():
    error, states = _explore(None)
    assert error is None
    assert states > 1000


FAULTS = ["one_slot", "waits_for_less", "no_barrier_after_products", "no_barrier_before_flag"]


@pytest.mark.parametrize("fault", FAULTS)
def test_some_interleaving_shows_a_fault(fault):
    error, _ = _explore(fault)
    assert "instead of" in error


def _explore_data(fault, slots=4, steps_per_fence=1):
    """The exchange without flags, of two blocks of a warp each, with stores that become visible in any order.

    Stores to one place stay in order, and none overtakes one before a fence. A state is where every block is, what the
    slots hold and, for each block, the stores that it alone sees so far: (place, value, fences before it).
    """
    steps, slots = slots + 3, 2 if fault == "two_slots" else slots

    def program(block):
        yield "store", (0, block), 0
        for step in range(steps):
            for producer in range(BLOCKS):
                yield "read", (step % slots, producer), step
            yield "store", ((step + 1) % slots, block), step + 1
            cleared = step - (fault != "clears_too_early")
            if cleared >= 0 and fault != "never_clears":
                yield "store", (cleared % slots, block), EMPTY
            if fault != "no_fence" and step % steps_per_fence == steps_per_fence - 1:
                yield "fence", None, None

    programs = [list(program(block)) for block in range(BLOCKS)]
    places = list(product(range(slots), range(BLOCKS)))
    start = ((0,) * BLOCKS, (EMPTY,) * len(places), ((),) * BLOCKS, (0,) * BLOCKS)
    seen, waiting = {start}, [start]
    while waiting:
        counters, memory, pending, fences = waiting.pop()
        successors = []

        def replaced(values, index, value):
            return (*values[:index], value, *values[index + 1 :])

        for block in range(BLOCKS):
            own = pending[block]
            for at, (place, value, fence) in enumerate(own):
                if any(other == place or earlier < fence for other, _, earlier in own[:at]):
                    continue
                committed = replaced(memory, places.index(place), value)
                successors.append((counters, committed, replaced(pending, block, own[:at] + own[at + 1 :]), fences))
            if counters[block] == len(programs[block]):
                continue
            kind, place, value = programs[block][counters[block]]
            moved = replaced(counters, block, counters[block] + 1)
            if kind == "fence":
                successors.append((moved, memory, pending, replaced(fences, block, fences[block] + 1)))
            elif kind == "store":
                stores = (*own, (place, value, fences[block]))
                successors.append((moved, memory, replaced(pending, block, stores), fences))
            else:
                seen_value = next((v for p, v, _ in reversed(own) if p == place), memory[places.index(place)])
                if seen_value == EMPTY:
                    continue
                if seen_value != value:
                    return f"block {block} reads state {seen_value} instead of {value}", len(seen)
                successors.append((moved, memory, pending, fences))
        if not successors and any(at < len(program) for at, program in zip(counters, programs, strict=True)):
            return "nobody can go on", len(seen)
        for state in successors:
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return None, len(seen)


# A slot may be used again 2F + 2 states later, with a fence every F steps. The kernels have F = 4 and 16 slots.
@pytest.mark.parametrize(("slots", "steps_per_fence"), [(4, 1), (6, 2), (8, 3)])
def test_every_order_of_stores_without_flags_is_right(slots, steps_per_fence):
    error, states = _explore_data(None, slots, steps_per_fence)
    assert error is None
    assert states > 1000


@pytest.mark.parametrize(("slots", "steps_per_fence"), [(2, 1), (3, 2), (4, 3)])
def test_some_order_of_stores_shows_that_slots_are_too_few_for_so_rare_fences(slots, steps_per_fence):
    error, _ = _explore_data(None, slots, steps_per_fence)
    assert "instead of" in error


DATA_FAULTS = {
    "two_slots": "instead of",
    "never_clears": "instead of",
    "clears_too_early": "nobody can go on",
    "no_fence": "instead of",
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_some_order_of_stores_shows_a_fault(fault):
    error, _ = _explore_data(fault)
    assert DATA_FAULTS[fault] in error


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The exchange with threads for warps, for ThreadSanitizer."""
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    path = tmp_path_factory.mktemp("protocol") / "ring"
    subprocess.run(
        ["c++", "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", "-Wall", "-Werror", SOURCE, "-o", path],
        check=True,
    )
    return path


def _race(program, blocks, fault):
    return subprocess.run([program, str(blocks), fault], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("blocks", [1, 2, 4, 16])
def test_no_access_races(blocks, program):
    run = _race(program, blocks, "none")
    assert (run.returncode, run.stdout) == (0, "right\n"), run.stderr


THREAD_FAULTS = [
    "one_slot",
    "no_release",
    "no_acquire",
    "no_barrier_after_products",
    "no_barrier_before_flag",
    "one_producer",
]


@pytest.mark.parametrize("fault", THREAD_FAULTS)
def test_a_fault_races(fault, program):
    assert "ThreadSanitizer: data race" in _race(program, 4, fault).stderr
