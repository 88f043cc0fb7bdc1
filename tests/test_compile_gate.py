"""The compile gate sees what it is there for (the gate itself is `make cuda-check`)."""

import shutil
import subprocess

import compile_gate
import pytest
from compile_gate import ARCHS, COMMON, STRICT, Usage

from fusedlstm import _C

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4stepwise_kernelv' for 'sm_90a'
ptxas info    : Function properties for _Z4stepwise_kernelv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function '_Z5other' for 'sm_120'
ptxas info    : Used 12 registers, used 0 barriers
"""


def _plan():
    return _C.make_plan(
        _C.Problem(steps=1, batch=1, hidden=64), _C.Limits(multiprocessors=1, threads_per_multiprocessor=1024)
    )


def _all_kernels(registers=64, shared=0):
    return [Usage(f"stepwise_kernel_{i}", arch, registers, shared) for arch in ARCHS for i in range(16)]


def test_reads_what_ptxas_says():
    found = list(compile_gate.usages(LOG))
    assert found == [Usage("_Z4stepwise_kernelv", "90a", 62, 512), Usage("_Z5other", "120", 12, 0)]


def test_kernels_within_the_plan_pass():
    assert not compile_gate.faults(_all_kernels(), _plan())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (_all_kernels(registers=65), "65 registers, the plan has 64"),
        (_all_kernels(shared=4), "4 bytes of shared memory"),
        (_all_kernels()[1:], "sm_80: 15 kernels of a step, must be 16"),
    ],
)
def test_kernels_beyond_the_plan_are_named(found, message):
    assert message in compile_gate.faults(found, _plan())[0]


def _copy(statement):
    return f"\n#pragma unroll\nfor (int i = 0; i < 64; ++i) {statement};"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("float x[64];" + _copy("x[i] = p[i]") + _copy("p[i] = x[i]"), "spilled to local memory"),
        ("float x[64]; for (int i = 0; i < n; ++i) x[i] = p[i]; p[0] = x[n * 7 % 64];", "Local memory used"),
        ("int unused;", "unused"),
    ],
    ids=["spill", "local_memory", "warning"],
)
def test_a_faulty_kernel_does_not_compile(body, message, tmp_path):
    source = tmp_path / "kernel.cu"
    source.write_text("__global__ void __launch_bounds__(1024, 2) kernel(volatile float* p, int n) {" + body + "}\n")
    command = [*COMMON, *STRICT, "-arch=sm_90a", "-c", source, "-o", tmp_path / "kernel.o"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
