"""The program that tries hazards, with stand-ins for them; and on a GPU each hazard by the program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hazard_cases
import hazards
import pytest

ROOT = Path(__file__).parent.parent

STAND_INS = """
import os, signal, sys, time
from tests.hazards import main

def right(note):
    note(calls=3)

def wrong(note):
    note(calls=3)
    assert 1 + 1 == 3, "one and one"

def dies(note):
    note(calls=3)
    os.kill(os.getpid(), signal.SIGFPE)

def leaves(note):
    print("leaving", file=sys.stderr)
    os._exit(3)

def hangs(note):
    note(calls=3)
    time.sleep(600)

if __name__ == "__main__":
    sys.exit(main({"right": 60, "wrong": 60, "dies": 60, "leaves": 60, "hangs": 60}, "stand_ins"))
"""

VERDICTS = {
    "right": (0, "right", {"calls": 3}, None),
    "wrong": (1, "wrong", {"calls": 3}, "AssertionError: one and one"),
    "dies": (1, "wrong", {"calls": 3}, "ended by signal 8: it printed nothing"),
    "leaves": (1, "wrong", {}, "ended with status 3: leaving"),
    "hangs": (1, "hung", {"calls": 3}, "took more than 2 s"),
}


def _run(command, **options):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, **options)


def _verdict(run):
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "expected"), VERDICTS.items(), ids=VERDICTS)
def test_verdicts(name, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    script = tmp_path / "stand_ins.py"
    script.write_text(STAND_INS)
    run = _run([script, name, "--seconds", "2" if name == "hangs" else "60"])
    verdict = _verdict(run)
    status, kind, facts, error = expected
    assert run.returncode == status
    assert (verdict["hazard"], verdict["verdict"], verdict["facts"]) == (name, kind, facts)
    assert verdict["error"] == error
    assert verdict["seconds"] < 30
    assert len(run.stdout.splitlines()) == 1  # what the hazard prints goes to stderr


def test_the_list():
    listed = dict(line.split() for line in _run(["-m", "tests.hazards", "--list"]).stdout.splitlines())
    assert {name: float(seconds) for name, seconds in listed.items()} == hazards.SECONDS
    assert all(callable(getattr(hazard_cases, name)) for name in listed)


@pytest.mark.parametrize(("arguments", "named"), [([], "NAME must be one of"), (["heat"], "invalid choice: 'heat'")])
def test_a_name_is_needed(arguments, named):
    run = _run(["-m", "tests.hazards", *arguments])
    assert run.returncode == 2
    assert named in run.stderr
    assert "two_grids" in run.stderr


def test_where_nothing_can_be_tried_nothing_is_right(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = _run(["-m", "tests.hazards", "two_grids"])
    verdict = _verdict(run)
    assert run.returncode == 1
    assert verdict["verdict"] == "wrong"
    assert "and has none" in verdict["error"] or "sees none" in verdict["error"]


# The suite itself runs what nan_states runs; other tests would disturb what division_of_many_rows times.
IN_THE_SUITE = [name for name in hazards.SECONDS if name not in ("nan_states", "division_of_many_rows")]


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_hazard(name, cuda):
    run = _run(["-m", "tests.hazards", name, "--seconds", "180"])  # other tests keep the processor busy
    assert run.returncode == 0, f"{_verdict(run)}\n{run.stderr[-4000:]}"
    assert _verdict(run)["verdict"] == "right"
