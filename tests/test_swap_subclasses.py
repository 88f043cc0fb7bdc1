"""Subclasses of nn.LSTM and nn.LSTMCell stay what they are when replace_lstm makes them fused ones too."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import fusedlstm
from fusedlstm import functional


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
def test_a_subclass_stays_one_and_is_fused_too(kind):
    lstm, x, hx = kind(3, 4), torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    expected = [lstm(x, hx, restart)[0] for restart in (False, True)]
    fusedlstm.replace_lstm(lstm)
    assert isinstance(lstm, fusedlstm.LSTM)
    assert isinstance(lstm, kind)
    assert repr(lstm) == f"fusedlstm.{kind.__name__}(3, 4)"
    for module in (lstm, copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert type(module) is type(lstm)
        torch.testing.assert_close([module(x, hx, restart)[0] for restart in (False, True)], expected)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    fusedlstm.restore_lstm(lstm)
    parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    assert type(lstm) is kind
    torch.testing.assert_close(lstm(x, hx, True)[0], expected[1])


class Busy(nn.LSTM):
    """Its own code at every place, names that a subclass may well use, and super() behind a decorator."""

    recompute = _run = _forward = _initial_state = _check_input = "mine"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.checked = 0

    def __setattr__(self, name, value):
        assert name != "__class__"
        super().__setattr__(name, value)

    def extra_repr(self):
        return super().extra_repr() + ", mine"

    @torch.no_grad()
    def reset_parameters(self):
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()

    def check_forward_args(self, input, hidden, batch_sizes):
        self.checked += 1
        super().check_forward_args(input, hidden, batch_sizes)

    def forward(self, input, hx=None):
        output, (h_n, c_n) = super().forward(input, hx)
        return output, (-h_n, c_n)


class BusyCell(nn.LSTMCell):
    def forward(self, input, hx=None):
        h, c = super().forward(2 * input, hx)
        return -h, c


def test_a_subclass_with_code_of_its_own(monkeypatch):
    model = nn.ModuleList([Busy(3, 4), BusyCell(3, 4)])
    x = torch.randn(5, 2, 3)
    packed = pack_padded_sequence(x, torch.tensor([2, 5]), enforce_sorted=False)
    lstm, cell = model
    lstm.reset_parameters()

    def results():
        return lstm(x), lstm(x[:, 0]), lstm(packed), cell(x[0])

    expected = results()
    fusedlstm.replace_lstm(model)
    assert isinstance(lstm, Busy)
    assert isinstance(lstm, fusedlstm.LSTM)
    assert isinstance(cell, BusyCell)
    assert isinstance(cell, fusedlstm.LSTMCell)
    torch.testing.assert_close(results(), expected)
    calls, run = [], functional.lstm
    monkeypatch.setattr(functional, "lstm", lambda *args, **options: calls.append(options) or run(*args, **options))
    lstm(x)
    assert calls[0]["recompute"] is False
    assert lstm.checked == 5  # as nn.LSTM: once for each padded input
    assert repr(lstm) == "fusedlstm.Busy(3, 4, mine)"
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 1, 4\]"):
        lstm(x, (torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)))
    lstm.reset_parameters()
    assert not lstm.bias_hh_l0.any()
    another = type(lstm)(3, 4)
    assert type(another) is type(lstm)
    assert another.recompute == "mine"
    assert another(x)[0].shape == (5, 2, 4)


class NewArguments(nn.LSTM):
    """Its copies are made with arguments."""

    def __new__(cls, input_size, hidden_size):
        return super().__new__(cls)

    def __getnewargs__(self):
        return self.input_size, self.hidden_size


class Reduced(nn.LSTM):
    """Its copies are made as it says itself."""

    def __reduce__(self):
        return self.__class__, (self.input_size, self.hidden_size), self.__getstate__()


@pytest.mark.parametrize("kind", [NewArguments, Reduced, RestartingLSTM])
def test_copies_of_a_swapped_subclass(kind):
    lstm, x = fusedlstm.replace_lstm(kind(3, 4)), torch.randn(5, 2, 3)
    protocols = range(2 if kind is NewArguments else 0, pickle.HIGHEST_PROTOCOL + 1)
    copies = [pickle.loads(pickle.dumps(lstm, protocol)) for protocol in protocols]
    for twin in (*copies, copy.copy(lstm), copy.deepcopy(lstm)):
        assert type(twin) is type(lstm)
        assert torch.equal(twin(x)[0], lstm(x)[0])
    assert type(fusedlstm.restore_lstm(copies[-1])) is kind


class Permuting(nn.LSTM):
    def permute_hidden(self, hx, permutation):
        return tuple(2 * state for state in super().permute_hidden(hx, permutation))


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_a_subclass_that_changes_the_states(batched):
    lstm, x = Permuting(3, 4), torch.randn(5, 2, 3)
    hx = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    calls = [(x,), (x, hx)] if batched else [(x[:, 0],), (x[:, 0], (hx[0][:, 0], hx[1][:, 0]))]
    expected = [lstm(*call) for call in calls]
    fusedlstm.replace_lstm(lstm)
    torch.testing.assert_close([lstm(*call) for call in calls], expected)


class Own(nn.LSTM):
    def forward(self, input, hx=None):  # torch's own code, of an earlier version
        hx = hx or (torch.zeros(1, input.shape[1], 4),) * 2
        self.check_forward_args(input, hx, None)
        output, *state = torch._VF.lstm(input, hx, self._flat_weights, True, 1, 0.0, self.training, False, False)
        return output, self.permute_hidden(tuple(state), None)


def test_a_subclass_with_a_copy_of_torchs_code():
    lstm, x = Own(3, 4), torch.randn(5, 2, 3)
    expected = lstm(x)
    torch.testing.assert_close(fusedlstm.replace_lstm(lstm)(x), expected)


class Mine(fusedlstm.LSTM):
    pass


def test_a_subclass_of_ours_is_not_restored():
    with pytest.warns(UserWarning, match=r"restore_lstm left these modules as they are: the model itself \(.*Mine"):
        fusedlstm.restore_lstm(Mine(3, 4))
