"""replace_lstm and restore_lstm change nothing of a model but the class of its LSTMs."""

import copy
from typing import ClassVar

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


class Own(nn.LSTM):
    pass


class Registered(nn.LSTM):
    known: ClassVar = {}

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.known[cls.__name__] = cls


class Listed(Registered):
    pass


class Registry(type):
    known: ClassVar = {}

    def __init__(cls, name, bases, attributes):
        super().__init__(name, bases, attributes)
        cls.known[name] = cls


class ListedByMetaclass(nn.LSTM, metaclass=Registry):
    pass


class Refusing(nn.LSTM):
    """Raises when its class has been changed already."""

    def _init_flat_weights(self):
        super()._init_flat_weights()
        if not isinstance(self._flat_weights, list):
            raise RuntimeError("not a list")


class Lazy(nn.modules.lazy.LazyModuleMixin, nn.LSTM):
    cls_to_become = nn.LSTM

    def __init__(self):
        super().__init__(1, 4)
        self.weight_ih_l0 = nn.UninitializedParameter()

    def initialize_parameters(self, input, hx=None):
        self.input_size = input.shape[-1]
        self.weight_ih_l0.materialize((16, self.input_size))
        self.reset_parameters()


def _with_method(name):
    lstm = nn.LSTM(3, 4)
    method = getattr(lstm, name)
    setattr(lstm, name, lambda *args: method(*args))
    return lstm


def _scripted():
    return torch.jit.script(nn.Sequential(nn.LSTM(3, 4)))


def _with_another_weight():
    lstm = nn.LSTM(3, 4)
    lstm._flat_weights[1] = torch.zeros(16, 4)
    return lstm


# What is left as it is: how to make it, and the reason given.
LEFT = {
    "complex": (lambda: nn.LSTM(3, 4, dtype=torch.complex64), "its dtype is torch.complex64"),
    "forward": (lambda: _with_method("forward"), "its forward is another function"),
    "registered": (lambda: Listed(3, 4), r"test_swap.Listed has an __init_subclass__"),
    "metaclass": (lambda: ListedByMetaclass(3, 4), "test_swap.ListedByMetaclass has a metaclass of its own"),
    "refusing": (lambda: Refusing(3, 4), "test_swap.Refusing raised RuntimeError: not a list"),
    "checks": (lambda: _with_method("check_forward_args"), "its check_forward_args is another function"),
    "lazy": (Lazy, "it is lazy; replace it after its first call"),
    "another_weight": (_with_another_weight, "its _flat_weights hold another tensor than its weight_hh_l0"),
    "scripted": (_scripted, "TorchScript has compiled it; replace its LSTMs before that"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is:FutureWarning")
@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_what_cannot_be_replaced_is_left_and_named(make, reason):
    model = nn.ModuleDict({"before": nn.LSTM(3, 4), "left": make(), "after": nn.LSTMCell(3, 4)})
    kind, registered = type(model["left"]), (dict(Registered.known), dict(Registry.known))
    attributes = dict(vars(model["left"]))
    with pytest.warns(UserWarning, match=rf"replace_lstm left these modules as they are: left \({reason}.*\)$"):
        fusedlstm.replace_lstm(model)
    assert [type(module) for module in model.values()] == [fusedlstm.LSTM, kind, fusedlstm.LSTMCell]
    assert (Registered.known, Registry.known) == registered
    assert vars(model["left"]) == attributes
    if "complex" not in reason:
        model["left"](torch.randn(5, 2, 3))
    if kind is Lazy:  # torch has made it an nn.LSTM
        assert isinstance(fusedlstm.replace_lstm(model)["left"], fusedlstm.LSTM)


def test_an_error_leaves_the_model_as_it_was():
    """Warnings are errors here, and this one is raised when all modules have been looked at."""
    model = nn.ModuleDict(
        {"fine": nn.LSTM(3, 4), "own": Own(3, 4), "cell": nn.LSTMCell(3, 4), "left": _with_method("forward")}
    )
    x = torch.randn(5, 2, 3)
    expected = model["fine"](x), model["own"](x)
    with pytest.raises(UserWarning, match="left these modules"):
        fusedlstm.replace_lstm(model)
    assert [type(module) for module in model.values()] == [nn.LSTM, Own, nn.LSTMCell, nn.LSTM]
    torch.testing.assert_close((model["fine"](x), model["own"](x)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["none", "load", "assign", "cast", "copy", "set", "set_before"])
def test_the_list_of_weights_is_never_another(change):
    """nn.LSTM computes with its list of weights, _flat_weights, which ours has not."""
    lstm, other, x = nn.LSTM(3, 4), nn.LSTM(3, 4), torch.randn(5, 2, 3)
    if change == "set_before":  # past the list, which nn.LSTM updates in its next call
        lstm._parameters["weight_hh_l0"] = nn.Parameter(torch.zeros(16, 4))
    fusedlstm.replace_lstm(lstm)
    assert "_flat_weights" not in vars(lstm)
    if change in ("load", "assign"):
        lstm.load_state_dict(other.state_dict(), assign=change == "assign")
    elif change == "cast":
        lstm, x = lstm.half().double(), x.double()
    elif change == "copy":
        lstm = copy.deepcopy(lstm)
    elif change == "set":
        lstm._flat_weights = list(other.parameters())
    assert lstm._flat_weights_names == other._flat_weights_names
    assert all(one is two for one, two in zip(lstm._flat_weights, lstm.parameters(), strict=True))
    assert all(one is two for one, two in zip(lstm.all_weights[0], lstm.parameters(), strict=True))
    expected = lstm(x)
    restored = fusedlstm.restore_lstm(lstm)
    assert all(one is two for one, two in zip(restored._flat_weights, restored.parameters(), strict=True))
    torch.testing.assert_close(restored(x), expected)


def test_weights_put_into_the_list_take_effect_or_raise():
    lstm, x = fusedlstm.LSTM(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(TypeError, match="does not support item assignment"):
        lstm._flat_weights[1] = torch.zeros(16, 4)
    with pytest.raises(TypeError, match=r"cannot assign .* as parameter 'weight_ih_l0'"):
        lstm._flat_weights = [torch.zeros_like(weight) for weight in lstm._flat_weights]
    with pytest.raises(ValueError, match=r"_flat_weights must be 4 tensors, as parameters\(\), got 1"):
        lstm._flat_weights = [lstm.weight_hh_l0]
    weight_ih, _, *biases = lstm._flat_weights
    before = lstm(x)[0]
    lstm._flat_weights = [weight_ih, nn.Parameter(torch.zeros(16, 4)), *biases]
    assert not lstm.weight_hh_l0.any()
    assert not torch.equal(lstm(x)[0], before)


def test_twice_is_once_and_other_models_are_untouched():
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3), nn.LSTM(3, 3))
    fusedlstm.replace_lstm(fusedlstm.replace_lstm(model))
    assert [type(module) for module in model] == [nn.Linear, nn.GRU, fusedlstm.LSTM]


@pytest.mark.parametrize("function", [fusedlstm.replace_lstm, fusedlstm.restore_lstm])
def test_something_else_than_a_model(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        function("model")
