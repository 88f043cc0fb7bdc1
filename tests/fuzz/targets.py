"""Where the seeds run: each device and instruction set in a process of its own, so that a crash is a failed seed."""

import functools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fusedlstm import _C

ROOT = Path(__file__).parents[2]
SECONDS_OF_A_SEED = 300  # a seed that takes longer hangs
WORKER = [sys.executable, "-m", "tests.fuzz", "--worker", "--target"]  # reads seeds, answers each with its error
INSTRUCTION_SETS = ("plain", "avx2", "avx512", "avx512_bf16", "amx")


@dataclass(frozen=True)
class Target:
    """A device (cpu, emulated, cuda) and, of a CPU, an instruction set."""

    device: str
    isa: str | None = None

    def __str__(self) -> str:
        return self.isa or self.device

    def command(self, seed: int) -> str:
        """What runs one seed alone."""
        return f"python -m tests.fuzz --target {self} --seed {seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a seed; without an error it passed."""

    target: Target
    seed: int
    error: str | None = None


def named(name: str) -> Target:
    """The target that a name stands for."""
    return Target("cpu", name) if name in INSTRUCTION_SETS else Target(name)


# Which instruction sets this processor has. The first call of a process chooses one, so each is tried in a fork.
_PROBE = """
import os, sys
from fusedlstm import _C
for name in sys.argv[1:]:
    if os.fork() == 0:
        os.environ["FUSEDLSTM_ISA"] = name
        try:
            print(_C.instruction_set(), flush=True)
        except RuntimeError:
            pass
        os._exit(0)
    os.wait()
"""


@functools.cache
def usable() -> list[Target]:
    """The targets of this machine and this build."""
    command = [sys.executable, "-c", _PROBE, *INSTRUCTION_SETS]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if not _C.build_info()["cuda"]:
        names.append("emulated")
    elif torch.cuda.is_available():
        names.append("cuda")
    return [named(name) for name in names]


def run(target: Target, seeds: Iterable[int]) -> Iterator[Outcome]:
    """Runs seeds in order, in a new process after each that ended or stopped the one before."""
    left = list(seeds)
    while left:
        for outcome in _run_in_one_process(target, left):
            left.remove(outcome.seed)
            yield outcome


def _run_in_one_process(target: Target, seeds: list[int]) -> Iterator[Outcome]:
    environment = os.environ | ({"FUSEDLSTM_ISA": target.isa} if target.isa else {})
    process = subprocess.Popen(
        [*WORKER, str(target)],
        env={"OMP_WAIT_POLICY": "PASSIVE", **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    with process:
        readers = [
            threading.Thread(target=_read, args=(process.stdout, lines.put)),
            threading.Thread(target=_read, args=(process.stderr, errors.append)),
        ]
        for reader in readers:
            reader.start()
        try:
            for seed in seeds:
                answer = _ask(process, lines, seed)
                if answer:
                    yield Outcome(target, seed, json.loads(answer))
                    continue
                ended = answer is not None
                process.kill()
                readers[1].join()
                why = (
                    f"the process ended with {process.wait()}" if ended else f"no answer in {SECONDS_OF_A_SEED} seconds"
                )
                yield Outcome(target, seed, f"{why}: {''.join(errors)[:6000]}")
                return
        finally:
            process.kill()
            for reader in readers:
                reader.join()


def _ask(process: subprocess.Popen[str], lines: "queue.Queue[str]", seed: int) -> str | None:
    """The answer to a seed: empty if the process ended, None if it hangs."""
    assert process.stdin
    try:
        process.stdin.write(f"{seed}\n")
        process.stdin.flush()
        return lines.get(timeout=SECONDS_OF_A_SEED)
    except BrokenPipeError:
        return ""
    except queue.Empty:
        return None


def _read(stream: Iterable[str], put: Callable[[str], object]) -> None:
    """Passes on the lines of a stream, and an empty one at its end."""
    for line in stream:
        put(line)
    put("")
