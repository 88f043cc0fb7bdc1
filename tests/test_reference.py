"""The reference equals nn.LSTM in float64, and is differentiable twice."""

import pytest
import torch
from cases import CASES
from comparison import random_state, reference_lstm, results
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedlstm import reference

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_nn_lstm(case):
    module = nn.LSTM(case.I, case.H, **case.options | {"batch_first": False}, dtype=torch.float64)
    x = torch.randn(case.T, case.N, case.I, dtype=torch.float64, requires_grad=True)
    hx = random_state(module, case.N, torch.float64, x.device)
    inputs = {"x": x, **dict(module.named_parameters())}
    runs = [(y, *state) for y, state in (module(x, hx), reference_lstm(module, x, hx))]
    cotangents = [torch.randn_like(out) for out in runs[0]]
    torchs, ours = (results(inputs, run, cotangents) for run in runs)
    for name in torchs:
        torch.testing.assert_close(ours[name], torchs[name], msg=lambda text, name=name: f"{name}: {text}")


def test_lengths_equal_a_packed_sequence():
    module = nn.LSTM(3, 5, 2, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(6, 4, 3, dtype=torch.float64), torch.tensor([6, 1, 4, 4])
    hx = random_state(module, 4, torch.float64, x.device)
    packed, expected_state = module(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    y, state = reference_lstm(module, x, hx, lengths)
    torch.testing.assert_close(y, pad_packed_sequence(packed)[0])
    torch.testing.assert_close(state, expected_state)


def test_second_derivatives():
    x, h0, c0 = (
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(3, 2, 2), (1, 2, 2), (1, 2, 3)]
    )
    weights = [
        torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(12, 2), (12, 2), (12,), (12,), (2, 3)]
    ]

    def layer(x, h0, c0, *weights):
        return reference.layer(x, h0, c0, weights)

    assert torch.autograd.gradgradcheck(layer, (x, h0, c0, *weights))
