"""What a call of backward does not ask for is not computed, even where a gradient could be asked for."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fusedlstm

ALL, NONE = (1, 1, 1, 1), (0, 0, 0, 0)


class _Backwards(TorchDispatchMode):
    """Notes what each call of lstm_backward has to compute: need_x, need_h0, need_weights."""

    def __init__(self):
        super().__init__()
        self.needs = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.fusedlstm.lstm_backward.default:
            named = dict(zip((each.name for each in operator._schema.arguments), args, strict=False))
            self.needs.append((named["need_x"], named["need_h0"], tuple(named["need_weights"])))
        return operator(*args, **(kwargs or {}))


def _stack():
    torch.manual_seed(1)
    tensors = {"x": torch.randn(4, 2, 3), "h0": torch.randn(2, 2, 5), "c0": torch.randn(2, 2, 5)}
    lstm = fusedlstm.LSTM(3, 5, num_layers=2)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()} | dict(lstm.named_parameters())
    return leaves, lambda: lstm(leaves["x"], (leaves["h0"], leaves["c0"]))[0].square().sum()


# In the order of the backward pass: the second layer, then the first.
STACK = {
    "x": [(True, False, NONE), (True, False, NONE)],
    "h0": [(True, True, NONE), (False, True, NONE)],
    "c0": [(True, False, NONE), (False, False, NONE)],
    "weight_ih_l0": [(True, False, NONE), (False, False, (1, 0, 0, 0))],
    "bias_hh_l0": [(True, False, NONE), (False, False, (0, 0, 0, 1))],
    "weight_hh_l1": [(False, False, (0, 1, 0, 0))],
    "x weight_ih_l1": [(True, False, (1, 0, 0, 0)), (True, False, NONE)],
}


@pytest.mark.parametrize("through", ["grad", "inputs", "checkpoint"])
@pytest.mark.parametrize("names", STACK)
def test_a_stack(names, through):
    leaves, loss = _stack()
    asked = [leaves[name] for name in names.split()]
    everything = dict(zip(leaves, torch.autograd.grad(loss(), list(leaves.values())), strict=True))
    total = checkpoint(lambda x: loss(), leaves["x"], use_reentrant=False) if through == "checkpoint" else loss()
    with _Backwards() as backwards:
        if through == "inputs":
            total.backward(inputs=asked)
            grads = [leaf.grad for leaf in asked]
        else:
            grads = torch.autograd.grad(total, asked)
    assert backwards.needs == STACK[names]
    for name, grad in zip(names.split(), grads, strict=True):
        assert torch.equal(grad, everything[name])


def test_a_stack_without_exceptions():
    leaves, loss = _stack()
    with _Backwards() as backwards:
        loss().backward()
    assert backwards.needs == [(True, True, ALL)] * 2
    assert all(leaf.grad is not None for leaf in leaves.values())


def test_the_state_between_two_steps_of_a_cell():
    cell, x = fusedlstm.LSTMCell(3, 5), torch.randn(3, 2, 3)
    first = cell(x[0])
    second = cell(x[1], first)
    third = cell(x[2], second)
    with _Backwards() as backwards:
        grad_h, grad_c = torch.autograd.grad(third[0].sum(), first)
    assert backwards.needs == [(False, True, NONE)] * 2

    stock = nn.LSTMCell(3, 5)
    stock.load_state_dict(cell.state_dict())
    first = [state.detach().requires_grad_() for state in first]  # nn.LSTMCell's own h depends on its c on a CPU
    expected = torch.autograd.grad(stock(x[2], stock(x[1], first))[0].sum(), first)
    torch.testing.assert_close((grad_h, grad_c), expected)


def test_a_shared_weight_is_asked_about_once_a_call(monkeypatch):
    """The engine answers with an error, which takes 40 us, where autograd.grad() returns the gradient of a leaf."""
    cell, refused, ask = fusedlstm.LSTMCell(3, 5), [], torch._C._will_engine_execute_node

    def asked(node):
        try:
            return ask(node)
        except RuntimeError:
            refused.append(node)
            raise

    monkeypatch.setattr(torch._C, "_will_engine_execute_node", asked)
    for call in (1, 2):
        state = None
        for step in torch.randn(6, 2, 3):
            state = cell(step, state)
        with _Backwards() as backwards:
            torch.autograd.grad(state[0].sum(), [cell.weight_ih, cell.bias_hh])
        assert len(refused) == 2 * call
        assert [weights for _, _, weights in backwards.needs] == [(1, 0, 0, 1)] * 6


def test_the_operators_own_gradient():
    state, weights = torch.zeros(1, 2, 5), [torch.randn(20, 3), torch.randn(20, 5)]
    x, *weights = (tensor.requires_grad_() for tensor in (torch.randn(4, 2, 3), *weights))
    y, *_ = torch.ops.fusedlstm.lstm_forward(x, state, state, weights, None, None, None, False, True, True)
    with _Backwards() as backwards:
        torch.autograd.grad(y.sum(), weights[1])
    assert backwards.needs == [(False, False, (0, 1))]


def test_second_derivatives_of_some():
    leaves, loss = _stack()
    (grad,) = torch.autograd.grad(loss(), leaves["x"], create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), leaves["weight_hh_l0"])
    assert second.isfinite().all()
    assert second.any()
