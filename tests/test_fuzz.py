"""Random calls on every device and instruction set (tests/fuzz), and faults that the fuzz must see."""

import sys
from dataclasses import replace

import pytest
import torch
from fuzz import bad_input, check, problem, targets
from fuzz.__main__ import describe

from fusedlstm import functional, ops

# The seeds of each device; `make fuzz` runs thousands of others.
SEEDS = {
    "plain": range(80),
    "avx2": range(1000, 1050),
    "avx512": range(2000, 2050),
    "avx512_bf16": range(2500, 2550),
    "amx": range(3000, 3050),
    "emulated": range(4000, 4020),
    "cuda": range(5000, 5150),
}


@pytest.mark.parametrize("device", SEEDS)
def test_random_calls(device, request):
    target = targets.named(device)
    if device == "cuda":
        request.getfixturevalue("cuda")
    elif target not in targets.usable():
        pytest.skip(f"this {'build' if device == 'emulated' else 'processor'} has no {device}")
    failed = [outcome for outcome in targets.run(target, SEEDS[device]) if outcome.error]
    texts = [f"{target.command(each.seed)}\n{describe(each.seed, target)}\n{each.error}" for each in failed]
    assert not failed, "\n\n".join(texts)


def test_bad_input():
    for seed in range(400):
        bad_input.check(seed)


def test_seeds_draw_everything_there_is():
    drawn = [problem.draw(seed) for seed in range(600)]
    for field, choices in (("form", problem.FORMS), ("dtype", problem.DTYPES), ("layout", problem.LAYOUTS)):
        assert {getattr(each, field) for each in drawn} == set(choices)
    for field in ("bias", "batch_first", "recompute", "return_states", "state"):
        assert {getattr(each, field) for each in drawn} == {False, True}
    assert {each.D for each in drawn} == {1, 2}
    assert {each.L for each in drawn} == {1, 2, 3}
    assert {view for each in drawn for view in each.views.values()} == set(problem.VIEWS)
    assert {each.grad_mode for each in drawn} == {"enable_grad", "no_grad", "inference_mode"}
    for field, sizes in (
        ("T", problem.STEPS),
        ("N", problem.BATCHES),
        ("I", problem.FEATURES),
        ("H", problem.FEATURES),
    ):
        assert set(sizes) <= {getattr(each, field) for each in drawn}
    uneven = [each for each in drawn if each.lengths and len(set(each.lengths)) > 1]
    assert any(0 in each.lengths for each in uneven)
    assert any(each.layout == "packed_unsorted" and list(each.lengths) != sorted(each.lengths) for each in uneven)
    assert any(each.reset_rate and each.D == 2 for each in uneven)
    assert any(each.T * each.N > 256 for each in drawn)  # several time blocks in the backward pass


def _lengths_off_by_one(layer, x, h0, c0, weights, lengths=None, **options):
    if lengths is not None and len(x):
        lengths = (lengths - 1).clamp(min=0)
    return layer(x, h0, c0, weights, lengths=lengths, **options)


def _resets_a_step_late(layer, x, h0, c0, weights, resets=None, **options):
    if resets is not None:
        resets = resets.roll(1, 0)
    return layer(x, h0, c0, weights, resets=resets, **options)


def _gates_in_another_order(layer, x, h0, c0, weights, **options):
    H = c0.shape[2]
    order = torch.cat([torch.arange(H, 2 * H), torch.arange(H), torch.arange(2 * H, 4 * H)])
    return layer(x, h0, c0, [weight[order] if len(weight) == 4 * H else weight for weight in weights], **options)


def _no_gradient_of_h0(layer, x, h0, c0, weights, **options):
    return layer(x, h0.detach(), c0, weights, **options)


def _directions_swapped(layer, x, h0, c0, weights, **options):
    y, h_n, c_n, cells = layer(x, h0, c0, weights, **options)
    return y, h_n.flip(0), c_n, cells


def _gradient_too_large(layer, x, h0, c0, weights, **options):
    y, h_n, c_n, cells = layer(x, h0, c0, weights, **options)
    return y, h_n, c_n + 0.01 * (c_n - c_n.detach()), cells


def _last_unit_wrong(layer, x, h0, c0, weights, **options):
    y, h_n, c_n, cells = layer(x, h0, c0, weights, **options)
    wrong = torch.zeros_like(y)
    if c0.shape[2] % 16 == 1:
        wrong[..., -1] = 0.05
    return y + wrong, h_n, c_n, cells


def _writes_to_x(layer, x, h0, c0, weights, **options):
    with torch.no_grad():
        x += 0 * x + 1
    return layer(x, h0, c0, weights, **options)


def _other_bits_with_other_threads(layer, x, h0, c0, weights, **options):
    y, h_n, c_n, cells = layer(x, h0, c0, weights, **options)
    return y * (1 + torch.finfo(y.dtype).eps * (torch.get_num_threads() - 1)), h_n, c_n, cells


def _padding_not_zero(layer, x, h0, c0, weights, **options):
    y, h_n, c_n, cells = layer(x, h0, c0, weights, **options)
    return y + 1e-30, h_n, c_n, cells


FAULTS = [
    _lengths_off_by_one,
    _resets_a_step_late,
    _gates_in_another_order,
    _no_gradient_of_h0,
    _directions_swapped,
    _gradient_too_large,
    _last_unit_wrong,
    _writes_to_x,
    _other_bits_with_other_threads,
    _padding_not_zero,
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_fault_shows_within_a_few_seeds(fault, monkeypatch):
    layer = ops.lstm_layer
    monkeypatch.setattr(functional.ops, "lstm_layer", lambda *arguments, **options: fault(layer, *arguments, **options))
    monkeypatch.setattr(check, "DRAWS", (1,))
    for seed in range(40):
        try:
            check.check(problem.draw(seed, emulated=True), "cpu")  # the small ones
        except AssertionError:
            return
    pytest.fail("40 seeds do not show it")


WORKER = """
import os, sys, time
for line in sys.stdin:
    if line == "2\\n": os.abort()
    if line == "4\\n": time.sleep(60)
    print('"wrong"' if line == "5\\n" else "null", flush=True)
"""


def test_a_seed_that_ends_its_process_or_hangs_has_failed(monkeypatch):
    monkeypatch.setattr(targets, "WORKER", [sys.executable, "-c", WORKER])
    monkeypatch.setattr(targets, "SECONDS_OF_A_SEED", 3)
    errors = {outcome.seed: outcome.error for outcome in targets.run(targets.Target("cpu"), range(6))}
    assert [seed for seed, error in errors.items() if error is None] == [0, 1, 3]
    assert errors[2].startswith("the process ended with -6")
    assert errors[4].startswith("no answer in 3 seconds")
    assert errors[5] == "wrong"


def test_a_problem_is_the_same_everywhere():
    assert str(problem.draw(7)) == str(problem.draw(7))
    assert replace(problem.draw(7)) == problem.draw(7)
