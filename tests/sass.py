"""What the compile gate reads out of the instructions of the persistent kernels, as ``cuobjdump -sass`` prints them."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from operator import add


@dataclass(frozen=True)
class Kernel:
    """The instructions of a persistent kernel on one architecture, by their addresses."""

    name: str
    arch: str
    code: dict[int, str]

    @property
    def of_pass(self) -> str:
        return "backward" if "backward_persistent_kernel" in self.name else "forward"

    def __str__(self) -> str:
        return f"{self.name}, sm_{self.arch}"


def kernels(sass: str) -> Iterator[Kernel]:
    """The persistent kernels in the output of ``cuobjdump -sass``."""
    name = arch = next_arch = ""
    code: dict[int, str] = {}
    for line in [*sass.splitlines(), "Function : "]:
        text = line.lstrip()
        # An instruction's line ends with its encoding, and the next line is the rest of the encoding alone.
        if text.startswith("/*") and not text.startswith("/* "):
            at, _, rest = text[2:].partition("*/")
            code[int(at, 16)] = rest.partition(";")[0].strip()
        elif text.startswith("code for sm_"):
            next_arch = text.removeprefix("code for sm_").strip()
        elif text.startswith("Function : "):
            if "persistent_kernel" in name:
                yield Kernel(name, arch, code)
            name, arch, code = text.removeprefix("Function : "), next_arch, {}


def instruction_faults(kernel: Kernel) -> list[str]:
    """What is amiss in the instructions.

    A kernel must use the tensor cores and no local memory. Loops that poll must be free of fences, each of which would
    drop the L1 cache and wait for memory. After flags, a load with acquire must come before the state is read.
    """
    wrong, code = [], kernel.code
    if not any("HMMA" in text for text in code.values()):
        wrong.append(f"{kernel}: no product on the tensor cores")
    wrong += [f"{kernel}: {text}" for text in code.values() if re.search(r"\b(LDL|STL)\b", text)]
    polls, by_data = [], False
    for begin, end in _innermost_loops(code):
        body = [text for at, text in code.items() if begin <= at <= end]
        if not any("LDG" in text and "STRONG.GPU" in text for text in body) or any("HMMA" in text for text in body):
            continue
        polls.append(end)
        by_data = any("LDG.E.128" in text for text in body)
        wrong += [f"{kernel}: {text.strip()} while polling" for text in body if re.search("MEMBAR|CCTL|ERRBAR", text)]
    last = max(polls, default=0)
    reads = [at for at, text in code.items() if "LDG.E.128.STRONG.GPU" in text and at > last]
    if not polls:
        wrong.append(f"{kernel}: no loop that polls")
    # Where the data itself is polled, it has been read then, and a fence comes later in the step. Where flags are
    # polled, a load with acquire follows, which drops the L1 cache.
    elif by_data and not any("MEMBAR" in text and last < at for at, text in code.items()):
        wrong.append(f"{kernel}: no fence after the polling")
    elif not by_data and not any(
        "CCTL.IVALL" in text and last < at < min(reads, default=last) for at, text in code.items()
    ):
        wrong.append(f"{kernel}: no acquire between the polling and the reading")
    return wrong


def _innermost_loops(code: dict[int, str]) -> Iterator[tuple[int, int]]:
    jumps = {at: re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text) for at, text in code.items()}
    loops = [(int(to[1], 16), at) for at, to in jumps.items() if to and int(to[1], 16) < at]
    for begin, end in loops:
        if not any(begin <= other_begin and other_end < end for other_begin, other_end in loops):
            yield begin, end


# What marks the work on cells. A warp with cells takes the path that has the most of it: partial sums and cell states
# are loaded, activations made, gates exchanged between lanes, and cell states stored.
_WORK = re.compile(r"\b(LDS|STS|MUFU|SHFL)\b")
# Forward, each of four tiles has eight partial sums and an activation (ex2 and rcp), then four shuffles give a lane the
# gates of its cell, whose state is loaded, stored and passed through tanh. Backward a lane has eight partial sums and a
# state for its own cell alone, whatever the number of tiles.
_LEAST_WORK = {"forward": 4 * (8 + 2) + 4 + 4, "backward": 8 + 2}
_TILE = {"LDS": 8, "MUFU.EX2": 1, "MUFU.RCP": 1}


@dataclass(frozen=True)
class Step:
    """How many instructions follow the barrier after the products, up to the store that publishes the state."""

    kernel: Kernel
    one_tile: int  # that a warp executes whose quad has one tile of cells
    quad: int  # .. four of them
    all_paths: int  # that there are, more than any warp executes


def step(kernel: Kernel) -> Step | None:
    """Of the first quad of a chunk without lengths and resets.

    None if no path from the barrier to the store has the work on cells, or if there is a loop between them, or another
    barrier. The store
    is the first one after the barrier that other blocks can see. Others follow: later quads, words that are cleared,
    the flag.
    """
    successors = _successors(kernel.code)
    stores = [at for at, text in kernel.code.items() if "STG.E.STRONG.GPU" in text]
    for barrier in _barriers_after_products(kernel.code, successors):
        store = next((at for at in stores if at > barrier), barrier)
        paths = _paths(kernel.code, successors, barrier, store)
        work, lengths = _busiest(kernel.code, paths, store)
        if work.get(barrier, 0) < _LEAST_WORK[kernel.of_pass]:
            continue
        quad = one_tile = lengths[barrier]
        if kernel.of_pass == "forward":
            shuffle, length = _first_shuffle(kernel.code, paths, barrier)
            one_tile = length + lengths[shuffle]
        return Step(kernel, one_tile, quad, len(paths) - 1)
    return None


Graph = dict[int, list[int]]


def _successors(code: dict[int, str]) -> Graph:
    """The addresses that can follow each address."""
    graph: Graph = {}
    for (at, text), following in zip(code.items(), [*list(code)[1:], None], strict=True):
        # CALL.REL.NOINC is a jump too: ptxas leaves loops with it. BSYNC stands before the place where it goes on.
        # BRA.DIV is for lanes that are elsewhere, of which there are none.
        control = re.search(r"\b(BRA|CALL|EXIT|RET|BRX)\b", text)
        jump = re.search(r"\b(?:BRA|CALL\.REL)\b\S* (.*, )?0x([0-9a-f]+)$", text) if control else None
        may_go_on = not control or text.startswith("@") or (jump is not None and jump[1] is not None)
        graph[at] = [int(jump[2], 16)] if jump and "BRA.DIV" not in text else []
        graph[at] += [following] if may_go_on and following is not None else []
    return graph


def _is_barrier(text: str) -> bool:
    return "BAR.SYNC" in text


def _reachable(graph: Graph, begin: Iterable[int], ends: Callable[[int], bool]) -> set[int]:
    """What can be reached from `begin` without going on from where `ends`."""
    seen = set(begin)
    todo = list(seen)
    while todo:
        new = [to for to in graph.get(todo.pop(), []) if to not in seen]
        seen.update(new)
        todo += [to for to in new if not ends(to)]
    return seen


def _barriers_after_products(code: dict[int, str], successors: Graph) -> list[int]:
    """The barriers that a product can reach without another one between them."""
    products = [at for at, text in code.items() if "HMMA" in text]
    reached = _reachable(successors, products, lambda at: _is_barrier(code[at]))
    return sorted(at for at in reached if _is_barrier(code[at]))


def _paths(code: dict[int, str], successors: Graph, barrier: int, store: int) -> Graph:
    """All paths from the barrier to the store without another barrier, and none through the next step."""

    def ends(at: int) -> bool:
        return at <= barrier or at == store or _is_barrier(code[at])

    after = _reachable(successors, [barrier], ends)
    inside = {at for at in after if at in (barrier, store) or not ends(at)}
    before: Graph = {at: [] for at in inside}
    for at in inside:
        for to in successors[at]:
            if to in inside and at != store:
                before[to].append(at)
    inside = _reachable(before, [store], lambda at: False)
    return {at: [to for to in successors[at] if to in inside and at != store] for at in inside}


def _busiest(code: dict[int, str], paths: Graph, store: int) -> tuple[dict[int, int], dict[int, int]]:
    """How much work is done from each address on, and how many instructions that takes at least.

    Empty if there is a loop.
    """
    work, lengths = {store: 0}, {store: 0}
    try:
        # The sorter takes predecessors, so that the store comes first.
        for at in TopologicalSorter(paths).static_order():
            for to in paths[at]:
                more, length = work[to] + bool(_WORK.search(code[to])), lengths[to] + 1
                if (more, -length) > (work.get(at, -1), -lengths.get(at, 0)):
                    work[at], lengths[at] = more, length
    except CycleError:
        return {}, {}
    return work, lengths


def _first_shuffle(code: dict[int, str], paths: Graph, barrier: int) -> tuple[int, int]:
    """Where the gates of one tile are exchanged, and the number of instructions up to there: the fewest with _TILE.

    Breadth-first over addresses and what has been met of _TILE.
    """
    names, most = list(_TILE), tuple(_TILE.values())
    met_at = {at: [bool(re.search(rf"\b{re.escape(name)}\b", code[at])) for name in names] for at in paths}
    start = (barrier, (0,) * len(names))
    distance = {start: 0}
    queue = deque([start])
    while queue:
        at, met = here = queue.popleft()
        if "SHFL" in code[at]:
            if met == most:
                return at, distance[here]
            continue
        for to in paths[at]:
            there = (to, tuple(map(min, map(add, met, met_at[to]), most)))
            if there not in distance:
                distance[there] = distance[here] + 1
                queue.append(there)
    raise AssertionError("the busiest path has a tile and shuffles")
