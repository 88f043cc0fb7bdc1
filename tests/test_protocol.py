"""The exchange of the persistent kernels by itself: every interleaving of a small case, and ThreadSanitizer."""

import shutil
import subprocess
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Data:
    """The exchange without flags, of two blocks of a warp each: its slots, and the steps for each fence.

    Blocks may fence in different steps: ``apart`` is how many lie between theirs. (The kernels' all fence in the same.)
    With several chunks the next one is loaded ahead, the first one of the next state before the fence of this step.
    ``first_only`` leaves out what concerns the other chunks.
    """

    slots: int
    steps_per_fence: int
    apart: int = 0
    chunks: int = 1
    first_only: bool = False
    fault: str | None = None

    def program(self, block):
        """What a block does, one visible action after another. Its own words it sees at once, and reads the other's.

        A load takes what there is, a poll what was loaded or, where that was empty, what is published.
        """
        other, fault, slots = 1 - block, self.fault, 2 if self.fault == "two_slots" else self.slots
        parts = [(step, chunk) for step in range(self.slots + 3) for chunk in range(self.chunks)]
        actions = [("store", (0, chunk, block), 0) for chunk in range(self.chunks)]
        actions.append(("load", (0, 0, other), None))
        for at, (step, chunk) in enumerate(parts):
            if self.chunks == 1 and step > 0:
                actions.append(("load", (step % slots, chunk, other), None))
            actions.append(("poll", (step % slots, chunk, other), step))
            if self.chunks > 1 and at + 1 < len(parts):
                next_step, next_chunk = parts[at + 1]
                actions.append(("load", (next_step % slots, next_chunk, other), None))
            actions.append(("store", ((step + 1) % slots, chunk, block), step + 1))
            cleared = step - (fault != "clears_too_early")
            if cleared >= 0 and fault != "never_clears":
                actions.append(("store", (cleared % slots, chunk, block), EMPTY))
            fences = (step + 1 + self.apart * block) % self.steps_per_fence == 0
            if chunk + 1 == self.chunks and fences and fault != "no_fence":
                actions.append(("fence", None, None))
        return [action for action in actions if not (self.first_only and action[1] and action[1][1] > 0)]

    def explore(self):
        """Visits every state that any order leads to; gives the first error and the number of states.

        Stores become visible in any order, but those to one place in theirs, and none before one that a fence precedes.
        Loads and polls may read before other actions of their block, down to the last fence. A state is where every
        block is, what the slots hold and, for each block, the stores that it alone sees so far, with a None for each
        fence among them, and what it has read of places in advance.
        """
        programs = [self.program(block) for block in range(BLOCKS)]
        places = sorted({place for program in programs for _, place, _ in program if place})

        def replaced(values, index, value):
            return (*values[:index], value, *values[index + 1 :])

        def issued(block, at, stores):
            """After the stores and fences from ``at`` on: when they are issued makes no difference."""
            program = programs[block]
            while at < len(program) and program[at][0] in ("store", "fence"):
                kind, place, value = program[at]
                if kind == "store" or stores:
                    stores = (*stores, (place, value) if kind == "store" else None)
                at += 1
            return at, stores

        begun = [issued(block, 0, ()) for block in range(BLOCKS)]
        empty = (EMPTY,) * len(places)
        start = (tuple(at for at, _ in begun), empty, tuple(stores for _, stores in begun), (empty,) * BLOCKS)
        seen, waiting = {start}, [start]
        while waiting:
            counters, memory, pending, read = waiting.pop()
            successors = []
            for block, (at, stores, own) in enumerate(zip(counters, pending, read, strict=True)):
                unfenced = stores[: stores.index(None)] if None in stores else stores
                for index, (place, value) in enumerate(unfenced):
                    if any(place == earlier for earlier, _ in unfenced[:index]):
                        continue
                    rest = stores[:index] + stores[index + 1 :]
                    rest = rest[1:] if rest[:1] == (None,) else rest
                    changed = replaced(memory, places.index(place), value)
                    successors.append((counters, changed, replaced(pending, block, rest), read))
                for later, (kind, place, value) in enumerate(programs[block][at:]):
                    if kind == "fence":
                        break
                    if kind == "store":
                        continue
                    index = places.index(place)
                    found = own[index] if own[index] != EMPTY else memory[index]
                    if later > 0:  # in advance; what is empty would be read again
                        if found != own[index]:
                            successors.append(
                                (counters, memory, pending, replaced(read, block, replaced(own, index, found)))
                            )
                        continue
                    if kind == "poll" and found == EMPTY:
                        continue
                    if kind == "poll" and found != value:
                        return f"block {block} reads state {found} instead of {value}", len(seen)
                    kept = replaced(own, index, found if kind == "load" else EMPTY)
                    moved, added = issued(block, at + 1, stores)
                    successors.append(
                        (
                            replaced(counters, block, moved),
                            memory,
                            replaced(pending, block, added),
                            replaced(read, block, kept),
                        )
                    )
            if not successors and any(at < len(program) for at, program in zip(counters, programs, strict=True)):
                return "nobody can go on", len(seen)
            for state in successors:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        return None, len(seen)


FENCES = [(F, apart) for F in (1, 2, 3) for apart in range(F)]
CHUNKS = {"one_chunk": {"chunks": 1}, "loads_ahead": {"chunks": 2, "first_only": True}}


def _slots_needed(chunks, steps_per_fence, apart):
    """2F + 2 with a fence every F steps, and 2F + 3 with chunks loaded ahead, whichever steps the blocks fence in.

    One less if all fence in the same step, but for F = 1. The kernels have F = 4 and 16 slots.
    """
    return 2 * steps_per_fence + 2 + (chunks == "loads_ahead") - (apart == 0 and steps_per_fence > 1)


@pytest.mark.parametrize(("steps_per_fence", "apart"), FENCES)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_every_order_of_loads_and_stores_without_flags_is_right(chunks, steps_per_fence, apart):
    slots = _slots_needed(chunks, steps_per_fence, apart)
    error, states = Data(slots, steps_per_fence, apart, **CHUNKS[chunks]).explore()
    assert error is None
    assert states > 1000


@pytest.mark.parametrize(("steps_per_fence", "apart"), FENCES)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_some_order_shows_that_there_is_a_slot_too_few(chunks, steps_per_fence, apart):
    slots = _slots_needed(chunks, steps_per_fence, apart) - 1
    error, _ = Data(slots, steps_per_fence, apart, **CHUNKS[chunks]).explore()
    assert "instead of" in error


def test_two_whole_chunks():
    assert Data(5, 1, chunks=2).explore()[0] is None
    assert "instead of" in Data(4, 1, chunks=2).explore()[0]


DATA_FAULTS = {
    "two_slots": "instead of",
    "never_clears": "instead of",
    "clears_too_early": "nobody can go on",
    "no_fence": "instead of",
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_some_order_of_stores_shows_a_fault(chunks, fault):
    error, _ = Data(5, 1, **CHUNKS[chunks], fault=fault).explore()
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
