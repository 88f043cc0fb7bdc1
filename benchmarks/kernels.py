"""Kernels against the times that decide whether they stay: a prediction, and a limit beyond which something follows.

The times are those of `tiers`, of which this is the judgement: a kernel that lands adds its strategy there and a line
to `CRITERIA` here.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment, tiers
from benchmarks.cases import CASES
from fusedlstm import _C

_PROFILE = "profile a step (stalls): the time between the arrival of the state and its publication"


@dataclass(frozen=True)
class Criterion:
    """Times are of a step of a persistent launch, in microseconds."""

    case: str
    backward: bool
    strategy: str  # what FUSEDLSTM_STRATEGY is set to
    predicted_us: float
    kill_us: float
    if_missed: str
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """The kernel with its case."""
        return f"{self.strategy} {'backward' if self.backward else 'forward'} {self.case} {self.dtype}"


def _no_slower(case: str, backward: bool, strategy: str, predicted_us: float, before_us: float) -> Criterion:
    """Of a kernel that replaced one which took ``before_us`` on an H200 (its tiers.jsonl)."""
    return Criterion(case, backward, strategy, predicted_us, before_us, _PROFILE)


CRITERIA = (
    Criterion("t256_n64_h64_l1", False, "persistent", 1.12, 1.5, _PROFILE),
    Criterion("t256_n64_h64_l1", True, "persistent", 1.24, 1.9, _PROFILE),
    _no_slower("t256_n64_h64_l1", False, "persistent_flags", 1.88, 2.83),
    _no_slower("t256_n64_h64_l1", True, "persistent_flags", 1.99, 2.99),
    _no_slower("t256_n8_h1024_l1", False, "persistent", 1.58, 2.64),
    _no_slower("t256_n8_h1024_l1", False, "persistent_flags", 2.35, 3.23),
    _no_slower("t256_n8_h1024_l1", True, "persistent", 2.45, 3.63),
    _no_slower("t256_n8_h1024_l1", True, "persistent_flags", 2.79, 3.63),
    _no_slower("t256_n64_h1024_l1", False, "persistent", 3.07, 4.80),
    _no_slower("t256_n64_h1024_l1", False, "persistent_flags", 3.97, 4.80),
    _no_slower("t256_n64_h1024_l1", True, "persistent", 4.46, 6.36),
    _no_slower("t256_n64_h1024_l1", True, "persistent_flags", 5.74, 6.36),
)


def judge(criterion: Criterion, measured_us: float | None) -> dict[str, Any]:
    """The record of a criterion: its figures, what was measured, and whether the kernel passes."""
    passes = measured_us is not None and 0 < measured_us <= criterion.kill_us
    record = {"name": criterion.name, **asdict(criterion), "measured_us": measured_us, "passes": passes}
    return record | ({} if measured_us is not None else {"error": "no such launch was measured"})


def measure(limits: _C.Limits) -> Iterator[list[dict[str, Any]]]:
    """Times the case and dtype of every criterion on this GPU; the records of one such pair after the other."""
    for case, dtype in dict.fromkeys((criterion.case, criterion.dtype) for criterion in CRITERIA):
        measured = tiers.measure(CASES[case], dtype, limits)
        found = {(tier.backward, tier.strategy): tier.kernel_us for tier in measured}
        yield [
            {**judge(criterion, found.get((criterion.backward, criterion.strategy))), "commit": environment.commit()}
            for criterion in CRITERIA
            if (criterion.case, criterion.dtype) == (case, dtype)
        ]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Puts records into a file of JSON lines, each in the place of an older one of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    merged = {record["name"]: record for record in [*old, *records]}
    path.write_text("".join(json.dumps(record) + "\n" for record in merged.values()))
