"""The compile gate sees what it is there for (the gate itself is `make cuda-check`)."""

import shutil
import subprocess

import compile_gate
import pytest
import sass
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
    code for sm_90a
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


def _instruction_faults(text):
    (kernel,) = sass.kernels(text)
    return sass.instruction_faults(kernel)


def test_reads_what_cuobjdump_says():
    (kernel,) = sass.kernels(SASS)
    assert str(kernel) == "_Z17persistent_kernelv, sm_90a"
    assert list(kernel.code) == list(range(0, 0x90, 0x10))
    assert kernel.code[0x20] == "@!P0 BRA 0x0"


@pytest.mark.parametrize("text", [SASS, SASS_WITHOUT_FLAGS], ids=["flag", "data"])
def test_instructions_as_they_should_be_pass(text):
    assert not _instruction_faults(text)


def test_without_flags_a_fence_must_follow_too():
    assert "no fence" in _instruction_faults(SASS_WITHOUT_FLAGS.replace("MEMBAR.ALL.GPU", "NOP"))[0]


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
    assert message in _instruction_faults(SASS.replace(old, new))[0]


def _total():
    return [f"LDS R{i}, [R0]" for i in range(8)]


def _step_of(of_pass, work=0, cells=1, signal="data"):
    """A step with a barrier, cells and a publication, the prologue before it, cleared words and a flag after it.

    A list within the instructions is left out by warps without what it is for. `work` is how many more instructions a
    cell takes, `cells` how often it is updated.
    """
    cell = ["LDS R9, [R1]", "STS [R1], R9", *["FFMA R9, R9, R9, R9"] * work]
    tanh = ["MUFU.EX2 R3, R3", "MUFU.RCP R3, R3"]
    if of_pass == "forward":
        tiles = []
        for _ in range(4):
            tiles = [[*_total(), *tanh, *tiles]]
        gates = ["SHFL.BFLY PT, R4, R4, 0x8, 0x1f"] * 4
        updates = [*tiles, *gates, *[[*cell, *tanh]] * cells]
    else:
        updates = [_total(), *[cell] * cells]
    publication = [["STG.E.STRONG.GPU [R4], R7"]]
    products = [["HMMA.16816.F32.BF16 R4, R4, R8, R4", "BAR.SYNC 0x0"]]  # the first step backward has none
    before = ["BAR.SYNC 0x0", *publication, "BAR.SYNC 0x0", *products]
    flag = ["BAR.SYNC 0x0", ["STG.E.STRONG.GPU [R5], R9"]] if signal == "flag" else []
    after = [["STG.E.STRONG.GPU [R4], R8"], *flag, "BRA 0x40"]
    lines = _flat([*before, *updates, *publication, *after])
    code = "".join(f"        /*{16 * at:04x}*/   {line} ;  /* 0x0000 */\n" for at, line in enumerate(lines))
    return f"code for sm_80\n  Function : lstm_{of_pass}_persistent_kernel\n{code}"


def _flat(lines, begin=0):
    """With a branch over each list in place of the list."""
    flat = []
    for line in lines:
        if isinstance(line, list):
            inner = _flat(line, begin + len(flat) + 1)
            flat += [f"@P0 BRA 0x{16 * (begin + len(flat) + 1 + len(inner)):x}", *inner]
        else:
            flat.append(line)
    return flat


def _steps(text):
    return [sass.step(kernel) for kernel in sass.kernels(text)]


@pytest.mark.parametrize(
    ("of_pass", "counts"),
    [
        # The branches over four tiles, of which that over the second one is taken; those over the cell and the store.
        ("forward", (2 + 8 + 2 + 4 + 1 + 4 + 2, 4 * (1 + 8 + 2) + 4 + 1 + 4 + 2, 4 * (1 + 8 + 2) + 4 + 1 + 4 + 2)),
        ("backward", (1 + 8 + 1 + 2 + 2, 1 + 8 + 1 + 2 + 2, 1 + 8 + 1 + 2 + 2)),
    ],
)
@pytest.mark.parametrize("signal", ["data", "flag"])
def test_the_instructions_of_a_step_are_counted(of_pass, counts, signal):
    (step,) = _steps(_step_of(of_pass, signal=signal))
    assert (step.one_tile, step.quad, step.all_paths) == counts


def _step_faults(of_pass, one_tile):
    (without_work,) = _steps(_step_of(of_pass))
    steps = _steps(_step_of(of_pass, one_tile - without_work.one_tile))
    assert steps[0].one_tile == one_tile
    return compile_gate.step_faults(steps)


@pytest.mark.parametrize(("of_pass", "least", "most"), [("forward", 125, 141), ("backward", 64, 85)])
def test_steps_of_today_pass_and_with_twice_the_instructions_are_named(of_pass, least, most):
    assert not _step_faults(of_pass, most)
    assert "(one tile), at most 1.5 * " in _step_faults(of_pass, 2 * least)[0]


@pytest.mark.parametrize(
    ("of_pass", "needed"),
    [
        *((of_pass, text) for of_pass in ("forward", "backward") for text in ("BAR", "HMMA", "STG", "LDS", "STS")),
        ("forward", "MUFU"),
        ("forward", "SHFL"),
    ],
)
def test_without_a_path_there_is_no_step(of_pass, needed):
    assert _steps(_step_of(of_pass).replace(needed, "NOP")) == [None]


def test_with_a_loop_before_the_publication_there_is_no_step():
    text = _step_of("backward", work=1)
    assert _steps(text.replace("FFMA R9, R9, R9, R9", "@P1 BRA 0x80")) == [None]
    assert _steps(text.replace("FFMA R9, R9, R9, R9", "@P1 BRA 0x150")) != [None]


def test_with_another_barrier_there_is_no_step():
    assert _steps(_step_of("backward", work=1).replace("FFMA R9, R9, R9, R9", "BAR.SYNC 0x0")) == [None]


def test_where_lanes_would_have_diverged_is_not_counted():
    text = _step_of("backward", work=4)
    for line in ("BRA.DIV UR4, 0x150", "BRA 0x160"):
        text = text.replace("FFMA R9, R9, R9, R9", line, 1)
    assert _steps(text)[0].all_paths == _steps(_step_of("backward", work=3))[0].all_paths


def test_work_on_cells_that_warps_may_leave_out_is_counted():
    (once,), (twice,) = (_steps(_step_of("backward", cells=cells)) for cells in (1, 2))
    assert twice.one_tile == once.one_tile + 1 + 2


@pytest.mark.parametrize(
    ("branch", "found"),
    [
        ("@P0 BRA P1, 0x150", True),
        ("BRA.U !UP0, 0x150", True),
        ("BRA.CONV ~URZ, 0x150", True),
        ("BRA.DIV UR4, 0x150", True),
        ("BRA 0x150", False),
        ("CALL.REL.NOINC 0x150", False),
        ("EXIT", False),
        ("@P0 EXIT", True),
    ],
)
def test_a_path_goes_on_after_a_condition(branch, found):
    text = _step_of("backward")
    assert text.count("@P0 BRA 0x150") == 1
    assert (_steps(text.replace("@P0 BRA 0x150", branch)) != [None]) == found


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
