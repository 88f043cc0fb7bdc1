"""What users build on nn.LSTM, against the equations."""

import pytest
import torch
from torch import nn

from benchmarks import recipes


@pytest.mark.parametrize("resets", [[[0, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]], [[1, 0, 1]]])
def test_resets_in_nn_lstm(resets):
    """By segments and with episodes padded, against the equations step by step."""
    resets = torch.tensor(resets, dtype=torch.bool)
    T, N = resets.shape
    module = nn.LSTM(5, 8, num_layers=2, dtype=torch.float64)
    x, h0, c0 = (torch.randn(shape, dtype=torch.float64) for shape in ((T, N, 5), (2, N, 8), (2, N, 8)))
    h, c, steps = h0, c0, []
    for t in range(T):
        keeps = ~resets[t, :, None]
        y, (h, c) = module(x[t : t + 1], (h * keeps, c * keeps))
        steps.append(y[0])
    y, (h_n, c_n) = recipes.BySegments(module)(x, (h0, c0), resets)
    padded, _ = recipes.PaddedEpisodes(module)(x, (h0, c0), resets)
    for given, expected in ((y, torch.stack(steps)), (padded, torch.stack(steps)), (h_n, h), (c_n, c)):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


def test_episodes_are_rows_of_a_padded_batch():
    """Row by row of the batch, one episode after the other: of 2 and 1 steps, then one of 3."""
    layout = recipes.PaddedEpisodes.layout_of(torch.tensor([[0, 1], [0, 0], [1, 0]], dtype=torch.bool))
    assert (layout.steps, layout.rows, layout.firsts.tolist()) == (3, 3, [0, 2])
    assert layout.places.view(3, 2).tolist() == [[0, 2], [3, 5], [1, 8]]


def test_alternating_layers():
    first, second = nn.LSTM(5, 8), nn.LSTM(8, 8)
    x, hx = torch.randn(4, 3, 5), (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    y, (h_n, c_n) = recipes.Alternating([first, second])(x, hx)
    middle, (h, c) = first(x, (hx[0][:1], hx[1][:1]))
    assert torch.equal(h_n[:1], h)
    assert torch.equal(c_n[:1], c)
    assert torch.equal(y[0], h_n[1])  # the second layer ends at the first step
    expected, _ = second(middle.flip(0), (hx[0][1:], hx[1][1:]))
    assert torch.equal(y, expected.flip(0))
