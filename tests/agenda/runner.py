"""Runs the parts until the budget is spent."""

import datetime
import importlib.util
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from agenda import archive, listing, process, state
from agenda.machine import Machine
from agenda.part import Part
from agenda.process import Running, Signals
from agenda.sources import Sources

RESERVE = 10.0
"""Seconds of the budget that no part gets: the start of Python, and packing."""


class Run:
    """One run of the agenda.

    Args:
        parts: in order of value.
        machine: the GPU.
        results: folder of all records.
        out: folder of the archive, the log and the summary.
        budget: seconds for everything.
        sources: of the parts; default: this checkout's.
    """

    def __init__(
        self, parts: Iterable[Part], machine: Machine, results: Path, out: Path, budget: float,
        sources: Sources | None = None,
    ) -> None:  # fmt: skip
        self.start = time.monotonic()
        self.parts, self.results, self.out, self.budget = list(parts), results, out, budget
        self.sources = sources or Sources()
        self.machine, self.folder = machine, results / machine.folder
        self.packing = archive.Packing(self.folder, out, machine.commit, self.sources.of_all(self.parts))
        self.states = {part.name: state.state_of(part, self.folder, self.sources) for part in self.parts}
        self.done: list[state.Record] = []
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds that parts may still take."""
        return self.budget - RESERVE - (time.monotonic() - self.start)

    def run(self) -> int:
        """Runs what is not current.

        Returns:
            Exit status: 0; 1 if a part did not pass; 128 and its number after a signal.
        """
        absent = {part.name: package for part in self.parts if (package := _absent(part))}
        pending = [part for part in state.in_order(self.parts, self.states) if part.name not in absent]
        log = self.out / "log.txt"
        log.unlink(missing_ok=True)
        print(f"agenda on {self.machine.gpu}, commit {self.machine.commit}: {len(pending)} parts to run")
        with Signals() as signals:
            while not signals.received and (batch := self._next(pending)):
                pending = [part for part in pending if part not in batch]
                for record in self._results(batch, signals, log):
                    self.done.append(record)
                    state.write(record, self.folder)
                    self.packing.pack()
                    print(f"{record.part}: {record.outcome} after {record.seconds:.1f} s; {self.left():.0f} s left")
                    if record.outcome != state.PASSED and any(p.required and p.name == record.part for p in batch):
                        print(f"{record.part} is needed by all other parts: none of them runs")
                        pending = []
            left_out = self.packing.pack()  # also where no part ran
            states = {part.name: state.state_of(part, self.folder, self.sources) for part in self.parts}
            spent = time.monotonic() - self.start
            text = listing.summary(self.machine, self.parts, self.done, states, absent, spent, self.budget)
            text += f"\nrecords: {self.packing.path} ({self.packing.path.stat().st_size / 1e6:.2f} MB)"
            text += "".join(f"\nleft out of it, too large: {name}" for name in left_out)
            (self.out / "summary.txt").write_text(text + "\n")
            print(text)
        if signals.received:
            return 128 + signals.received
        return 0 if all(record.outcome == state.PASSED for record in self.done) else 1

    def _next(self, pending: list[Part]) -> list[Part]:
        """The first part whose estimate fits into what is left, with the rest of its group."""
        left = self.left()
        fitting = [part for part in pending if part.estimate <= left]
        first = fitting[:1]
        return [part for part in fitting if part in first or (part.group and self._rank(part) == self._rank(first[0]))]

    def _rank(self, part: Part) -> tuple[str, bool]:
        """Equal for parts that run beside each other: what failed before runs after all others."""
        return part.group, self.states[part.name] == "failed"

    def _results(self, batch: list[Part], signals: Signals, log: Path) -> Iterator[state.Record]:
        """Runs parts beside each other, and yields the record of each as it ends."""
        left = self.left()
        running = [self._start(part, min(part.limit, left)) for part in batch]
        try:
            while running:
                ended = [each for each in running if each.has_ended()]
                late = [each for each in running if each not in ended and (signals.received or each.is_late())]
                process.halt(late)
                for each in [*ended, *late]:
                    running.remove(each)
                    outcome = None
                    if each in late:
                        own = not signals.received and each.part.limit <= left
                        outcome = state.TIMED_OUT if own else state.CUT_OFF
                    yield self._record(each, outcome, log)
                time.sleep(0.05)
        finally:
            for each in running:  # after an error of the runner
                each.reap()

    def _start(self, part: Part, limit: float) -> Running:
        values = {"python": sys.executable, "results": str(self.results), "commit": self.machine.commit}
        command = [word.format(**values) for word in part.command]
        settings = {"FUSEDLSTM_COMMIT": self.machine.commit, "PYTHONUNBUFFERED": "1"}
        print(f"{part.name}: {part.title}; about {part.estimate:.0f} s, at most {limit:.0f} s")
        return Running(part, command, os.environ | settings, self.out / f"{part.name}.log", limit)

    def _record(self, ended: Running, outcome: str | None, log: Path) -> state.Record:
        """The record of a part that ended by itself, or for the reason ``outcome``."""
        part, status = ended.part, ended.reap()
        absent = [name for name in part.writes if not (self.folder / name).exists()]
        outcome = outcome or (state.FAILED if status or absent else state.PASSED)
        seconds = round(ended.end - ended.start, 1)
        output = ended.move_output(log, f"{part.name}: {outcome} after {seconds} s, exit status {status}")
        if not status and absent:
            output += f"\nagenda: it did not write {', '.join(absent)}"
        return state.Record(
            part=part.name, sources=self.sources.of_part(part), gpu=self.machine.gpu, driver=self.machine.driver,
            torch=self.machine.torch, commit=self.machine.commit,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), seconds=seconds,
            status=status, outcome=outcome, output=output,
        )  # fmt: skip


def _absent(part: Part) -> str | None:
    """A package that a part needs and this Python does not have."""
    return next((package for package in part.packages if importlib.util.find_spec(package) is None), None)
