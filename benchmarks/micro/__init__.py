"""Single facts of a GPU, each measured by a small CUDA program of this folder: what a kernel's design rests on."""

import datetime
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment

FOLDER = Path(__file__).parent
_ROOT = FOLDER.parents[1]

Record = dict[str, Any]
ORIGIN = ("device", "commit", "date")  # of every record


@dataclass(frozen=True)
class Section:
    """A program <name>.cu of this folder."""

    about: str
    limit: int  # seconds, after which it counts as hung
    least: tuple[int, int] = (8, 0)  # compute capability
    most: tuple[int, int] | None = None

    def needs(self, capability: tuple[int, int]) -> str:
        """What a GPU of this compute capability lacks; empty if it can run the section."""
        if self.least <= capability and (self.most is None or capability <= self.most):
            return ""
        return f"needs compute capability {self.least[0]}.{self.least[1]}, this GPU has {capability[0]}.{capability[1]}"


# What decides most comes first.
SECTIONS = {
    "host": Section("launches on a stream and in a graph, a large copy, the card", 30),
    "wgmma": Section("wgmma with A in shared memory and in registers", 30, least=(9, 0), most=(9, 0)),
    "bulk": Section("bulk copies of a state after a flag", 30, least=(9, 0)),
    "multicast": Section("the same in clusters of two that share the copies", 30, least=(9, 0)),
    "cluster": Section("stores in the shared memory of a cluster", 30, least=(9, 0)),
    "release": Section("a flag of each warp against one of the block", 20),
    "exchange": Section("the exchange of a state by data and by flags", 30),
    "activations": Section("tanh.approx against ex2 and rcp", 20),
}

_CARD = (
    "name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def nvcc() -> str | None:
    """The compiler on the PATH or under CUDA_HOME."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def build_command(compiler: str, section: str, capability: tuple[int, int], program: Path) -> list[str]:
    """How nvcc makes the program of a section; wgmma is in the instruction set of sm_90a alone."""
    target = ["-gencode=arch=compute_90a,code=sm_90a"] if capability == (9, 0) else ["-arch=native"]
    source = FOLDER / f"{section}.cu"
    return [compiler, "-std=c++20", "-O3", *target, f"-I{_ROOT / 'csrc'}", str(source), "-o", str(program)]


def measure(sections: Iterable[str], seconds: float) -> Iterator[tuple[str, list[Record]]]:
    """Builds the programs and runs one after the other, each in a process of its own.

    Args:
        sections: names of `SECTIONS`.
        seconds: of measuring for each point.

    Yields:
        A section and its records. A record has ok, which is false where the check of the results failed or there is
        an error in place of figures. A section that this GPU cannot run has one with the reason as `skipped`.

    Raises:
        FileNotFoundError: there is no nvcc.
    """
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("there is no nvcc on the PATH or under CUDA_HOME; install a CUDA toolkit")
    capability = torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = {
            section: None
            if SECTIONS[section].needs(capability)
            else pool.submit(_run, build_command(compiler, section, capability, Path(name) / section), 300)
            for section in dict.fromkeys(sections)
        }
        for started in filter(None, builds.values()):
            started.result()  # compilers beside a program would disturb what it measures on the host
        for section, build in builds.items():
            if build is None:
                records = [{"skipped": SECTIONS[section].needs(capability), "ok": True}]
            elif (built := build.result()).error:
                records = [{"error": f"nvcc: {built.error}", "ok": False}]
            else:
                ran = _run([str(Path(name) / section), str(seconds)], SECTIONS[section].limit)
                records = [*([_card()] if section == "host" else []), *parse(ran.output, ran.error)]
            yield section, [_labelled(section, record) for record in records]


def parse(output: str, error: str) -> list[Record]:
    """The records that a program printed; an error of the process is one more, unless the last of them has it.

    Args:
        output: of the program, a JSON object a line.
        error: what ended it, or empty.
    """
    records: list[Record] = []
    for line in output.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("ok"), bool):
            records.append(record)
        else:
            records.append({"error": f"not a record: {line[:200]}", "ok": False})
    if error and not (records and "error" in records[-1]):
        records.append({"error": error, "ok": False})
    if not records:
        records.append({"error": "it printed nothing", "ok": False})
    return records


def write(path: Path, section: str, records: list[Record]) -> None:
    """Puts the records of a section into a file of JSON lines, in the place of its older ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in old if json.loads(line)["section"] != section]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in [*lines, *map(json.dumps, records)]))
    partial.replace(path)


def parse_card(text: str) -> Record:
    """Facts of the first card in nvidia-smi's answer; None where it has no figure."""
    values = [value.strip() for value in text.splitlines()[0].split(",")] if text.strip() else []
    if len(values) != len(_CARD):
        return {"what": "card", "error": f"nvidia-smi answered: {text[:200]!r}", "ok": False}
    facts: Record = {}
    for name, value in zip(_CARD, values, strict=True):
        if name in ("name", "driver_version"):
            facts[name] = value
        else:
            facts[name] = float(value) if value.replace(".", "", 1).isdigit() else None
    return {"what": "card", **facts, "ok": True}


@dataclass(frozen=True)
class _Ran:
    output: str
    error: str  # empty where it ended well


def _run(command: list[str], limit: int) -> _Ran:
    """Runs a program; its output goes to files, so that none is lost when it must be ended."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            status = subprocess.run(command, stdout=output, stderr=errors, check=False, timeout=limit).returncode
            ended = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            ended = f"hung: it did not end within {limit} s"
        output.seek(0)
        errors.seek(0)
        said = errors.read().strip()[:500]
        return _Ran(output.read(), f"{ended}: {said}" if ended and said else ended)


def _card() -> Record:
    query = ["nvidia-smi", f"--query-gpu={','.join(_CARD)}", "--format=csv,noheader,nounits"]
    try:
        record = parse_card(_run(query, 20).output)
    except FileNotFoundError:
        record = {"what": "card", "error": "there is no nvidia-smi", "ok": False}
    processor = environment.device_name(torch.device("cpu"))
    return {**record, "processor": processor, "cores": len(os.sched_getaffinity(0))}


def _labelled(section: str, record: Record) -> Record:
    device = environment.device_name(torch.device("cuda"))
    origin = (device, environment.commit(), datetime.date.today().isoformat())
    return {"section": section, **record, **dict(zip(ORIGIN, origin, strict=True))}
