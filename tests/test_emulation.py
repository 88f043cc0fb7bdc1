"""The emulator of tests/emulation: right kernels are right under every schedule, planted faults are caught."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parent.parent
MACHINE = ["collectives", "copies", "emulator", "fiber", "machine", "memory", "mma", "scheduler", "stores"]
PROBES = ["probes", "probes_memory", "probes_tensor_cores", "probes_threads"]
SEEDS = range(1, 7)

WRONG = "wrong result"
# What is said of each fault that is caught at every seed.
CAUGHT = {
    "reverse no_barrier_before_read": WRONG,
    "reverse no_barrier_before_write": WRONG,
    "reverse barrier_skipped": "it has ended while others of its block wait in a block barrier",
    "reverse too_little_shared": "uses 384 bytes of shared memory, the launch gave 380",
    "reverse unwritten": "element 0 is 0,",  # shared memory is all ones, and 1 is added
    "warp_sum wrong_mask": WRONG,
    "warp_sum wrong_lane": WRONG,
    "warp_sum partial_warp": "shuffle_xor in a warp of fewer than 32 threads",
    "warp_sum lane_leaves": "shuffle_xor",
    "warp_sum other_collective": "while other threads of its warp wait in",
    "warp_sum other_barrier": "no thread of the grid can go on",
    "launches no_blocks": "no blocks",
    "launches no_threads": "1 to 1024 threads, got 0",
    "launches too_many_threads": "1 to 1024 threads, got 1025",
    "launches too_much_shared": "232448 bytes of shared memory, asked for 232449",
    "launches cooperative_too_large": "a cooperative grid of 8 blocks, but only 4 are resident at once",
    "launches throws": "thread 500: thrown by the kernel",
    "launches outside_a_kernel": "outside a kernel",
    "approximations subnormal_kept": WRONG,
    "mma_half swapped_registers": WRONG,
    "mma_half wrong_lane": WRONG,
    "mma_half wrong_result_lane": WRONG,
    "mma_half swapped_halves": WRONG,
    "mma_bfloat16 swapped_registers": WRONG,
    "mma_bfloat16 wrong_lane": WRONG,
    "mma_bfloat16 wrong_result_lane": WRONG,
    "mma_bfloat16 swapped_halves": WRONG,
    "mma_tf32 swapped_registers": WRONG,
    "mma_tf32 wrong_lane": WRONG,
    "mma_tf32 wrong_result_lane": WRONG,
    "rounding truncated": WRONG,
    "rounding swapped_halves": WRONG,
    "flags no_barrier_after_poll": WRONG,
    "flags overwritten": WRONG,
    "flags not_resident": "nothing happens in the whole grid any more",
    "flags grid_too_large": "a cooperative grid of 5 blocks, but only 4 are resident at once",
    "warp_flags no_barrier_before_release": WRONG,
    "warp_flags no_barrier_after_poll": WRONG,
    "sentinel one_word": WRONG,
    "sentinel not_cleared": WRONG,
    "sentinel misaligned": "the address of a store is no multiple of 16",
    "counters no_barrier": WRONG,
    "copies no_wait": WRONG,
    "copies wait_for_too_few": WRONG,
    "copies no_commit": WRONG,
    "copies no_barrier_after_wait": WRONG,
    "copies no_barrier_before_refill": WRONG,
    "copies misaligned": "the address of the target of copy_async is no multiple of 16",
    "copies outside_shared": "outside the block's shared memory",
}
# In how many of 24 schedules at least the result is wrong.
CAUGHT_AT_TIMES = {
    "flags no_release": 6,
    "flags no_barrier_before_release": 18,
    "warp_flags no_release": 18,
}
CAUGHT_BY_ADDRESS_SANITIZER = ["reverse shared_past_the_end", "reverse global_past_the_end"]
RIGHT = sorted({fault.split()[0] for fault in CAUGHT})


def _build(tmp_path_factory, name, *flags):
    """Compiles everything as one source, which takes half the time; once for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    binary = folder / name
    with FileLock(f"{binary}.lock"):
        if not binary.exists():
            files = [f"{stem}.cpp" for stem in MACHINE] + [f"{stem}.cu" for stem in PROBES]
            source = Path(f"{binary}.cpp")
            source.write_text("".join(f'#include "emulation/{file}"\n' for file in files))
            includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
            warnings = ["-Wall", "-Wextra", "-Werror"]
            compiler = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-g1", *warnings, *flags, *includes]
            subprocess.run([*compiler, source, "-o", f"{binary}.new"], check=True)
            Path(f"{binary}.new").rename(binary)
    return binary


@pytest.fixture(scope="session")
def probes(tmp_path_factory):
    return _build(tmp_path_factory, "probes")


@pytest.fixture(scope="session")
def sanitized_probes(tmp_path_factory):
    return _build(tmp_path_factory, "sanitized_probes", "-fsanitize=address")


def _run(binary, *arguments, **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("FUSEDLSTM_EMULAT")}
    words = [word for argument in arguments for word in str(argument).split()]
    return subprocess.run([binary, *words], capture_output=True, text=True, timeout=60, env=inherited | environment)


def _outcome(result):
    """Exit status and message; addresses differ from process to process."""
    return result.returncode, re.sub(r"0x[0-9a-f]+", "ADDRESS", result.stdout + result.stderr)


@pytest.mark.parametrize("probe", RIGHT)
def test_right_kernels_are_right(probe, probes):
    for seed in SEEDS:
        result = _run(probes, probe, "none", seed)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("probe", RIGHT)
def test_right_kernels_leave_no_trace_in_address_sanitizer(probe, sanitized_probes):
    result = _run(sanitized_probes, probe, "none", 1)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("fault", CAUGHT)
def test_fault_is_caught_at_every_seed(fault, probes):
    for seed in SEEDS:
        result = _run(probes, fault, seed)
        assert result.returncode == 1, result
        assert f"{fault}, seed {seed}: " in result.stderr
        assert CAUGHT[fault] in result.stderr


@pytest.mark.parametrize("fault", CAUGHT_AT_TIMES)
def test_fault_is_caught_under_some_schedules(fault, probes):
    statuses = [_run(probes, fault, seed).returncode for seed in range(1, 25)]
    assert set(statuses) <= {0, 1}
    assert sum(statuses) >= CAUGHT_AT_TIMES[fault]


@pytest.mark.parametrize("fault", CAUGHT_BY_ADDRESS_SANITIZER)
def test_address_sanitizer_sees_the_memory_of_the_device(fault, sanitized_probes):
    for seed in SEEDS:
        result = _run(sanitized_probes, fault, seed)
        assert "heap-buffer-overflow" in result.stderr
        assert re.search(rf"kernel reverse, block \d+, thread \d+: .* \(seed {seed}, launch 1\)", result.stderr)


def test_errors_unwind_all_threads(sanitized_probes):
    """Stacks that an error left half-way would be reported when they are used again."""
    for fault in ("reverse barrier_skipped", "warp_sum other_barrier", "launches throws", "flags not_resident"):
        result = _run(sanitized_probes, fault, 1)
        assert result.returncode == 1
        assert "AddressSanitizer" not in result.stderr


@pytest.mark.parametrize("fault", [*CAUGHT, *CAUGHT_AT_TIMES])
def test_a_seed_repeats_its_run(fault, probes):
    assert _outcome(_run(probes, fault, 3)) == _outcome(_run(probes, fault, 3))


def test_seeds_differ(probes):
    outcomes = [_outcome(_run(probes, "sentinel not_cleared", seed)) for seed in SEEDS]
    assert len({re.sub(r"seed \d+", "", text) for _, text in outcomes}) > 1


def test_settings_from_the_environment(probes):
    assert "(seed 123, launch 1)" in _run(probes, "launches throws", FUSEDLSTM_EMULATION_SEED="123").stderr
    for setting in ({"FUSEDLSTM_EMULATED_SMS": "5"}, {"FUSEDLSTM_EMULATED_BLOCKS_PER_SM": "2"}):
        assert _run(probes, "flags not_resident", 1, **setting).returncode == 0
        assert _run(probes, "flags grid_too_large", 1, **setting).returncode == 0


def test_every_fault_has_its_test(probes):
    listed = set(_run(probes, "--list").stdout.splitlines())
    assert listed == {*CAUGHT, *CAUGHT_AT_TIMES, *CAUGHT_BY_ADDRESS_SANITIZER} | {f"{probe} none" for probe in RIGHT}
