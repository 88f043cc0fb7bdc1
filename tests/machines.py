"""Where the persistent kernels run: on the emulator or on the GPU, with as many multiprocessors as a test asks for.

A test of both takes the fixture ``machine``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import emulated
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fusedlstm import _C

Result = TypeVar("Result")


class Emulator:
    device = torch.device("cpu")
    multiprocessors = 4  # unless a test asks for others

    @contextmanager
    def running(self, strategy: str, multiprocessors: int) -> Iterator[None]:
        """Inside, the operators run by that strategy on that many multiprocessors."""
        with emulated.operators(strategy, multiprocessors):
            yield

    def limits(self, multiprocessors: int) -> _C.Limits:
        """What the operators' plan reads of a device of that size."""
        return _C.Limits(
            multiprocessors=multiprocessors,
            threads_per_multiprocessor=1024,
            shared_memory=227 * 1024,
            compute_capability=90,
        )

    def in_one_launch(self, run: Callable[[], Result]) -> Result:
        """Calls ``run``, a forward and a backward pass, inside `running`; each must be one launch for all steps."""
        result = run()
        assert emulated.work() < 30  # however many steps
        return result


class Gpu:
    """Has fewer multiprocessors where it leaves the others to other work."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.multiprocessors: int = torch.cuda.get_device_properties(self.device).multi_processor_count

    @contextmanager
    def running(self, strategy: str, multiprocessors: int) -> Iterator[None]:
        """As of `Emulator`."""
        if multiprocessors > self.multiprocessors:
            pytest.skip(f"this takes {multiprocessors} multiprocessors, and the GPU has {self.multiprocessors}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FUSEDLSTM_STRATEGY", strategy)
            patch.setenv("FUSEDLSTM_SM_MARGIN", str(self.multiprocessors - multiprocessors))
            yield

    def limits(self, multiprocessors: int) -> _C.Limits:
        """As of `Emulator`."""
        from benchmarks import tiers  # which are not there where the tests of a wheel run

        return tiers.limits_of_this_gpu(launch_us=5, multiprocessors=multiprocessors)  # not asked by a forced strategy

    def in_one_launch(self, run: Callable[[], Result]) -> Result:
        """As of `Emulator`."""
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
            result = run()
            torch.cuda.synchronize()
        for name in ("lstm_forward_persistent_kernel", "lstm_backward_persistent_kernel"):
            assert sum(event.count for event in profiled.key_averages() if name in event.key) == 1
        return result


Machine = Emulator | Gpu
