"""Faults planted in the persistent kernels: some schedule must show each of them, or the tests prove little."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import emulated
import pytest

from fusedlstm import _C

pytestmark = pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")

# Many schedules of two layers, against what the stepwise kernels make of them; what differs is a failure.
PROGRAM = """
import sys
import emulated, torch
from test_persistent import Problem, Shape

for shape in (Shape(6, 9, 60, D=2, multiprocessors=16), Shape(5, 70, 20, multiprocessors=3)):
    problem = Problem(shape, torch.bfloat16)
    with emulated.operators("stepwise"):
        expected = problem.run()
    for seed in range(1, 21):
        with emulated.operators("persistent", shape.multiprocessors, seed):
            for name, value in problem.run().items():
                torch.testing.assert_close(value.float(), expected[name].float(), rtol=0.1, atol=0.1)
"""


@dataclass(frozen=True)
class Fault:
    """A change of one line of a source."""

    file: str
    old: str
    new: str
    occurrence: int = 0

    def plant(self, csrc: Path) -> None:
        path = csrc / "cuda" / self.file
        parts = path.read_text().split(self.old)
        assert len(parts) > self.occurrence + 1, f"{self.file} has no {self.old!r} any more"
        before, after = parts[: self.occurrence + 1], parts[self.occurrence + 1 :]
        path.write_text(self.old.join(before) + self.new + self.old.join(after))


SHARED, FORWARD, BACKWARD = "persistent.cuh", "persistent_forward.cu", "persistent_backward.cu"
BARRIER = "      block_barrier();\n"
FAULTS = {
    "one_slot": Fault(SHARED, "(state & 1)", "(state & 0)"),
    "no_release": Fault(SHARED, "store_release(flags_", "store_relaxed(flags_"),
    "waits_for_one_block": Fault(SHARED, "other <= last", "other <= first"),
    "reads_before_it_is_there": Fault(SHARED, "load_relaxed(flag) < count", "load_relaxed(flag) + 1 < count"),
    "lanes_do_not_wait_for_their_warp": Fault(SHARED, "    warp_barrier();\n", ""),
    "forward_no_barrier_after_the_products": Fault(FORWARD, BARRIER, "", 0),
    "forward_no_barrier_before_the_flag": Fault(FORWARD, BARRIER, "", 1),
    "forward_first_state_untold": Fault(FORWARD, "tell(0, ", "if (chunk > 0) tell(0, "),
    "forward_last_chunk_alone": Fault(FORWARD, "count + static_cast<uint32_t>(chunks)", "count + 1"),
    "backward_no_barrier_after_the_products": Fault(BACKWARD, BARRIER, "", 0),
    "backward_no_barrier_before_the_flag": Fault(BACKWARD, BARRIER, "", 1),
    "backward_old_gradients": Fault(BACKWARD, "ring.read(done - 1", "ring.read(done"),
}


def _run(csrc, folder):
    environment = os.environ | {
        "FUSEDLSTM_EMULATION_LIBRARY": str(emulated.build_with(csrc, folder)),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def csrc(tmp_path):
    return Path(shutil.copytree(emulated.ROOT / "csrc", tmp_path / "csrc"))


def test_without_a_fault_all_schedules_agree(csrc, tmp_path):
    run = _run(csrc, tmp_path)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_shows(fault, csrc, tmp_path):
    fault.plant(csrc)
    run = _run(csrc, tmp_path)
    assert run.returncode == 1
    assert "AssertionError" in run.stderr or "fusedlstm emulation: kernel" in run.stderr, run.stderr
