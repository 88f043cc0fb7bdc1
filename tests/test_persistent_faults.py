"""Faults planted in the persistent kernels: some schedule must show each of them, or the tests prove little."""

import multiprocessing
import os
import re
import shutil
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

import emulated
import pytest
import torch
from persistent_faults import FAULTS
from test_persistent import Problem, Shape

from fusedlstm import _C

pytestmark = pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")

# Faults in the order of accesses show under some schedules only, others at once.
SEEDS = range(1, 7)


def shapes(strategy: str) -> list[Shape]:
    """By data the first has more steps than the exchange has slots. In the first two some blocks have fewer octets."""
    steps = 18 if strategy == "persistent" else 6
    return [
        Shape(steps, 49, 36, multiprocessors=3),  # two chunks, the last of them with fewer row tiles, two quads
        Shape(5, 49, 36, D=2, lengths=True, resets=True, multiprocessors=6),
        Shape(3, 17, 44, multiprocessors=1),  # six octets in two quads
        Shape(steps, 5, 60, multiprocessors=4),  # one chunk
    ]


def problem(shape: Shape) -> Problem:
    torch.manual_seed(0)
    return Problem(shape, torch.bfloat16)


def check(strategy: str, expected: Path, library: Path, answer: Connection) -> None:
    """In a process of its own: answers what is wrong with the kernels of ``library``, None if nothing is.

    Every schedule must give the bits in file ``expected``.
    """
    os.environ["FUSEDLSTM_EMULATION_LIBRARY"] = str(library)
    cases = list(zip(shapes(strategy), torch.load(expected), strict=True))
    try:
        for seed, (shape, results) in product(SEEDS, cases):
            with emulated.operators(strategy, shape.multiprocessors, seed):
                for name, value in problem(shape).run().items():
                    assert torch.equal(value, results[name]), f"{name} of {shape} with seed {seed}"
    except (AssertionError, RuntimeError) as error:
        answer.send(f"{type(error).__name__}: {error}")
    else:
        answer.send(None)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the kernels as they are make of the shapes, by strategy, each in a file."""
    files = {}
    for strategy in ("persistent", "persistent_flags"):
        results = []
        for shape in shapes(strategy):
            with emulated.operators(strategy, shape.multiprocessors):
                results.append(problem(shape).run())
        files[strategy] = tmp_path_factory.mktemp("expected") / f"{strategy}.pt"
        torch.save(results, files[strategy])
    return files


@dataclass(frozen=True)
class Run:
    """Calls :func:`check` with the kernels of a source tree."""

    expected: dict[str, Path]
    csrc: Path
    folder: Path

    def __call__(self, strategy: str) -> str | None:
        library = emulated.build_with(self.csrc, self.folder)
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["torch"])  # once, not for each fault
        received, answer = processes.Pipe(duplex=False)
        process = processes.Process(target=check, args=(strategy, self.expected[strategy], library, answer))
        process.start()
        answer.close()
        try:
            return received.recv()
        finally:
            process.join()


@pytest.fixture
def run(tmp_path, expected):
    csrc = Path(shutil.copytree(emulated.ROOT / "csrc", tmp_path / "csrc"))
    # Only what these shapes take, so that it compiles in seconds.
    traits = csrc / "cuda/traits.h"
    text, count = re.subn(r"(kCompiledKBlocks\S*?\{)[^}]*", r"\g<1>1", traits.read_text())
    assert count == 2
    traits.write_text(text)
    return Run(expected, csrc, tmp_path)


@pytest.mark.parametrize("strategy", ["persistent", "persistent_flags"])
def test_without_a_fault_all_schedules_agree(strategy, run):
    assert run(strategy) is None


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_shows(fault, run):
    fault.plant(run.csrc)
    error = run(fault.strategy)
    assert error is not None
    print(error)
    assert error.startswith("AssertionError") or "fusedlstm emulation: kernel" in error, error
