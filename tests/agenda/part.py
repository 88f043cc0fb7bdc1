"""What a part of the agenda is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A command that runs in a process of its own, and what is known of it.

    Args:
        name: of the part and its record.
        title: what a reader of the list sees.
        command: may name {python}, {results} (the folder of all records) and {commit}.
        estimate: seconds; the part starts only if they fit into what is left.
        limit: seconds after which it is killed.
        sources: globs of the files that its record depends on, besides those that every record depends on.
        writes: files that it must leave in the machine's folder of records.
        group: parts of one group run beside each other.
        packages: without one of them the part is left out.
        required: whether nothing else can run unless it passes.
        holds: whether what it left outside the records is still there.
    """

    name: str
    title: str
    command: tuple[str, ...]
    estimate: float
    limit: float
    sources: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    group: str = ""
    packages: tuple[str, ...] = ()
    required: bool = False
    holds: Callable[[], bool] = lambda: True
