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


def _all_kernels(registers=64, shared=0):
    kernels = [f"{name}_{i}" for name, (_, count) in compile_gate.EXPECTED.items() for i in range(count)]
    return [Usage(kernel, arch, registers, shared) for arch in ARCHS for kernel in kernels]


def test_reads_what_ptxas_says():
    found = list(compile_gate.usages(LOG))
    assert found == [Usage("_Z4stepwise_kernelv", "90a", 62, 512), Usage("_Z5other", "120", 12, 0)]


def test_kernels_within_the_plan_pass():
    assert not compile_gate.faults(_all_kernels())


def test_the_gate_and_the_plan_agree():
    plan = _C.make_plan(
        _C.Problem(steps=1, batch=1, hidden=64), _C.Limits(multiprocessors=1, threads_per_multiprocessor=1024)
    )
    assert compile_gate.EXPECTED["stepwise_kernel"][0] == plan.stepwise.registers


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (_all_kernels(registers=65), "65 registers, the plan has 64"),
        (_all_kernels(shared=4), "4 bytes of static shared memory"),
        (_all_kernels()[1:], "sm_80: 15 of stepwise_kernel, must be 16"),
    ],
)
def test_kernels_beyond_the_plan_are_named(found, message):
    assert message in compile_gate.faults(found)[0]


SASS = """
    Function : _Z17persistent_kernelv
  .headerflags  @"EF_CUDA_SM90"
        /*0000*/                   LDG.E.STRONG.GPU R0, desc[UR36][R164.64] ;
        /*0010*/                   ISETP.GE.U32.AND P0, PT, R0, R1, PT ;
        /*0020*/              @!P0 BRA 0x0 ;
        /*0030*/                   CCTL.IVALL ;
        /*0040*/                   LDG.E.128.STRONG.GPU R12, desc[UR36][R4.64] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R4, R8, R4 ;
        /*0060*/                   MEMBAR.ALL.GPU ;
        /*0070*/               @P1 BRA 0x0 ;
        /*0080*/                   EXIT ;
    Function : _Z4other
        /*0000*/                   LDL R0, [R1] ;
"""


# The data itself is polled: what stands after the loop is the fence for the next one.
SASS_WITHOUT_FLAGS = SASS.replace("LDG.E.STRONG.GPU", "LDG.E.128.STRONG.GPU").replace(
    "LDG.E.128.STRONG.GPU R12", "NOP R12"
)


@pytest.mark.parametrize("sass", [SASS, SASS_WITHOUT_FLAGS], ids=["flag", "data"])
def test_instructions_as_they_should_be_pass(sass):
    assert not compile_gate.instruction_faults(sass)


def test_without_flags_a_fence_must_follow_too():
    assert "no fence" in compile_gate.instruction_faults(SASS_WITHOUT_FLAGS.replace("MEMBAR.ALL.GPU", "NOP"))[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HMMA", "FFMA", "no product on the tensor cores"),
        ("ISETP.GE.U32.AND P0, PT, R0, R1, PT", "CCTL.IVALL", "CCTL.IVALL while polling"),
        ("ISETP.GE.U32.AND P0, PT, R0, R1, PT", "MEMBAR.SC.GPU", "MEMBAR.SC.GPU while polling"),
        ("LDG.E.STRONG.GPU R0", "LDG.E R0", "no loop that polls"),
        ("EXIT", "STL [R1], R0", "STL [R1], R0"),
        ("CCTL.IVALL", "NOP", "no acquire between the polling and the reading"),
    ],
)
def test_instructions_that_should_not_be_there_are_named(old, new, message):
    assert message in compile_gate.instruction_faults(SASS.replace(old, new))[0]


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
