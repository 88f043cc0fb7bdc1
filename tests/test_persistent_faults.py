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

strategy = sys.argv[1]
steps = 20 if strategy == "persistent" else 6  # more than the exchange has slots
for shape in (Shape(steps, 9, 60, D=2, multiprocessors=16), Shape(steps, 70, 20, multiprocessors=3)):
    problem = Problem(shape, torch.bfloat16)
    with emulated.operators("stepwise"):
        expected = problem.run()
    for seed in range(1, 11):
        with emulated.operators(strategy, shape.multiprocessors, seed):
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
    strategy: str = "persistent_flags"

    def plant(self, csrc: Path) -> None:
        path = csrc / "cuda" / self.file
        parts = path.read_text().split(self.old)
        assert len(parts) > self.occurrence + 1, f"{self.file} has no {self.old!r} any more"
        before, after = parts[: self.occurrence + 1], parts[self.occurrence + 1 :]
        path.write_text(self.old.join(before) + self.new + self.old.join(after))


EXCHANGE, FORWARD, BACKWARD = "exchange.cuh", "persistent_forward.cuh", "persistent_backward.cuh"
BARRIER = "      block_barrier();\n"
# test_protocol.py shows a missing fence without flags: on the emulator a store that is late for one block is late for
# all.
FAULTS = {
    "one_slot": Fault(EXCHANGE, "(state_index & (Traits::kSlots - 1))", "(state_index & 0)"),
    "no_release": Fault(EXCHANGE, "store_release(flags_", "store_relaxed(flags_"),
    "waits_for_one_block": Fault(EXCHANGE, "member <= last", "member <= first"),
    "reads_before_it_is_published": Fault(EXCHANGE, "load_relaxed(flag) < count", "load_relaxed(flag) + 1 < count"),
    "lanes_do_not_wait_for_their_warp": Fault(EXCHANGE, "      warp_barrier();\n", ""),
    "data_one_word": Fault(
        EXCHANGE, " || words.y == kEmpty || words.z == kEmpty || words.w == kEmpty", "", strategy="persistent"
    ),
    "data_two_slots": Fault(EXCHANGE, "kSlots = slot_count(kSignal)", "kSlots = 2", strategy="persistent"),
    "data_forward_clears_too_early": Fault(FORWARD, "ring.clear(step - 1,", "ring.clear(step,", strategy="persistent"),
    "data_forward_never_clears": Fault(
        FORWARD, "if (step > 0) ring.clear", "if (step < 0) ring.clear", strategy="persistent"
    ),
    "data_backward_clears_too_early": Fault(
        BACKWARD, "ring.clear(done - 2,", "ring.clear(done - 1,", strategy="persistent"
    ),
    "data_backward_never_clears": Fault(
        BACKWARD, "if (done > 1) ring.clear", "if (done < 0) ring.clear", strategy="persistent"
    ),
    "forward_no_barrier_after_the_products": Fault(FORWARD, BARRIER, "", 0),
    "forward_no_barrier_before_the_flag": Fault(FORWARD, BARRIER, "", 1),
    "forward_first_state_not_published": Fault(FORWARD, "publish(0, ", "if (chunk > 0) publish(0, "),
    "forward_last_chunk_alone": Fault(FORWARD, "count + static_cast<uint32_t>(chunks)", "count + 1"),
    "backward_no_barrier_after_the_products": Fault(BACKWARD, BARRIER, "", 0),
    "backward_no_barrier_before_the_flag": Fault(BACKWARD, BARRIER, "", 1),
    "backward_old_gradients": Fault(BACKWARD, "load<0>(done - 1, first_tile, ", "load<0>(done, first_tile, "),
}


def _run(csrc, folder, strategy):
    environment = os.environ | {
        "FUSEDLSTM_EMULATION_LIBRARY": str(emulated.build_with(csrc, folder)),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    command = [sys.executable, "-c", PROGRAM, strategy]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def csrc(tmp_path):
    return Path(shutil.copytree(emulated.ROOT / "csrc", tmp_path / "csrc"))


@pytest.mark.parametrize("strategy", ["persistent", "persistent_flags"])
def test_without_a_fault_all_schedules_agree(strategy, csrc, tmp_path):
    run = _run(csrc, tmp_path, strategy)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_shows(fault, csrc, tmp_path):
    fault.plant(csrc)
    run = _run(csrc, tmp_path, fault.strategy)
    assert run.returncode == 1
    assert "AssertionError" in run.stderr or "fusedlstm emulation: kernel" in run.stderr, run.stderr
