"""A part's process with all its children, and the signals that end a run early."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from agenda.part import Part
from agenda.sources import ROOT

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""

_OUTPUT_KEPT = 256_000  # bytes of a part's output in the log of all parts
_TAIL = 4000  # characters of it in the part's record


class Running:
    """A part that has been started: a session of its own, whose output goes to a file."""

    def __init__(self, part: Part, command: list[str], environment: dict[str, str], log: Path, limit: float) -> None:
        self.part, self.log = part, log
        self.start = time.monotonic()
        self.end = self.start
        self.deadline = self.start + limit
        self.process: subprocess.Popen[bytes] | None = None
        with log.open("wb") as output:
            try:
                self.process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                output.write(f"{command[0]} cannot be started: {error}\n".encode())

    def has_ended(self) -> bool:
        """Whether the first process has ended; it stays a zombie, so that no other can get the number of its group."""
        how = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return self.process is None or os.waitid(os.P_PID, self.process.pid, how) is not None

    def is_late(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() > self.deadline

    def signal_all(self, number: signal.Signals) -> None:
        """Sends a signal to the part's process and all that it started."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def reap(self) -> int | None:
        """Ends what a part has left running and returns its exit status, None if even SIGKILL does not end it."""
        self.end = time.monotonic()
        self.signal_all(signal.SIGKILL)
        if self.process is None:
            return 127
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=5)
        return None

    def move_output(self, log: Path, heading: str) -> str:
        """Appends the output to the log of all parts and returns its last lines, without the folders of the machine."""
        output = self.log.read_bytes()
        if len(output) > _OUTPUT_KEPT:
            output = b"...\n" + output[-_OUTPUT_KEPT:]
        with log.open("ab") as file:
            file.write(f"== {heading}\n".encode() + output + b"\n")
        self.log.unlink()
        text = re.sub(r"[^\n]*\r(?!\n)", "", output.decode(errors="replace"))  # of a progress bar, its last state
        return re.sub(r"(?<![\w./])/(?:[\w.+-]+/)+", "", text).strip()[-_TAIL:]


def halt(running: Iterable[Running]) -> None:
    """Ends parts: SIGTERM to all, and SIGKILL to what is left after the grace (by `Running.reap`)."""
    running = list(running)
    for each in running:
        each.signal_all(signal.SIGTERM)
    end = time.monotonic() + GRACE
    while time.monotonic() < end and not all(each.has_ended() for each in running):
        time.sleep(0.02)


class Signals:
    """Remembers Ctrl-C and SIGTERM, so that a run ends with its records packed."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
