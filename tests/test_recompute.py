"""recompute=True: the same results and gradients, and no gates kept for the backward pass."""

import emulated
import pytest
import torch
from torch import nn

import fusedlstm
from benchmarks.growth import kept_bytes
from fusedlstm import _C


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 8}], ids=["plain", "projected"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_no_gates_are_kept(num_layers, options, device):
    T, N, H = 50, 4, 16
    x = torch.randn(T, N, 8, device=device, requires_grad=True)
    sizes = {}
    for recompute in (False, True):
        module = fusedlstm.LSTM(8, H, num_layers, **options, recompute=recompute, device=device)
        sizes[recompute] = kept_bytes(module, x)
    directions = 2 if options else 1
    step = T * N * H * directions * 4  # bytes of all hidden states
    assert max(sizes[False]) == 4 * step
    assert max(sizes[True]) <= step  # the outputs of layers
    assert sum(sizes[True]) <= num_layers * 2 * step
    assert sum(sizes[False]) >= num_layers * 5 * step


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")
def test_the_recurrence_is_not_run_again():
    """Recomputation adds a few products and kernels to the backward pass, as many for any number of steps."""

    def backward(T, recompute):
        module = fusedlstm.LSTM(5, 16, recompute=recompute)
        y, _ = module(torch.randn(T, 3, 5))
        before = emulated.work()
        y.sum().backward()
        return emulated.work() - before

    with emulated.operators():
        extra = {T: backward(T, True) - backward(T, False) for T in (5, 50)}
    assert extra[5] == extra[50] == 5  # two products; biases summed, states gathered, cells updated


def test_inference_keeps_nothing(device):
    module, x = fusedlstm.LSTM(5, 6, recompute=True, device=device), torch.randn(4, 3, 5, device=device)
    with torch.no_grad():
        y, _ = module(x)
    assert not y.requires_grad
    assert torch.equal(y, module(x)[0])


def test_the_attribute_may_change_at_any_time(device):
    module = fusedlstm.LSTM(5, 6, bidirectional=True, dtype=torch.float64, device=device)
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)

    def grads():
        return torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))

    expected = grads()
    module.recompute = True
    assert "recompute=True" in repr(module)
    for ours, kept in zip(grads(), expected, strict=True):
        torch.testing.assert_close(ours, kept)


def test_a_swapped_module_keeps_gates_by_default(device):
    model = fusedlstm.replace_lstm(nn.LSTM(8, 16, device=device))
    x = torch.randn(50, 4, 8, device=device)
    assert max(kept_bytes(model, x)) == 50 * 4 * 16 * 4 * 4
    model.recompute = True
    assert max(kept_bytes(model, x)) <= 50 * 4 * 16 * 4
    assert "recompute" not in model.state_dict()


def test_a_packed_sequence(device):
    module = fusedlstm.LSTM(5, 6, 2, dtype=torch.float64, device=device)
    x = torch.randn(6, 3, 5, dtype=torch.float64, device=device)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 6, 3]), enforce_sorted=False)
    grads = []
    for module.recompute in (False, True):
        grads.append(torch.autograd.grad(module(packed)[0].data.square().sum(), list(module.parameters())))
    for kept, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, kept)


def test_second_derivatives(device):
    module = fusedlstm.LSTM(2, 3, recompute=True, dtype=torch.float64, device=device)
    x = torch.randn(3, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)
