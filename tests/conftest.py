"""Devices, poisoned memory and the hypothesis profile for the whole suite."""

import os
from collections.abc import Iterator

# Several test processes share the cores: a thread that waits for its team must sleep, for one that spins keeps the
# core from the thread it waits for. Read when torch loads OpenMP, so it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import emulated
import hypothesis
import pytest
import torch

from fusedlstm import _C

# Runs are repeatable: the same examples every time, and no deadline on a machine that may be busy.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("suite")


def _why_no_cuda() -> str | None:
    if not _C.build_info()["cuda"]:
        return "this build has no CUDA kernels"
    return None if torch.cuda.is_available() else "no GPU is visible"


@pytest.fixture(params=["cpu", "emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device the package supports; one that is absent is skipped by name, or fails when it is required.

    "emulated" is the CUDA layer on CPU tensors (tests/emulation), for machines without a GPU.
    """
    if request.param == "emulated":
        if _C.build_info()["cuda"]:
            pytest.skip("this build has the CUDA kernels themselves")
        with emulated.operators():
            yield torch.device("cpu")
        return
    if request.param == "cuda" and (reason := _why_no_cuda()):
        if os.environ.get("FUSEDLSTM_REQUIRE_CUDA") == "1":
            pytest.fail(f"FUSEDLSTM_REQUIRE_CUDA=1, but {reason}")
        pytest.skip(reason)
    yield torch.device(request.param)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Uninitialised memory holds NaN, so that whatever is read before it is written shows in a result."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
