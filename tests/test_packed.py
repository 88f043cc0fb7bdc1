"""Packed batches: the layout of the operators, what it costs, and that its results are those of any other layout."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fusedlstm
from fusedlstm import reference

_ops = torch.ops.fusedlstm


def _layer(sizes, N, I, H, P=None, D=1, dtype=torch.float64, device="cpu"):
    """Arguments of an operator for a packed batch of N sequences."""

    def tensor(*shape):
        return torch.randn(shape, dtype=dtype, device=device, requires_grad=True)

    weights = []
    for _ in range(D):
        weights += [tensor(4 * H, I), tensor(4 * H, P or H), tensor(4 * H), tensor(4 * H)]
        weights += [tensor(P, H)] if P else []
    x, h0, c0 = tensor(sum(sizes), I), tensor(D, N, P or H), tensor(D, N, H)
    return x, h0, c0, weights, None, None, torch.tensor(sizes, dtype=torch.int64), False


LAYERS = {
    "plain": ([3, 3, 2, 1], 3, {}),
    "both_directions": ([3, 2, 2, 1], 3, {"D": 2}),
    "projected": ([3, 2, 1], 3, {"D": 2, "P": 2}),
    "rows_without_steps": ([2, 1], 4, {"D": 2, "P": 2}),
    "steps_without_rows": ([2, 1, 0], 2, {"D": 2}),
    "nothing": ([0, 0], 2, {}),
}


@pytest.mark.parametrize(("sizes", "N", "options"), LAYERS.values(), ids=LAYERS)
def test_a_layer_has_the_results_and_gradients_of_padded_sequences(sizes, N, options, device):
    x, h0, c0, weights, *steps = _layer(sizes, N, 3, 4, **options, device=device)
    inputs = (x, h0, c0, *weights)
    y, h_n, c_n, cells, _gates = _ops.lstm_forward(x, h0, c0, weights, *steps, True, True)
    lengths = torch.tensor([sum(size > n for size in sizes) for n in range(N)], device=device)
    padded = x.new_zeros(len(sizes), N, 3)
    mask = torch.arange(len(sizes), device=device)[:, None] < lengths
    expected = reference.layer(padded.masked_scatter(mask[..., None], x), h0, c0, weights, lengths)
    expected = (expected[0][mask], *expected[1:3], expected[3][mask])
    results = y, h_n, c_n, cells
    cotangents = [torch.randn_like(result) for result in results]
    grads = [torch.autograd.grad(of, inputs, cotangents, allow_unused=True) for of in (results, expected)]
    for got, right in zip((*results, *grads[0]), (*expected, *grads[1]), strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if right is None else right)


@pytest.mark.parametrize("options", [{"D": 2}, {"D": 2, "P": 2}], ids=str)
def test_gradcheck_and_gradgradcheck(options):
    x, h0, c0, weights, *steps = _layer([3, 2, 1], 4, 2, 3, **options)

    def layer(x, h0, c0, *weights):
        return _ops.lstm_forward(x, h0, c0, list(weights), *steps, True, True)[:4]

    assert torch.autograd.gradcheck(layer, (x, h0, c0, *weights))
    assert torch.autograd.gradgradcheck(layer, (x, h0, c0, *weights))


# One time block of the passes holds more steps of few sequences than of many.
UNEVEN = {
    "one_long": [300] + [3] * 70,
    "falling": list(range(120, 0, -1)),
    "two_kinds": [50] * 3 + [2] * 90,
}


@pytest.mark.parametrize("lengths", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.parametrize("options", [{}, {"proj_size": 5, "bidirectional": True}, {"num_layers": 2}], ids=str)
def test_uneven_batches(lengths, options):
    torchs = nn.LSTM(6, 20, **options, dtype=torch.float64)
    ours = fusedlstm.replace_lstm(nn.LSTM(6, 20, **options, dtype=torch.float64))
    ours.load_state_dict(torchs.state_dict())
    packed = pack_sequence([torch.randn(length, 6, dtype=torch.float64) for length in lengths], enforce_sorted=False)
    results = []
    for module in (ours, torchs):
        data = packed.data.clone().requires_grad_()
        y, (h_n, c_n) = module(packed._replace(data=data))
        loss = (y.data * y.data.detach().sign()).sum() + h_n.square().sum() + c_n.sum()
        results.append((y.data, h_n, c_n, *torch.autograd.grad(loss, [data, *module.parameters()])))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_any_number_of_threads_gives_the_same_bits():
    layer = _layer([33, 33, 20, *[7] * 50, *[1] * 80], 33, 20, 120, D=2, dtype=torch.float32)
    inputs = (*layer[:3], *layer[3])
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            y, h_n, c_n, cells, _gates = _ops.lstm_forward(*layer, True, True)
            results.append((y, h_n, c_n, cells, *torch.autograd.grad((y.sum(), c_n.square().sum()), inputs)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept_grows_with_the_steps_and_not_with_the_padding(recompute, device):
    """One sequence of 400 steps and 99 of 2: 598 entries, of 40,000 that a padded batch would have."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    lstm = fusedlstm.LSTM(8, 8, num_layers=2, bidirectional=True, recompute=recompute, device=device)
    packed = pack_sequence([torch.randn(length, 8, device=device) for length in [400] + [2] * 99])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = lstm(packed)
    assert y.data.shape == (598, 16)
    # For each entry and direction: x, y, and without recomputation c and four gates; and the states and weights.
    of_layer = 598 * (2 * 8 + 2 * 8 * (1 if recompute else 6)) + 4 * 100 * 16
    assert sum(kept.values()) <= 2 * of_layer + sum(p.numel() for p in lstm.parameters())


def test_double_backward_keeps_to_the_steps_too():
    """In plain torch: 25 MB would be one gate of the padded batch in float64."""
    lstm = fusedlstm.LSTM(4, 32, dtype=torch.float64)
    packed = pack_sequence([torch.randn(length, 4, dtype=torch.float64) for length in [1000] + [1] * 99])
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    y, _ = lstm(packed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        grads = torch.autograd.grad(y.data.sum(), list(lstm.parameters()), create_graph=True)
    assert all(grad.requires_grad for grad in grads)
    assert sum(kept.values()) < 25e6


def test_dropout_has_the_masks_of_torch():
    lengths = [5, 4, 1]
    torchs, packed = nn.LSTM(3, 8, 3, dropout=0.5), pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor(lengths))
    ours = fusedlstm.LSTM(3, 8, 3, dropout=0.5)
    ours.load_state_dict(torchs.state_dict())
    results = []
    for module in (ours, torchs):
        torch.manual_seed(1)
        results.append(module(packed)[0].data)
    torch.testing.assert_close(*results)


def test_a_cuda_graph_of_a_packed_batch_is_refused(cuda):
    """Its batch sizes are on the host, where a replay could not read them."""
    lstm, packed = fusedlstm.LSTM(3, 8, device=cuda), pack_sequence([torch.randn(5, 3, device=cuda)])
    lstm(packed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="use a padded batch, with lengths"), torch.cuda.graph(graph):
        lstm(packed)
