"""The compile gate: every CUDA source for every architecture, with warnings and spills as errors.

Programs of benchmarks/micro are compiled for sm_90a alone. Run as a program it exits with 1 when something is wrong: a
source does not compile, a kernel spills, a kernel uses more registers or shared memory than the plan assumes, or its
instructions are not what they should be (sass.py; only where there is cuobjdump). It needs nvcc, not a GPU. With
--missing it prints the packages to install first.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sass
import torch
from sass import Step

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


# How many instructions a step of a persistent kernel has between the barrier after the products and the publication of
# the state (sass.Step), which is time that each step takes: for one tile of cells, for a quad of four, and on all paths
# together. The most of any kernel today, with nvcc 13.0.
STEPS = {
    "forward": {"90a": (148, 244, 250), "others": (148, 243, 243)},
    "backward": {"90a": (89, 89, 89), "others": (85, 85, 85)},
}
# Another nvcc schedules and unrolls otherwise, so half as many again may be there. Twice as many may not: the fewest
# for one tile are 122 forward and 71 backward on sm_90a, 125 and 64 on the others, and 2 * 64 > 1.5 * 85.
STEP_MARGIN = 1.5


def step_faults(steps: list[Step]) -> list[str]:
    """Where a step has more instructions than it may."""
    wrong = []
    for step in steps:
        usual = STEPS[step.kernel.of_pass]
        for paths, count, most in zip(_PATHS, _counts(step), usual.get(step.kernel.arch, usual["others"]), strict=True):
            if count > STEP_MARGIN * most:
                wrong.append(
                    f"{step.kernel}: {count} instructions from the barrier to the publication ({paths}), "
                    f"at most {STEP_MARGIN} * {most}"
                )
    return wrong


_PATHS = ("one tile", "a quad", "all paths")


def _counts(step: Step) -> tuple[int, int, int]:
    return step.one_tile, step.quad, step.all_paths


def _package_folders(name: str) -> list[Path]:
    """Of NVIDIA's packages, which may have what a toolkit lacks."""
    return sorted(Path(torch.__file__).parent.parent.glob(f"nvidia/*/{name}"))


def _programs_path() -> str:
    return os.pathsep.join([os.environ["PATH"], *map(str, _package_folders("bin"))])


def _missing_programs() -> list[str]:
    """Of the two that show instructions: cuobjdump runs nvdisasm."""
    return [name for name in ("cuobjdump", "nvdisasm") if shutil.which(name, path=_programs_path()) is None]


def _disassemble(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("cuobjdump", path=_programs_path()) or "cuobjdump"
    environment = {**os.environ, "PATH": _programs_path()}
    return subprocess.run([program, "-sass", str(path)], env=environment, capture_output=True, text=True, check=False)


def _compile_kernels(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    archs = ("90a",) if source in MICRO else ARCHS
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    command = [*COMMON, *STRICT, *targets, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _binding_includes() -> list[str]:
    """torch's headers, and those of NVIDIA's packages for a toolkit without cuBLAS."""
    torch_folder = Path(torch.__file__).parent
    return [f"-I{folder}" for folder in [torch_folder / "include", *_package_folders("include")]]


def _compile_binding(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Through nvcc, which passes the source to the host's compiler with the toolkit's headers."""
    flags = [*_binding_includes(), "-Xcompiler", "-Wall,-Werror,-fvisibility=hidden,-fPIC"]
    command = [*COMMON, *flags, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _look_at_instructions(objects: list[Path], pool: Executor, kernels: int) -> list[str]:
    """What is amiss in the instructions of the persistent kernels, of which there are as many."""
    wrong, steps, seen = [], [], 0
    for path, result in zip(objects, pool.map(_disassemble, objects), strict=True):
        if result.returncode:
            wrong.append(f"{path.name}: {result.stderr}")
        for kernel in sass.kernels(result.stdout):
            seen += 1
            wrong += sass.instruction_faults(kernel)
            if step := sass.step(kernel):
                steps.append(step)
            else:
                wrong.append(f"{kernel}: between barrier and publication no path with the work on cells, or a loop")
    if seen != kernels:
        wrong.append(f"instructions of {seen} persistent kernels, must be {kernels}")
    for arch in ARCHS:
        for of_pass in STEPS:
            found = [step for step in steps if (step.kernel.of_pass, step.kernel.arch) == (of_pass, arch)]
            most = [max(column) for column in zip(*map(_counts, found), strict=True)]
            print(f"sm_{arch:<4} {of_pass}: at most {most} instructions from the barrier to the publication")
    return wrong + step_faults(steps)


def _missing_packages() -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".cpp") as source:
        source.write("#include <cublas_v2.h>\n")
        source.flush()
        command = [*COMMON, *_binding_includes(), "-E", source.name]
        found = subprocess.run(command, capture_output=True, check=False).returncode == 0
    packages = [] if found else ["nvidia-cublas"]
    return packages + [f"nvidia-cuda-{name}" for name in _missing_programs()]


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
        if missing := _missing_programs():
            print(f"instructions not looked at: there is no {' and no '.join(missing)}")
        else:
            persistent = sum("persistent_kernel" in usage.kernel for usage in found)
            wrong += _look_at_instructions(sorted(folder.glob("persistent_*.o")), pool, persistent)
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
