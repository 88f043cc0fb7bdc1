"""Other tools of torch: a model whose LSTMs were swapped works with them as before."""

import copy

import pytest
import torch
from torch import multiprocessing, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

import fusedlstm


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, dropout=0.3, bidirectional=True)
        self.cell = nn.LSTMCell(12, 5)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.cell(y[-1])[0]


def _swapped(device="cpu"):
    return fusedlstm.replace_lstm(Model()).to(device)


def _gradients(model, output):
    return torch.autograd.grad(output.square().sum(), list(model.parameters()))


def _assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoints(use_reentrant, device):
    """The second forward pass draws the dropout masks of the first."""
    model, x = _swapped(device), torch.randn(5, 3, 4, device=device, requires_grad=True)
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)):
        torch.manual_seed(1)
        model.zero_grad()
        run(x).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    _assert_same(*results)


def test_hooks_of_saved_tensors(device):
    model, x = _swapped(device).eval(), torch.randn(5, 3, 4, device=device)
    expected = _gradients(model, model(x))
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.detach().to("cpu", copy=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor.to(device)):
        output = model(x)
    _assert_same(_gradients(model, output), expected)
    assert any(tensor.shape == model.lstm.weight_hh_l0.shape for tensor in packed)
    with torch.autograd.graph.save_on_cpu():
        output = model(x)
    _assert_same(_gradients(model, output), expected)


def test_a_weight_changed_before_backward_is_noticed(device):
    model = _swapped(device)
    output = model(torch.randn(5, 3, 4, device=device))
    with torch.no_grad():
        model.lstm.weight_hh_l1.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_functional_call(device):
    model, x = _swapped(device).eval(), torch.randn(5, 3, 4, device=device)
    others = {name: 0.5 * value.detach() for name, value in model.named_parameters()}
    output = torch.func.functional_call(model, others, (x,))
    model.load_state_dict(others)
    assert torch.equal(output, model(x))


def test_deterministic_algorithms(device):
    """No call raises, and a second run gives the same bits."""
    torch.use_deterministic_algorithms(True)
    lstm = fusedlstm.LSTM(4, 6, 2, bidirectional=True, device=device)
    x = torch.randn(5, 3, 4, device=device, requires_grad=True)
    lengths = torch.tensor([2, 5, 4])
    results = []
    for _ in range(2):
        packed, _ = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
        padded, _ = lstm(x, lengths=lengths)
        loss = packed.data.square().sum() + padded.square().sum()
        results.append(torch.autograd.grad(loss, [x, *lstm.parameters()]))
    _assert_same(*results)


def test_inference_mode(device):
    model, x = _swapped(device).eval(), torch.randn(5, 3, 4, device=device)
    with torch.inference_mode():
        output = model(x)
        packed, _ = model.lstm(pack_padded_sequence(x, torch.tensor([5, 3, 3])))
    assert output.is_inference()
    assert packed.data.is_inference()
    assert torch.equal(output, model(x))


def test_meta_device_and_back(device):
    """A model is built without memory and materialised later."""
    with torch.device("meta"):
        model = fusedlstm.replace_lstm(Model())
    assert model(torch.randn(5, 3, 4, device="meta")).shape == (3, 5)
    trained = _swapped(device).eval()
    model = model.to_empty(device=device).eval()
    model.load_state_dict(trained.state_dict())
    x = torch.randn(5, 3, 4, device=device)
    assert torch.equal(model(x), trained(x))
    assigned = fusedlstm.replace_lstm(Model()).eval()
    assigned.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(assigned(x), trained(x))


@pytest.mark.parametrize("order", ["pruned_first", "swapped_first"])
def test_pruning(order, device):
    """The mask takes effect, whereas nn.LSTM keeps using the unpruned weights."""
    model = Model().to(device).eval()
    if order == "swapped_first":
        fusedlstm.replace_lstm(model)
    prune.l1_unstructured(model.lstm, "weight_hh_l0", amount=0.5)
    prune.global_unstructured([(model.lstm, "weight_ih_l1"), (model.cell, "weight_ih")], prune.L1Unstructured, amount=9)
    if order == "pruned_first":
        fusedlstm.replace_lstm(model)
    x = torch.randn(5, 3, 4, device=device)
    output = model(x)
    output.sum().backward()
    mask = model.lstm.weight_hh_l0_mask
    assert not model.lstm.weight_hh_l0_orig.grad[mask == 0].any()
    assert model.lstm.weight_hh_l0_orig.grad[mask == 1].all()
    for module, name in ((model.lstm, "weight_hh_l0"), (model.lstm, "weight_ih_l1"), (model.cell, "weight_ih")):
        prune.remove(module, name)
    assert (model.lstm.weight_hh_l0 == 0).sum() == mask.numel() / 2
    assert torch.equal(model(x), output)
    plain = Model().to(device).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), output)


@pytest.mark.parametrize("average", [None, swa_utils.get_ema_multi_avg_fn(0.9)], ids=["mean", "moving"])
def test_averaged_weights(average, device):
    model = _swapped(device).eval()
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=average)
    assert type(averaged.module.lstm) is fusedlstm.LSTM
    first = copy.deepcopy(model.state_dict())
    averaged.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    averaged.update_parameters(model)
    share = 0.5 if average is None else 0.1
    for name, value in averaged.module.state_dict().items():
        torch.testing.assert_close(value, first[name] + share)
    assert averaged(torch.randn(5, 3, 4, device=device)).shape == (3, 5)


def test_copies_are_independent(device):
    model, x = _swapped(device).eval(), torch.randn(5, 3, 4, device=device)
    twin = copy.deepcopy(model)
    expected = model(x)
    with torch.no_grad():
        twin.lstm.weight_ih_l0.zero_()
    assert torch.equal(model(x), expected)
    assert not torch.equal(twin(x), expected)


def _child(model, x, queue):
    output = model(x)
    queue.put([tensor.numpy() for tensor in (output.detach(), *_gradients(model, output))])


def test_a_process_that_was_spawned():
    """The module is sent to another process, its parameters in shared memory."""
    model, x = _swapped().eval().share_memory(), torch.randn(5, 3, 4)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(model, x, queue))
    process.start()
    results = queue.get()
    process.join()
    assert process.exitcode == 0
    output = model(x)
    _assert_same(map(torch.from_numpy, results), [output, *_gradients(model, output)])


def test_data_parallel_replicas():
    """nn.DataParallel makes for each further GPU a shallow copy with tensors in place of the parameters."""
    lstm, x = fusedlstm.replace_lstm(nn.LSTM(4, 6, 2)), torch.randn(5, 3, 4)
    replica = lstm._replicate_for_data_parallel()
    for name, parameter in lstm.named_parameters():
        setattr(replica, name, 2 * parameter)
    assert list(replica.parameters()) == []
    output, _ = replica(x)
    doubled = {name: 2 * parameter for name, parameter in lstm.named_parameters()}
    expected, _ = torch.func.functional_call(lstm, doubled, (x,))
    assert torch.equal(output, expected)
    _assert_same(_gradients(lstm, output), _gradients(lstm, expected))
    assert torch.equal(nn.DataParallel(lstm)(x)[0], lstm(x)[0])


def test_data_parallel_on_a_gpu(cuda):
    model, x = _swapped(cuda).eval(), torch.randn(6, 3, 4, device=cuda)
    parallel = nn.DataParallel(model, device_ids=[0], dim=1)
    _assert_same(_gradients(model, parallel(x)), _gradients(model, model(x)))
