"""What a person reads: the parts before a run, and what became of them after it."""

import textwrap
from collections.abc import Iterable, Mapping

from agenda import state
from agenda.machine import Machine
from agenda.part import Part

_LINES = 60
"""Lines of a summary: the end of a terminal is what one sees."""


def dry(folder: str, parts: Iterable[Part], states: Mapping[str, str], budget: float) -> str:
    """The parts of one machine in the order in which they run, and those for which the estimates leave time.

    Args:
        folder: the machine's.
        parts: in order of value.
        states: of the parts.
        budget: seconds that the parts may take together.
    """
    parts = list(parts)
    pending = state.in_order(parts, states)
    groups: dict[tuple[str, bool], float] = {}
    spent, total, lines = 0.0, 0.0, []
    for number, part in enumerate(pending, 1):
        group = (part.group, states[part.name] == "failed")
        beside = groups.get(group, 0.0) if part.group else 0.0  # the others of its group run meanwhile
        takes = max(part.estimate - beside, 0.0)
        total += takes
        starts = "-"
        if spent + takes <= budget:
            starts = f"{spent - beside:.0f} s"
            spent += takes
            groups[group] = beside + takes
        lines.append(_line(str(number), starts, part, states[part.name]))
    lines += [_line("", "-", part, "current") for part in parts if states[part.name] == "current"]
    counts = ", ".join(f"{count} {name}" for name in state.STATES if (count := list(states.values()).count(name)))
    head = f"{folder}: {counts}; about {total:.0f} s to run, of which {spent:.0f} s fit into {budget:.0f} s"
    return "\n".join([head, f"{'':>3} {'starts':>7} {'takes':>7}  {'state':<8} part", *lines])


def _line(number: str, starts: str, part: Part, status: str) -> str:
    return f"{number:>3} {starts:>7} {part.estimate:5.0f} s  {status:<8} {part.name:<36} {part.title}"


def summary(
    machine: Machine, parts: Iterable[Part], done: list[state.Record], states: Mapping[str, str],
    absent: Mapping[str, str], spent: float, budget: float,
) -> str:  # fmt: skip
    """What ran and what is left, in as many lines as a terminal shows.

    Args:
        machine: the GPU.
        parts: all parts.
        done: the records of this run.
        states: of the parts now.
        absent: the parts that cannot run here, each with a package that it needs.
        spent: seconds of the run.
        budget: seconds that it had.
    """
    outcomes = [record.outcome for record in done]
    counts = ", ".join(f"{outcomes.count(name)} {name}" for name in state.OUTCOMES if name in outcomes)
    head = f"agenda on {machine.gpu}, commit {machine.commit}: {counts or 'nothing ran'}; {spent:.0f} of {budget:.0f} s"
    ran = []
    for record in sorted(done, key=lambda record: record.outcome == state.PASSED):  # what is wrong stays in sight
        last = record.output.splitlines()[-1:] if record.outcome != state.PASSED else []
        ran.append(f"  {record.part:<36} {record.outcome:<9} {record.seconds:6.1f} s  {' '.join(last)[:70]}".rstrip())
    rest = [part for part in parts if states[part.name] != "current" and part.name not in absent]
    tail = []
    if rest:
        seconds = sum(part.estimate for part in rest)
        text = f"left for the next run, about {seconds:.0f} s: {', '.join(part.name for part in rest)}"
        tail += textwrap.wrap(text, 118, subsequent_indent="  ")
    tail += [f"{name} needs the package {package}" for name, package in absent.items()]
    room = _LINES - 4 - len(tail)
    if len(ran) > room:
        ran = [*ran[: room - 1], f"  and {len(ran) - room + 1} others"]
    return "\n".join([head, *ran, *tail])
