"""replace_lstm and restore_lstm change nothing of a model but the class of its LSTMs."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fusedlstm


class Tagger(nn.Module):
    """A model whose LSTM is used twice, and whose cell's weights are tied to another's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.encoder = nn.Sequential(nn.LSTM(6, 4, 2, bidirectional=True, dropout=0.1), nn.Identity())
        self.cell, self.twin = nn.LSTMCell(8, 4), nn.LSTMCell(8, 4)
        self.twin.weight_ih = self.cell.weight_ih
        self.again = self.encoder[0]

    def forward(self, tokens):
        hidden, _ = self.encoder[0](self.embed(tokens))
        h, c = self.cell(hidden[-1])
        return self.twin(hidden[0], (h, c))[0].sum()


def _train(model, optimizer, steps, tokens):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_goes_on_through_a_swap_and_back():
    tokens = torch.randint(11, (5, 3))
    plain = Tagger().eval()
    swapped = copy.deepcopy(plain)
    losses = {}
    for model in (plain, swapped):
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        parameters = dict(model.named_parameters())
        curve = _train(model, optimizer, 3, tokens)
        if model is swapped:
            assert fusedlstm.replace_lstm(model) is model
            assert type(model.again) is fusedlstm.LSTM
            assert type(model.cell) is type(model.twin) is fusedlstm.LSTMCell
            assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
            assert list(model.state_dict()) == list(plain.state_dict())
        curve += _train(model, optimizer, 3, tokens)
        if model is swapped:
            fusedlstm.restore_lstm(model)
            assert type(model.again) is nn.LSTM
            assert type(model.cell) is nn.LSTMCell
        losses[model] = curve + _train(model, optimizer, 3, tokens)
    torch.testing.assert_close(torch.tensor(losses[swapped]), torch.tensor(losses[plain]))


def test_the_model_itself_hooks_and_frozen_parameters():
    lstm = nn.LSTM(3, 4)
    lstm.weight_hh_l0.requires_grad_(False)
    calls = []
    lstm.register_forward_hook(lambda *_: calls.append(1))
    assert fusedlstm.replace_lstm(lstm) is lstm
    lstm(torch.randn(5, 2, 3))[0].sum().backward()
    assert calls == [1]
    assert lstm.weight_hh_l0.grad is None
    assert lstm.weight_ih_l0.grad is not None


@pytest.mark.parametrize("order", ["parametrized_first", "swapped_first"])
def test_parametrizations_keep_working(order):
    lstm = nn.LSTM(3, 4)
    expected = copy.deepcopy(lstm)
    if order == "swapped_first":
        fusedlstm.replace_lstm(lstm)
    parametrizations.orthogonal(lstm, "weight_hh_l0")
    if order == "parametrized_first":
        fusedlstm.replace_lstm(lstm)
    assert isinstance(lstm, fusedlstm.LSTM)
    assert parametrize.is_parametrized(lstm, "weight_hh_l0")
    expected.weight_hh_l0.data.copy_(lstm.weight_hh_l0.detach())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(lstm(x)[0], expected(x)[0])
    lstm(x)[0].sum().backward()
    assert lstm.parametrizations.weight_hh_l0.original.grad.any()
    fusedlstm.restore_lstm(lstm)
    assert isinstance(lstm, nn.LSTM)
    assert not isinstance(lstm, fusedlstm.LSTM)
    parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    assert type(lstm) is nn.LSTM


def test_removing_a_parametrization_leaves_a_fused_lstm():
    lstm = nn.LSTM(3, 4)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    fusedlstm.replace_lstm(lstm)
    parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    assert type(lstm) is fusedlstm.LSTM


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_by_hook():
    lstm = nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = lstm(x)[0]
    fusedlstm.replace_lstm(lstm)
    torch.testing.assert_close(lstm(x)[0], expected)
    lstm(x)[0].sum().backward()
    assert lstm.weight_hh_l0_g.grad.any()


def test_weight_drop_by_hand():
    """AWD-LSTM replaces the recurrent weight by a dropped copy, as a plain attribute, before every call."""
    lstm = fusedlstm.replace_lstm(nn.LSTM(3, 4))
    raw = nn.Parameter(lstm.weight_hh_l0.detach().clone())
    del lstm._parameters["weight_hh_l0"]
    x = torch.randn(5, 2, 3)
    lstm.weight_hh_l0 = raw * 1
    kept = lstm(x)[0]
    lstm.weight_hh_l0 = raw * 0
    dropped = lstm(x)[0]
    assert not torch.equal(kept, dropped)
    kept.sum().backward()
    assert raw.grad.any()


class Resets:
    """A forward for any kind of RNN, as a mix-in that packages put before torch's class."""

    def forward(self, input, hx=None, restart=False):
        return super().forward(input, None if restart else hx)


class RestartingLSTM(Resets, nn.LSTM):
    def zero(self, N):
        return torch.zeros(1, N, self.hidden_size), torch.zeros(1, N, self.hidden_size)


class Further(RestartingLSTM):
    pass


@pytest.mark.parametrize("kind", [Further, RestartingLSTM])  # the subclass first, before its base is replaced
def test_a_subclass_without_a_forward_of_its_own_is_replaced(kind):
    lstm, x, hx = kind(3, 4), torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    expected = [lstm(x, hx, restart)[0] for restart in (False, True)]
    fusedlstm.replace_lstm(lstm)
    assert isinstance(lstm, fusedlstm.LSTM)
    assert isinstance(lstm, Resets)
    assert repr(lstm) == f"fusedlstm.{kind.__name__}(3, 4)"
    for module in (lstm, copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert type(module) is type(lstm)
        torch.testing.assert_close([module(x, hx, restart)[0] for restart in (False, True)], expected)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    fusedlstm.restore_lstm(lstm)
    parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    assert type(lstm) is kind
    torch.testing.assert_close(lstm(x, hx, True)[0], expected[1])


class CallsSuper(nn.LSTM):
    def extra_repr(self):
        return super().extra_repr() + ", mine"


class OwnForward(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_what_cannot_be_replaced_is_left_and_reported():
    wrapped = nn.LSTM(3, 4)
    wrapped.forward = lambda *args, forward=wrapped.forward: forward(*args)
    model = nn.ModuleDict(
        {
            "own": OwnForward(3, 4),
            "super": CallsSuper(3, 4),
            "complex": nn.LSTM(3, 4, dtype=torch.complex64),
            "wrapped": wrapped,
            "fine": nn.LSTM(3, 4),
        }
    )
    reasons = r"own \(.*OwnForward.*; super \(.*CallsSuper.*; complex \(.*complex64.*; wrapped \(its forward is another"
    with pytest.warns(UserWarning, match=f"left these modules as they are: {reasons}"):
        fusedlstm.replace_lstm(model)
    assert type(model["own"]) is OwnForward
    assert type(model["super"]) is CallsSuper
    assert type(model["wrapped"]) is nn.LSTM
    model["wrapped"](torch.randn(5, 2, 3))
    assert type(model["complex"]) is nn.LSTM
    assert type(model["fine"]) is fusedlstm.LSTM


class Mine(fusedlstm.LSTM):
    pass


def test_a_subclass_of_ours_is_not_restored():
    with pytest.warns(UserWarning, match=r"restore_lstm left these modules as they are: the model itself \(.*Mine"):
        fusedlstm.restore_lstm(Mine(3, 4))


def test_twice_is_once_and_other_models_are_untouched():
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3), nn.LSTM(3, 3))
    fusedlstm.replace_lstm(fusedlstm.replace_lstm(model))
    assert [type(module) for module in model] == [nn.Linear, nn.GRU, fusedlstm.LSTM]


@pytest.mark.parametrize("function", [fusedlstm.replace_lstm, fusedlstm.restore_lstm])
def test_something_else_than_a_model(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        function("model")
