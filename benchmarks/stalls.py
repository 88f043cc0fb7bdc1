"""Where the warps of the persistent kernels wait: stall samples by instruction, as Nsight Compute (ncu) takes them."""

import csv
import gzip
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TOP = 40
_LIMIT = 120  # seconds for a launch under ncu, which repeats it for each set of counters
_MOST_BYTES = 2**20
_KERNEL = "forward_persistent_kernel"
_SAMPLES = ("Warp Stall Sampling (All Samples)", "Sampling Data (All)", "# Samples")  # newest version of ncu first


@dataclass(frozen=True)
class Launch:
    """A forward pass in bfloat16 of one layer with I = H, by the strategy that the plan takes outside a graph."""

    name: str
    strategy: str
    T: int
    N: int
    H: int


LAUNCHES = (Launch("h64", "persistent", 64, 64, 64), Launch("n128_h1024", "persistent_flags", 64, 128, 1024))


@dataclass(frozen=True)
class Instruction:
    """An instruction of a kernel with its stall samples, in all and by reason."""

    address: str
    text: str
    samples: int
    reasons: dict[str, int]


def profile_command(ncu: str, launch: Launch, report: Path) -> list[str]:
    """How ncu profiles the first persistent kernel of a launch; it leaves the clocks as they are."""
    return [
        ncu, "--section", "SourceCounters", "--section", "WarpStateStats", "--import-source", "no",
        "--clock-control", "none", "--kernel-name", f"regex:{_KERNEL}", "--launch-count", "1",
        "--force-overwrite", "--export", str(report), sys.executable, "-m", "benchmarks.stalls",
        launch.strategy, str(launch.T), str(launch.N), str(launch.H),
    ]  # fmt: skip


def export_command(ncu: str, report: Path) -> list[str]:
    """How ncu prints a profile's source page."""
    return [ncu, "--import", str(report), "--page", "source", "--csv"]


def parse(text: str) -> list[Instruction]:
    """The instructions in a source page of ncu, in order of address.

    Args:
        text: CSV, one row an instruction; lines before the row of column names do not count.

    Raises:
        ValueError: a column is missing, which the message names, or there are no samples.
    """
    rows = list(csv.reader(io.StringIO(text)))
    begin = next((i for i, row in enumerate(rows) if "Source" in row), None)
    if begin is None:
        raise ValueError('ncu\'s source page has no column "Source"')
    columns = rows[begin]
    samples = next((name for name in _SAMPLES if name in columns), None)
    # Of samples in which no warp of the scheduler issued, a second column of each reason says so in its name.
    not_issued = [name for name in columns if "not issued" in name.lower().replace("_", " ").replace("-", " ")]
    reasons = [name for name in columns if name.startswith("stall_") and name not in not_issued]
    missing = [
        name
        for name, present in (
            ("Address", "Address" in columns),
            (_SAMPLES[0], samples is not None),
            ("stall_<reason>", bool(reasons)),
        )
        if not present
    ]
    if missing or samples is None:
        raise ValueError(f"ncu's source page has no column {missing}; its columns are {columns}")
    instructions = []
    for row in rows[begin + 1 :]:
        if len(row) != len(columns) or row == columns:
            continue
        cells = dict(zip(columns, row, strict=True))
        counts = {name.removeprefix("stall_"): count for name in reasons if (count := _count(cells[name]))}
        instructions.append(Instruction(cells["Address"], cells["Source"].strip(), _count(cells[samples]), counts))
    if not any(instruction.samples for instruction in instructions):
        raise ValueError(f"ncu's source page has {len(instructions)} instructions and no samples")
    return instructions


def table(title: str, instructions: list[Instruction]) -> str:
    """Markdown: samples by reason, and the instructions with most samples in order of address."""
    total = sum(instruction.samples for instruction in instructions)
    by_reason: dict[str, int] = {}
    for instruction in instructions:
        for reason, count in instruction.reasons.items():
            by_reason[reason] = by_reason.get(reason, 0) + count
    top = sorted(range(len(instructions)), key=lambda i: -instructions[i].samples)[:_TOP]
    shown = sum(instructions[i].samples for i in top)
    lines = [
        f"## {title}",
        "",
        f"{total} samples over {len(instructions)} instructions.",
        "",
        "| reason | share |",
        "| --- | --- |",
        *(f"| {reason} | {count / total:.1%} |" for reason, count in _descending(by_reason)),
        "",
        f"The {len(top)} instructions with most samples ({shown / total:.0%} of all), in order of address:",
        "",
        "| no. | address | instruction | share | main reasons |",
        "| --- | --- | --- | --- | --- |",
    ]
    for i in sorted(top):
        instruction = instructions[i]
        main = ", ".join(f"{reason} {count / total:.1%}" for reason, count in _descending(instruction.reasons)[:2])
        text = instruction.text.replace("|", r"\|")
        lines.append(f"| {i} | {instruction.address} | `{text}` | {instruction.samples / total:.1%} | {main} |")
    return "\n".join(lines) + "\n"


def keep(path: Path, text: str) -> None:
    """Writes a text with gzip, without its end where it would take more than 1 MiB."""
    data = gzip.compress(text.encode(), mtime=0)
    while len(data) > _MOST_BYTES:
        text = text[: len(text) * _MOST_BYTES // len(data)]
        data = gzip.compress(text.encode(), mtime=0)
    path.write_bytes(data)


def measure(folder: Path) -> Iterator[str]:
    """Profiles `LAUNCHES` and writes stalls.md, and what ncu printed of each as stalls-<name>.csv.gz.

    Yields:
        What went wrong, a line each; nothing where all went well.

    Raises:
        FileNotFoundError: there is no ncu.
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        raise FileNotFoundError("there is no ncu on the PATH; install Nsight Compute")
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for launch in LAUNCHES:
        title = f"Forward, T {launch.T}, N {launch.N}, H {launch.H}, bfloat16"
        try:
            with tempfile.TemporaryDirectory() as name:
                report = Path(name) / "launch.ncu-rep"
                said = _output(profile_command(ncu, launch, report))
                if not report.exists():
                    raise ValueError(f"ncu made no profile; it said: {said[-500:]}")
                text = _output(export_command(ncu, report))
            keep(folder / f"stalls-{launch.name}.csv.gz", text)
            tables.append(table(title, parse(text)))
        except (ValueError, subprocess.SubprocessError) as error:
            tables.append(f"## {title}\n\nNot measured: {error}\n")
            yield f"{launch.name}: {error}"
        (folder / "stalls.md").write_text("# Stall samples of the persistent kernels\n\n" + "\n".join(tables))


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT)
    if run.returncode:
        raise ValueError(f"ncu ended with exit status {run.returncode}: {(run.stdout + run.stderr)[-500:]}")
    return run.stdout


def _count(text: str) -> int:
    text = text.replace(",", "").strip()
    return round(float(text)) if text else 0


def _descending(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])


def _forward(strategy: str, T: int, N: int, H: int) -> None:
    """What ncu profiles."""
    os.environ["FUSEDLSTM_STRATEGY"] = strategy
    import torch

    import fusedlstm

    module = fusedlstm.LSTM(H, H, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        module(torch.randn(T, N, H, device="cuda", dtype=torch.bfloat16))
    torch.cuda.synchronize()


if __name__ == "__main__":
    _forward(sys.argv[1], *map(int, sys.argv[2:]))
