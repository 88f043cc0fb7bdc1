"""What must hold of a problem."""

import contextlib

import emulated
import torch
from fuzz import calls, values
from fuzz.problem import Problem
from torch import Tensor

from benchmarks.accuracy import assert_as_accurate

# The largest error of a few numbers varies by chance: in one draw of some hundred a sum cancels and torch is lucky. So
# where the first values fail the accuracy rule, more are drawn, and all of them are judged together. A fault stays.
DRAWS = (1, 8, 64)


def check(problem: Problem, device: str) -> None:
    """Computes a problem on the CPU, the emulator or a GPU.

    Raises:
        AssertionError: a result is wrong.
    """
    found: list[list[calls.Results]] = []
    for draws in DRAWS if problem.dtype != torch.float64 else DRAWS[:1]:
        found += [_run(problem, values.draw(problem, number), device) for number in range(len(found), draws)]
        try:
            return _assert_accurate(problem, found)
        except AssertionError as error:
            failure = error
    raise failure


def _run(problem: Problem, drawn: values.Values, device: str) -> list[calls.Results]:
    """The truth, fusedlstm's results, and those of each of torch's own implementations."""
    emulates = device == "emulated"
    on = torch.device("cpu" if emulates else device)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in problem.threads:
            torch.set_num_threads(threads)
            where = (
                emulated.operators(("stepwise", "fastest")[problem.seed % 2]) if emulates else contextlib.nullcontext()
            )
            with where:
                runs.append(calls.by_fusedlstm(problem, drawn, on))
    finally:
        torch.set_num_threads(before)
    truth = calls.by_loop(problem, drawn, torch.float64)
    ours, again = runs
    assert ours.keys() == truth.keys()
    for name, value in ours.items():
        assert value.shape == truth[name].shape, f"{name}: {list(value.shape)}, expected {list(truth[name].shape)}"
        assert calls.same_bits(value, again[name]), (
            f"{name}: the second run, with {problem.threads[1]} threads, has other bits"
        )
        _assert_zero_past_the_end(problem, name, value)
    return [truth, ours, *calls.by_torch(problem, drawn, on)]


def _assert_zero_past_the_end(problem: Problem, name: str, value: Tensor) -> None:
    steps = {"y": value, "grad_x": value, "h_all": value, "c_all": value}.get(name)
    if steps is None or problem.lengths is None:
        return
    for n, length in enumerate(problem.lengths):
        past = steps[:, length:, n] if name.endswith("all") else steps[length:, n]
        assert not past.any(), f"{name}: not zero past the end of sequence {n}"


def _assert_accurate(problem: Problem, found: list[list[calls.Results]]) -> None:
    """The accuracy rule over the values of all draws together."""
    truth, ours, *torchs = (
        {name: torch.stack([results[name] for results in each]) for name in each[0]}
        for each in zip(*found, strict=True)
    )
    if problem.dtype == torch.float64:
        for name, value in truth.items():
            torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}")
        return
    assert_as_accurate(ours, torchs, truth)
