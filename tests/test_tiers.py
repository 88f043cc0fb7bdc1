"""What `python -m benchmarks tiers` goes through, and its records, without a GPU."""

import json
import os

from gpus import GPUS

from benchmarks import tiers
from benchmarks.tiers import Tier
from fusedlstm import _C


def test_a_sweep_goes_through_the_divisions_that_are_expected_to_be_fastest():
    problem = _C.Problem(steps=256, batch=128, hidden=1024, tf32=True)
    found = list(tiers.choices(problem, GPUS["H200"], sweep=6))
    assert found[0] == ("stepwise", None)
    for strategy, signal in (("persistent", "data"), ("persistent_flags", "flag")):
        plans = [plan for plan, _ in _C.persistent_plans(problem, GPUS["H200"], signal)]
        expected = [None, *((p.groups, p.weight_tiles, p.row_tiles_per_chunk) for p in plans[1:7])]
        assert [division for name, division in found if name == strategy] == expected
    assert list(tiers.choices(_C.Problem(steps=9, batch=8, hidden=64), GPUS["H200"], 6)) == [("stepwise", None)]


def test_what_is_forced_is_forced_for_as_long_as_it_lasts(monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", "stepwise")
    monkeypatch.delenv("FUSEDLSTM_PLAN", raising=False)
    with tiers._forced("persistent", "2,4,4"):
        assert (os.environ["FUSEDLSTM_STRATEGY"], os.environ["FUSEDLSTM_PLAN"]) == ("persistent", "2,4,4")
        with tiers._forced("persistent_flags", ""):
            assert "FUSEDLSTM_PLAN" not in os.environ
    assert os.environ["FUSEDLSTM_STRATEGY"] == "stepwise"
    assert "FUSEDLSTM_PLAN" not in os.environ


def test_records_replace_their_own_kind(tmp_path):
    def tier(division, wall_us):
        return Tier("a", 9, 8, 64, "float32", False, "persistent", division, "", True, 1.0, wall_us, 1.0, 4.9, "abc")

    path = tmp_path / "gpu" / "tiers.jsonl"
    tiers.write(path, [tier("", 1.0), tier("2,4,4", 2.0)])
    old = [json.loads(line) for line in path.read_text().splitlines()]
    del old[0]["division"]  # as records from before there were sweeps
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    tiers.write(path, [tier("", 3.0)])
    assert [json.loads(line)["wall_us"] for line in path.read_text().splitlines()] == [3.0, 2.0]
