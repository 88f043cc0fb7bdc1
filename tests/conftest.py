"""Devices, poisoned memory and the hypothesis profile for the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

# Several test processes share the cores, so a waiting thread must sleep: if it spins, it keeps the core from the thread
# that it waits for. OpenMP reads the variable when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without it torch warns of its own products on a GPU, and warnings are errors here. cuBLAS reads it at its start.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The operators fill what they allocate on a CPU with NaN, so that reading it shows in a result.
os.environ.setdefault("FUSEDLSTM_POISON", "1")

import emulated
import hypothesis
import machines
import pytest
import torch

from fusedlstm import _C

if emulated.ASAN and b"__ubsan_handle" not in Path(_C.__file__).read_bytes():
    pytest.exit(
        f"FUSEDLSTM_ASAN=1, but {_C.__file__} has no sanitizers; run: make test-asan, with Python 3.11 or later"
    )

# Runs are repeatable: the same examples every time. No deadline, since the machine may be busy.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("suite")


def _why_no_cuda() -> str | None:
    if not _C.build_info()["cuda"]:
        return "this build has no CUDA kernels"
    return None if torch.cuda.is_available() else "no GPU is visible"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """If a GPU is required (`make gpu`), keeps only the tests that use one; the others run in CI."""
    if os.environ.get("FUSEDLSTM_REQUIRE_CUDA") != "1":
        return

    def uses_gpu(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        chosen = parameters.get("device", parameters.get("machine"))
        return "cuda" in getattr(item, "fixturenames", ()) or chosen == "cuda"

    config.hook.pytest_deselected(items=[item for item in items if not uses_gpu(item)])
    items[:] = filter(uses_gpu, items)


@pytest.fixture
def cuda() -> torch.device:
    """The GPU; without one the test is skipped, or fails if one is required."""
    if reason := _why_no_cuda():
        if os.environ.get("FUSEDLSTM_REQUIRE_CUDA") == "1":
            pytest.fail(f"FUSEDLSTM_REQUIRE_CUDA=1, but {reason}")
        pytest.skip(reason)
    return torch.device("cuda")


@pytest.fixture(params=["cpu", "emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device the package supports, and the CUDA layer on CPU tensors for machines without a GPU."""
    if request.param == "cuda":
        yield request.getfixturevalue("cuda")
    elif request.param == "cpu":
        yield torch.device("cpu")
    elif _C.build_info()["cuda"]:
        pytest.skip("this build has the CUDA kernels themselves")
    else:
        with emulated.operators():
            yield torch.device("cpu")


@pytest.fixture(params=["emulated", "cuda"])
def machine(request: pytest.FixtureRequest) -> machines.Machine:
    """Each device that the persistent kernels run on; the test says by which strategy and with what size."""
    if request.param == "cuda":
        request.getfixturevalue("cuda")
        return machines.Gpu()
    if _C.build_info()["cuda"]:
        pytest.skip("this build has the CUDA kernels themselves")
    return machines.Emulator()


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fills uninitialised memory of torch with NaN too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """No TF32 on a GPU, except in its own tests: it can turn a difference in the last bit into one in the tenth."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
