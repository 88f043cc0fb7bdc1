"""How the blocks of a persistent launch talk, by itself: every interleaving of a small case, and ThreadSanitizer."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "protocol/ring.cpp"
BLOCKS, WARPS, STEPS = 2, 2, 4
EMPTY = -1


def _program(block, warp, fault):
    """What a warp does, one visible action after another; warp w multiplies what block w has told."""

    def slot(state, teller):
        return (0 if fault == "one_slot" else state % 2, *teller)

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
    "one_teller",
]


@pytest.mark.parametrize("fault", THREAD_FAULTS)
def test_a_fault_races(fault, program):
    assert "ThreadSanitizer: data race" in _race(program, 4, fault).stderr
