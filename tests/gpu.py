"""Runs the suite, the probes and compute-sanitizer on this machine's GPU and records the results (`make gpu`).

    python -m tests.gpu test | probes | sanitize | summary [--results FOLDER] [--commit HASH]

Each part writes its entry of FOLDER/<gpu>/verification.json and exits with 1 when something failed.
"""

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import fusedlstm
from benchmarks import environment
from fusedlstm import _C

ROOT = Path(__file__).parent.parent
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")

# A layer whose persistent launches have several groups, row tiles and chunks, and weights beyond the registers, if they
# get few multiprocessors: with the first number several chunks, with the second several row tiles in a chunk.
TILED = {"steps": 3, "batch": 70, "hidden": 250}
TILED_MULTIPROCESSORS = (14, 24)
PERSISTENT = ("persistent", "persistent_flags")


def run_pytest(junit: Path, *tests: str) -> int:
    """The tests that use the GPU; returns pytest's exit status."""
    parallel = ["-n", str(min(os.cpu_count() or 1, 12))] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", f"--junitxml={junit}", *parallel, *tests]
    environment = os.environ | {"FUSEDLSTM_REQUIRE_CUDA": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def counts(junit: Path) -> dict[str, int]:
    """Tests, failures (errors among them) and skips of a pytest run."""
    suite = ElementTree.parse(junit).getroot()[0]
    numbers = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {
        "tests": numbers["tests"],
        "failed": numbers["failures"] + numbers["errors"],
        "skipped": numbers["skipped"],
    }


def passed(junit: Path) -> list[str]:
    """Names of the tests of a pytest run that neither failed nor were skipped."""
    cases = ElementTree.parse(junit).getroot().iter("testcase")
    return [
        case.get("name", "") for case in cases if not {child.tag for child in case} & {"failure", "error", "skipped"}
    ]


def write_part(record: Path, machine: dict[str, Any], name: str, part: dict[str, Any]) -> None:
    """Puts one part into a record; parts that another commit or machine wrote are dropped."""
    with FileLock(Path(tempfile.gettempdir()) / "fusedlstm-gpu-record.lock"):  # the parts run concurrently
        old = json.loads(record.read_text()) if record.exists() else {}
        same = all(old.get(key) == value for key, value in machine.items())
        parts = (old["parts"] if same else {}) | {name: part}
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(machine | {"parts": parts}, indent=1) + "\n")


def _machine(commit: str) -> dict[str, Any]:
    device = torch.device("cuda")
    return {"gpu": environment.device_name(device), **environment.versions(device), "commit": commit}


def run_suite() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        run_pytest(junit)
        return counts(junit)


def run_probes() -> dict[str, Any]:
    """The kernels that test the emulator, without their planted faults, must pass on the GPU too."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "probes"
        sources = sorted((ROOT / "tests/emulation").glob("probes*.cu"))
        includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
        subprocess.run(["nvcc", "-std=c++20", "-O3", "-arch=native", *includes, *sources, "-o", binary], check=True)
        listed = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
        probes = [line.split() for line in listed if line.endswith(" none")]
        failed = [
            probe
            for probe in probes
            for seed in "123"
            if subprocess.run([binary, *probe, seed], timeout=60, check=False).returncode
        ]
    return {"tests": 3 * len(probes), "failed": len(failed), "skipped": 0}


def run_sanitizers() -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        sys.exit("gpu: compute-sanitizer must be on the PATH; it comes with the CUDA toolkit (bin/compute-sanitizer)")
    # Without torch's memory cache each tensor is an allocation of its own, whose bounds memcheck knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    runs = {}
    for sanitizer in SANITIZERS:  # concurrently: each keeps a core busy and hardly loads the GPU
        command = [tool, f"--tool={sanitizer}", "--error-exitcode=9", sys.executable, "-m", "tests.gpu", "small"]
        runs[sanitizer] = subprocess.Popen(command, cwd=ROOT, env=environment)
    failed = [sanitizer for sanitizer, run in runs.items() if run.wait()]
    return {"tests": len(SANITIZERS), "failed": len(failed), "skipped": 0, "tools": list(SANITIZERS)}


def run_small_cases() -> None:
    """Forward and backward of layers of every kind and by every strategy, for the sanitizers."""
    for strategy in ("stepwise", *PERSISTENT):
        os.environ["FUSEDLSTM_STRATEGY"] = strategy
        _run_tiny_cases(stepwise=strategy == "stepwise")
    for multiprocessors, dtype in product(TILED_MULTIPROCESSORS, (torch.float32, torch.bfloat16)):
        _run_tiled_case(multiprocessors, dtype)
    torch.cuda.synchronize()


def _run_tiny_cases(stepwise: bool) -> None:
    cases = [{}, {"bidirectional": True}, {"proj_size": 3}, {"bidirectional": True, "proj_size": 4, "bias": False}]
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for hidden in (8, 13):
            for options in cases:
                if not stepwise and (dtype == torch.float64 or "proj_size" in options):
                    continue  # there are no persistent kernels for these
                module = fusedlstm.LSTM(5, hidden, **options, device="cuda", dtype=dtype)
                for lengths in ([4, 4, 4], [4, 2, 1]):
                    x = torch.randn(4, 3, 5, device="cuda", dtype=dtype, requires_grad=True)
                    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths))
                    module(packed)[0].data.sum().backward()
                    with torch.no_grad():
                        module(x)


def _run_tiled_case(multiprocessors: int, dtype: torch.dtype) -> None:
    T, N, H = TILED.values()
    module = fusedlstm.LSTM(5, H, device="cuda", dtype=dtype)
    x = torch.randn(T, N, 5, device="cuda", dtype=dtype)
    lengths, resets = torch.randint(0, T + 1, (N,)).cuda(), torch.rand(T, N).cuda() < 0.3
    results = {}
    margin = torch.cuda.get_device_properties().multi_processor_count - multiprocessors
    os.environ["FUSEDLSTM_SM_MARGIN"] = str(margin)
    for strategy in ("stepwise", *PERSISTENT):
        os.environ["FUSEDLSTM_STRATEGY"] = strategy
        y, (h_n, c_n) = module(x, lengths=lengths, resets=resets)
        results[strategy] = torch.autograd.grad([y.sum(), h_n.sum(), c_n.sum()], list(module.parameters()))
    del os.environ["FUSEDLSTM_SM_MARGIN"]
    for strategy in PERSISTENT:  # the two add up in other orders
        same = all(map(torch.equal, results[strategy], results["stepwise"]))
        assert not same, f"{strategy} of {dtype} has run step by step under this sanitizer, which shows nothing"


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "test": run_suite,
    "probes": run_probes,
    "sanitize": run_sanitizers,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=[*PARTS, "small", "summary"])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="folder of the records")
    parser.add_argument("--commit", default="unknown", help="what is being tested")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu: this needs a GPU that torch sees, and torch sees none; `make test` runs without one")
    if not _C.build_info()["cuda"]:
        sys.exit("gpu: this build has no CUDA kernels; run `make gpu-build` first")
    machine = _machine(arguments.commit)
    record = arguments.results / environment.folder(torch.device("cuda")) / "verification.json"
    if arguments.part == "small":
        run_small_cases()
        return 0
    if arguments.part == "summary":
        print(record.read_text())
        return 0
    start = time.monotonic()
    part = PARTS[arguments.part]()
    part["seconds"] = round(time.monotonic() - start, 1)
    part["date"] = datetime.date.today().isoformat()
    write_part(record, machine, arguments.part, part)
    print(f"gpu-{arguments.part}: {part} on {machine['gpu']}, recorded in {record}")
    return 1 if part["failed"] or not part["tests"] else 0


if __name__ == "__main__":
    sys.exit(main())
