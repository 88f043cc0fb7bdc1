"""The agenda's table of parts: what it names is there."""

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from agenda.parts import PARTS
from agenda.sources import Sources

from benchmarks import __main__ as benchmarks
from benchmarks import language_model
from benchmarks.cases import SETS

ROOT = Path(__file__).parent.parent


def test_the_table_is_consistent():
    names = [each.name for each in PARTS]
    assert len(set(names)) == len(names)
    assert PARTS[0].required
    for each in PARTS:
        assert 0 < each.estimate < each.limit
        assert each.estimate <= 110, f"{each.name}: a part that is cut off must lose little"
        values = {"python": "python", "results": "results", "commit": "c0ffee"}
        assert all(word.format(**values) for word in each.command)


@pytest.mark.parametrize("globs", sorted({each.sources for each in PARTS if each.sources}), ids=" ".join)
def test_the_sources_of_the_table_are_there(globs):
    assert Sources().digest(globs) != Sources().digest([])


@pytest.mark.parametrize("module", sorted({each.command[2] for each in PARTS}))
def test_what_the_table_runs_is_there(module):
    assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("command", sorted({each.command[3] for each in PARTS if each.command[2] == "benchmarks"}))
def test_the_benchmarks_of_the_table_parse(command):
    for each in PARTS:
        if each.command[2:4] == ("benchmarks", command):
            benchmarks._parse(each.command[3:])


def test_each_case_of_users_has_a_part():
    parts = [each.command for each in PARTS if each.name.startswith("rows_users_")]
    cases = [case for command in parts for option, case in pairwise(command) if option == "--case"]
    assert sorted(cases) == sorted(SETS["users_gpu"])


def test_the_language_models_of_the_table_parse():
    found = [each.command[3:] for each in PARTS if each.command[2] == language_model.__name__]
    assert found
    for arguments in found:
        assert language_model._parse(arguments).device == "cuda"


def test_the_hazards_of_the_table_are_all_that_there_are():
    command = [sys.executable, "-m", "tests.hazards", "--list"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in run.stdout.splitlines() if line.strip()}
    assert listed == {each.command[3] for each in PARTS if each.command[2] == "tests.hazards"}
