"""The compile gate: every CUDA source for every architecture, with warnings and spills as errors.

Programs of benchmarks/micro are compiled for sm_90a alone. Run as a program it exits with 1 when something is wrong: a
source does not compile, a kernel spills, or a kernel uses more registers or shared memory than the plan assumes. It
needs nvcc, not a GPU. With --missing it prints the packages to install first.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
ARCHS = ("80", "86", "89", "90a", "100", "120")
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu")) + sorted((ROOT / "tests/emulation").glob("*.cu"))
MICRO = sorted((ROOT / "benchmarks/micro").glob("*.cu"))  # of instructions that one architecture alone has
BINDING = sorted((ROOT / "csrc/cuda").glob("*.cpp"))
COMMON = ["nvcc", "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
STRICT = ["-Werror", "all-warnings", "-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error"]


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture."""

    kernel: str
    arch: str
    registers: int
    shared: int  # bytes, static


def usages(log: str) -> Iterator[Usage]:
    """The kernels in the output of ``ptxas -v``."""
    entries = re.split(r"Compiling entry function '", log)[1:]
    for entry in entries:
        kernel, arch = re.match(r"(\w+)' for 'sm_(\w+)'", entry).groups()  # type: ignore[union-attr]
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        assert registers, f"ptxas names no registers for {kernel}"
        yield Usage(kernel, arch, int(registers[1]), int(shared[1]) if shared else 0)


# By what is in their names: the registers of a thread that the plan counts on, and how many of them there are.
# Stepwise: forward and backward, four types, one unit or a vector of them. Persistent: three types, six widths
# forward and eight backward, two signals.
EXPECTED = {
    "stepwise_kernel": (64, 16),
    "forward_persistent_kernel": (255, 36),
    "backward_persistent_kernel": (255, 48),
}


def faults(found: list[Usage]) -> list[str]:
    """Where kernels use more than the plan assumes, or there are fewer than it chooses from."""
    wrong = []
    for name, (registers, count) in EXPECTED.items():
        usages = [usage for usage in found if name in usage.kernel]
        for usage in usages:
            place = f"{usage.kernel}, sm_{usage.arch}"
            if usage.registers > registers:
                wrong.append(f"{place}: {usage.registers} registers, the plan has {registers}")
            if usage.shared:
                wrong.append(f"{place}: {usage.shared} bytes of static shared memory, the plan has none")
        for arch in ARCHS:
            kernels = {usage.kernel for usage in usages if usage.arch == arch}
            if len(kernels) != count:
                wrong.append(f"sm_{arch}: {len(kernels)} of {name}, must be {count}")
    return wrong


def instruction_faults(sass: str) -> list[str]:
    """What is amiss in the instructions of the persistent kernels, as ``cuobjdump -sass`` prints them.

    They must use the tensor cores and no local memory. Loops that poll must be free of fences, each of which would drop
    the L1 cache and wait for memory. After flags, a load with acquire must come before the state is read.
    """
    wrong = []
    for function in re.split(r"Function : ", sass)[1:]:
        name = function.split(None, 1)[0]
        if "persistent_kernel" not in name:
            continue
        code = {int(at, 16): text for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", function)}
        if not any("HMMA" in text for text in code.values()):
            wrong.append(f"{name}: no product on the tensor cores")
        wrong += [f"{name}: {text}" for text in code.values() if re.search(r"\b(LDL|STL)\b", text)]
        polls, by_data = [], False
        for begin, end in _innermost_loops(code):
            body = [text for at, text in code.items() if begin <= at <= end]
            if not any("LDG" in text and "STRONG.GPU" in text for text in body) or any("HMMA" in text for text in body):
                continue
            polls.append(end)
            by_data = any("LDG.E.128" in text for text in body)
            wrong += [f"{name}: {text.strip()} while polling" for text in body if re.search("MEMBAR|CCTL|ERRBAR", text)]
        last = max(polls, default=0)
        reads = [at for at, text in code.items() if "LDG.E.128.STRONG.GPU" in text and at > last]
        if not polls:
            wrong.append(f"{name}: no loop that polls")
        # Where the data itself is polled, it has been read then, and a fence comes later in the step. Where flags are
        # polled, a load with acquire follows, which drops the L1 cache.
        elif by_data and not any("MEMBAR" in text and last < at for at, text in code.items()):
            wrong.append(f"{name}: no fence after the polling")
        elif not by_data and not any(
            "CCTL.IVALL" in text and last < at < min(reads, default=last) for at, text in code.items()
        ):
            wrong.append(f"{name}: no acquire between the polling and the reading")
    return wrong


def _innermost_loops(code: dict[int, str]) -> Iterator[tuple[int, int]]:
    jumps = {at: re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text) for at, text in code.items()}
    loops = [(int(to[1], 16), at) for at, to in jumps.items() if to and int(to[1], 16) < at]
    for begin, end in loops:
        if not any(begin <= other_begin and other_end < end for other_begin, other_end in loops):
            yield begin, end


def _disassemble(folder: Path) -> str | None:
    """The instructions of the persistent kernels, where the toolkit has the program that shows them."""
    if shutil.which("cuobjdump") is None:
        return None
    objects = sorted(folder.glob("persistent_*.o"))
    runs = [subprocess.run(["cuobjdump", "-sass", str(path)], capture_output=True, text=True) for path in objects]
    return "".join(run.stdout for run in runs)


def _compile_kernels(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    archs = ("90a",) if source in MICRO else ARCHS
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    command = [*COMMON, *STRICT, *targets, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _binding_includes() -> list[str]:
    """torch's headers, and those of NVIDIA's packages for a toolkit without cuBLAS."""
    torch_folder = Path(torch.__file__).parent
    return [
        f"-I{torch_folder / 'include'}",
        *(f"-I{folder}" for folder in torch_folder.parent.glob("nvidia/*/include")),
    ]


def _compile_binding(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Through nvcc, which passes the source to the host's compiler with the toolkit's headers."""
    flags = [*_binding_includes(), "-Xcompiler", "-Wall,-Werror,-fvisibility=hidden,-fPIC"]
    command = [*COMMON, *flags, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _missing_packages() -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as source:
        source.write("#include <cublas_v2.h>\n")
        source.flush()
        command = [*COMMON, *_binding_includes(), "-E", source.name]
        found = subprocess.run(command, capture_output=True, check=False).returncode == 0
    return [] if found else ["nvidia-cublas"]


def main(arguments: list[str]) -> int:
    if shutil.which("nvcc") is None:
        if "--missing" not in arguments:
            print("compile gate: SKIPPED, there is no nvcc on the PATH: no CUDA source has been compiled")
        return 0
    if "--missing" in arguments:
        print(*_missing_packages())
        return 0
    found: list[Usage] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        jobs = {source: pool.submit(_compile_kernels, source, folder) for source in [*KERNELS, *MICRO]}
        jobs |= {source: pool.submit(_compile_binding, source, folder) for source in BINDING}
        for source, job in jobs.items():
            result = job.result()
            print(f"{'compiled' if result.returncode == 0 else 'FAILED  '}  {source.relative_to(ROOT)}", flush=True)
            if result.returncode:
                wrong.append(f"{source.relative_to(ROOT)}:\n{result.stdout}{result.stderr}")
            found += usages(result.stdout + result.stderr)
        sass = _disassemble(folder)
    if sass is None:
        print("instructions not looked at: there is no cuobjdump on the PATH")
    else:
        wrong += instruction_faults(sass)
    print(f"{len(found)} kernels for {', '.join(f'sm_{arch}' for arch in ARCHS)}")
    for arch in ARCHS:
        most = max((usage.registers for usage in found if usage.arch == arch), default=0)
        print(f"sm_{arch:<4} at most {most} registers")
    wrong += faults(found)
    for fault in wrong:
        print(f"compile gate: {fault}", file=sys.stderr)
    print("compile gate:", "FAILED" if wrong else "passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
