"""The record of a part's run, and what it says of the part: missing, stale, failed or current."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from agenda.part import Part
from agenda.sources import Sources

STATES = ("missing", "stale", "failed", "current")
OUTCOMES = PASSED, FAILED, TIMED_OUT, CUT_OFF = "passed", "failed", "timed out", "cut off"


@dataclass(frozen=True)
class Record:
    """One run of a part. ``status`` is its exit status, negative after a signal; ``output`` has its last lines."""

    part: str
    sources: str
    gpu: str
    driver: str
    torch: str
    commit: str
    date: str
    seconds: float
    status: int | None
    outcome: str
    output: str


def path_of(name: str, folder: Path) -> Path:
    """Where a machine's folder has the record of a part."""
    return folder / "agenda" / f"{name}.json"


def write(record: Record, folder: Path) -> None:
    """Writes a record in one step: a reader sees the old one or the new one."""
    path = path_of(record.part, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
    partial.replace(path)


def read(name: str, folder: Path) -> Record | None:
    """The record of a part, or None if there is none that can be read."""
    try:
        return Record(**json.loads(path_of(name, folder).read_text()))
    except (OSError, TypeError, ValueError):
        return None


def state_of(part: Part, folder: Path, sources: Sources) -> str:
    """What a part's record in a machine's folder is worth.

    Returns:
        "missing": there is no record, or what the part wrote is gone; "stale": it is of other sources; "failed": it is
        of these, and the part did not pass; "current": it passed.
    """
    record = read(part.name, folder)
    if record is None:
        return "missing"
    if record.sources != sources.of_part(part):
        return "stale"
    if record.outcome != PASSED:
        return "failed"
    return "current" if part.holds() and all((folder / name).exists() for name in part.writes) else "missing"


def in_order(parts: Iterable[Part], states: Mapping[str, str]) -> list[Part]:
    """The parts that are to run: those that others need, then as listed, and at the end what failed before."""
    pending = [part for part in parts if states[part.name] != "current"]
    return sorted(pending, key=lambda part: (not part.required, states[part.name] == "failed"))
