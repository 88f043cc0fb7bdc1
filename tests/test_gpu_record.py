"""What `make gpu` runs and records, tested without a GPU."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import gpu
import pytest
import torch
from gpus import limits

from fusedlstm import _C

JUNIT = '<testsuites><testsuite name="pytest" tests="9" failures="2" errors="1" skipped="3"></testsuite></testsuites>'


def test_counts_of_a_run(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert gpu.counts(tmp_path / "junit.xml") == {"tests": 9, "failed": 3, "skipped": 3}


def test_names_of_what_passed(tmp_path):
    cases = '<testcase name="a"/><testcase name="b"><skipped/></testcase><testcase name="c"><failure/></testcase>'
    (tmp_path / "junit.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert gpu.passed(tmp_path / "junit.xml") == ["a"]


@pytest.mark.parametrize("card", ["H100", "H200"])
def test_the_sanitizers_see_persistent_launches_of_every_shape(card):
    """Groups, row tiles, chunks of one tile and of several, and weights beyond the registers; forward and backward."""
    seen = {}
    for pass_ in product(gpu.TILED_MULTIPROCESSORS, gpu.PERSISTENT, ("float32", "bfloat16"), (False, True)):
        multiprocessors, strategy, dtype, backward = pass_
        problem = _C.Problem(**gpu.TILED, dtype=dtype, tf32=True, backward=backward)
        plan = _C.make_plan(problem, limits(card, multiprocessors=multiprocessors), strategy).persistent
        registers = 10 if backward else 13  # the most fragments of weights that they hold
        assert plan.groups > 1
        assert plan.rows > 8
        assert plan.weight_tiles * plan.k_blocks > registers or multiprocessors == 24
        seen[pass_] = plan.rows // 8 // plan.row_tiles_per_chunk, plan.row_tiles_per_chunk
    few, more = gpu.TILED_MULTIPROCESSORS
    assert all(chunks > 1 for (multiprocessors, *_), (chunks, _) in seen.items() if multiprocessors == few)
    assert any(tiles > 1 for (multiprocessors, *_), (_, tiles) in seen.items() if multiprocessors == more)


def test_parts_of_one_commit_come_together(tmp_path):
    record = tmp_path / "h200" / "verification.json"
    gpu.write_part(record, {"commit": "a"}, "test", {"failed": 0})
    gpu.write_part(record, {"commit": "a"}, "probes", {"failed": 1})
    assert json.loads(record.read_text()) == {"commit": "a", "parts": {"test": {"failed": 0}, "probes": {"failed": 1}}}
    gpu.write_part(record, {"commit": "b"}, "test", {"failed": 2})
    assert json.loads(record.read_text()) == {"commit": "b", "parts": {"test": {"failed": 2}}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "test"], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "torch sees none" in run.stderr
