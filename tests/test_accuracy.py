"""The accuracy rule accepts and rejects what it should."""

import pytest
import torch
from comparison import Tf32Products, rounded_to_tf32
from torch.nn import functional as F

from benchmarks.accuracy import assert_as_accurate


def _named(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"y": torch.full((2, 3), value, dtype=dtype)}


def test_accepts_an_error_of_twice_the_baseline():
    assert_as_accurate(_named(1.02), [_named(1.01)], _named(1.0, torch.float64))


def test_rejects_a_larger_error_and_says_everything():
    ours = _named(1.0)
    ours["y"][1, 2] = 1.03
    with pytest.raises(AssertionError, match=r"y: error 3\.0e-02 .* own 1\.0e-02, allowed 2\.0e-02; .*\[1, 2\]"):
        assert_as_accurate(ours, [_named(1.01)], _named(1.0, torch.float64))


def test_takes_the_largest_error_among_torchs_implementations():
    assert_as_accurate(_named(1.03), [_named(1.0), _named(1.02)], _named(1.0, torch.float64))
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(_named(1.03), [_named(1.0), _named(1.01)], _named(1.0, torch.float64))


def test_allows_one_unit_in_the_last_place():
    unit = torch.finfo(torch.float32).eps
    assert_as_accurate(_named(1 + 2 * unit), [_named(1.0)], _named(1.0, torch.float64))
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(_named(1 + 3 * unit), [_named(1.0)], _named(1.0, torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rejects_what_is_not_finite(bad):
    with pytest.raises(AssertionError, match="error"):
        assert_as_accurate(_named(bad), [_named(1.01)], _named(1.0, torch.float64))


def test_rejects_another_dtype_or_shape():
    with pytest.raises(AssertionError, match="torch gives"):
        assert_as_accurate(_named(1.0, torch.float64), [_named(1.0)], _named(1.0, torch.float64))
    with pytest.raises(AssertionError, match=r"\[2\], expected \[2, 3\]"):
        assert_as_accurate({"y": torch.ones(2)}, [_named(1.0)], _named(1.0, torch.float64))


def test_tf32_products_have_the_error_of_10_bits():
    x, weight = torch.randn(50, 40, dtype=torch.float64), torch.randn(30, 40, dtype=torch.float64, requires_grad=True)
    exact = F.linear(x, weight)
    with Tf32Products():
        rounded = F.linear(x, weight)
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 2**-14 < error < 2**-10
    cotangent = torch.randn_like(exact)
    grads = [torch.autograd.grad(out, weight, cotangent)[0] for out in (exact, rounded)]
    assert 2**-14 < (grads[1] - grads[0]).abs().max() / grads[0].abs().max() < 2**-10
    assert torch.equal(
        rounded_to_tf32(torch.tensor([1 + 2**-11, 1 + 3 * 2**-12, -3.0])), torch.tensor([1 + 2**-10, 1 + 2**-10, -3])
    )
