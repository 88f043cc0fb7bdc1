"""Weights that change between two calls, in every way torch allows, take effect in the next call.

No call caches them, since not every change increments the version counter (test_versions_miss_changes)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, skip_init

import fusedlstm

SIZES = 5, 12


class _Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def in_place(m):
    m.weight_hh_l0.mul_(0.5)


def slice_in_place(m):
    m.weight_ih_l0[3:7] += 1


def through_data(m):
    m.weight_hh_l0.data.mul_(0.5)


def through_a_detached_view(m):
    m.weight_hh_l0.detach().view(-1)[::2] = 0.25


def through_numpy(m):
    np.asarray(m.weight_ih_l0.detach())[:] *= 0.5


def new_data(m):
    m.weight_hh_l0.data = torch.rand_like(m.weight_hh_l0)


def set_storage(m):
    m.bias_ih_l0.set_(torch.rand(4 * SIZES[1]))


def new_parameter(m):
    m.weight_hh_l0 = nn.Parameter(torch.rand_like(m.weight_hh_l0))


def load(m):
    m.load_state_dict(nn.LSTM(*SIZES).state_dict())


def load_by_assignment(m):
    m.load_state_dict(nn.LSTM(*SIZES).state_dict(), assign=True)


def swap(m):
    torch.utils.swap_tensors(m.weight_hh_l0, nn.Parameter(torch.rand_like(m.weight_hh_l0)))


def list_of_weights(m):
    m._flat_weights = [nn.Parameter(weight * 0.5) for weight in m._flat_weights]


def optimizer_step(m):
    optimizer = torch.optim.SGD(m.parameters(), lr=0.5)
    for parameter in m.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()


def other_type_and_back(m):
    m.half().float()


def initialized_again(m):
    m.reset_parameters()


def parametrized(m):
    parametrize.register_parametrization(m, "weight_hh_l0", _Halved())


def pruned(m):
    prune.random_unstructured(m, "weight_ih_l0", amount=0.5)


def through_vector(m):
    vector = nn.utils.parameters_to_vector(m.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, m.parameters())


CHANGES = [
    in_place, slice_in_place, through_data, through_a_detached_view, through_numpy, new_data, set_storage,
    new_parameter, load, load_by_assignment, swap, list_of_weights, optimizer_step, other_type_and_back,
    initialized_again, parametrized, pruned, through_vector,
]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 20])  # the kernels read weights in place for one step, and pack them for many
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_call_sees_it(change, steps):
    torch.manual_seed(0)
    module, x = fusedlstm.LSTM(*SIZES), torch.randn(steps, 4, SIZES[0])
    hx = torch.randn(1, 4, SIZES[1]), torch.randn(1, 4, SIZES[1])
    with torch.no_grad():
        before = module(x, hx)[0]
        module(x, hx)
        change(module)
        after = module(x, hx)[0]
        fresh = skip_init(fusedlstm.LSTM, *SIZES)  # the same weights in a module that was never called
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(fresh, name).copy_(getattr(module, name))
        torch.testing.assert_close(after, fresh(x, hx)[0], rtol=0, atol=0)
        assert not torch.equal(before, after)


def test_versions_miss_changes():
    module = fusedlstm.LSTM(*SIZES)
    for change in (through_data, through_numpy):
        version, pointer = module.weight_hh_l0._version, module.weight_hh_l0.data_ptr()
        change(module)
        assert (module.weight_hh_l0._version, module.weight_hh_l0.data_ptr()) == (version, pointer)


def test_in_inference_mode():
    module, x = fusedlstm.LSTM(*SIZES), torch.randn(20, 4, SIZES[0])
    with torch.inference_mode():
        before = module(x)[0]
        module.weight_hh_l0.data.mul_(0.5)
        assert not torch.equal(before, module(x)[0])
