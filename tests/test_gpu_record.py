"""The records that `make gpu` writes, tested without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch

JUNIT = '<testsuites><testsuite name="pytest" tests="9" failures="2" errors="1" skipped="3"></testsuite></testsuites>'


def test_counts_of_a_run(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert gpu.counts(tmp_path / "junit.xml") == {"tests": 9, "failed": 3, "skipped": 3}


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
