"""Tries what could go wrong on a GPU and on a GPU alone, each hazard in a process of its own.

    python -m tests.hazards NAME [--seconds SECONDS] | --list

The last line of the output is one line of JSON: hazard, verdict (right, wrong or hung), seconds, facts, error. The exit
status is 0 only if the verdict is right. A hazard that exceeds its time is hung: a kernel that waits for ever cannot be
interrupted from inside, so its process is killed. The hazards are the functions of hazard_cases.py.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# The seconds that each hazard may take on a machine that does nothing else, the start of its process included.
SECONDS: Mapping[str, float] = {
    "shared_memory_of_two_threads": 35,
    "refused_cooperative_launch": 25,
    "current_green_context": 25,
    "two_grids": 35,
    "nan_states": 90,
    "hidden_zero": 25,
    "division_of_many_rows": 55,
    "first_use_in_a_capture": 55,
}

Note = Callable[..., None]  # takes facts by name; what a hazard has noted is reported even if it then fails or hangs


def main(seconds: Mapping[str, float], cases: str) -> int:
    """Tries the hazard that the command line names.

    Args:
        seconds: that each hazard may take, by its name.
        cases: the module whose functions of these names are the hazards. A hazard takes a `Note` and raises an error if
            what it tries goes wrong. This process does not import the module, whose import may take seconds.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("hazard", nargs="?", choices=seconds, metavar="NAME")
    parser.add_argument("--seconds", type=float, help="that it may take, instead of what --list prints")
    parser.add_argument("--list", action="store_true", help="print each name and the seconds that it may take")
    parser.add_argument("--report-to", type=Path, help=argparse.SUPPRESS)  # the process that tries the hazard
    arguments = parser.parse_args()
    if arguments.list:
        for name, most in seconds.items():
            print(f"{name} {most:g}")
        return 0
    if arguments.hazard is None:
        parser.error(f"NAME must be one of {', '.join(seconds)}; or give --list")
    if arguments.report_to:
        return _try(getattr(importlib.import_module(cases), arguments.hazard), arguments.report_to)
    verdict = _judge(arguments.hazard, arguments.seconds or seconds[arguments.hazard])
    print(json.dumps(verdict), flush=True)
    return 0 if verdict["verdict"] == "right" else 1


def _try(hazard: Callable[[Note], None], report: Path) -> int:
    facts: dict[str, Any] = {}

    def write(error: str | None) -> None:
        complete = report.with_suffix(".new")
        complete.write_text(json.dumps({"facts": facts, "error": error}))
        complete.replace(report)  # at once: this process may be killed at any time

    def note(**more: Any) -> None:
        facts.update(more)
        write("it did not come to its end")

    try:
        hazard(note)
    except Exception as error:
        write(in_short(error))
        raise
    write(None)
    return 0


def _judge(name: str, seconds: float) -> dict[str, Any]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, errors = Path(folder) / "report.json", Path(folder) / "stderr"
        command = [sys.executable, *sys.orig_argv[1:], "--report-to", str(report)]
        with errors.open("w") as stderr:
            tried = subprocess.Popen(command, stdout=sys.stderr, stderr=stderr, start_new_session=True)
            try:
                status: int | None = tried.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            with suppress(ProcessLookupError):  # its own processes too
                os.killpg(tried.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a process may stay for as long as its kernel runs
                tried.wait(10)
        said = errors.read_text(errors="replace")
        sys.stderr.write(said)
        found = json.loads(report.read_text()) if report.exists() else {"facts": {}, "error": None}
    error, verdict = found["error"], "right" if status == 0 and found["error"] is None else "wrong"
    if status is None:
        verdict, error = "hung", f"took more than {seconds:g} s"
    elif status < 0:
        error = f"ended by signal {-status}: {_last_line(said)}"
    elif status > 0 and error is None:
        error = f"ended with status {status}: {_last_line(said)}"
    return {
        "hazard": name,
        "verdict": verdict,
        "seconds": round(time.monotonic() - start, 1),
        "facts": found["facts"],
        "error": error,
    }


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


def in_short(error: BaseException) -> str:
    """Class and message of an error, cut to what a line can hold."""
    return f"{type(error).__name__}: {error}"[:600]


if __name__ == "__main__":
    sys.exit(main(SECONDS, "tests.hazard_cases"))
