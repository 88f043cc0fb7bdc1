"""Models of other packages give the same outputs, losses and gradients with their LSTMs replaced, and after."""

import pytest
import torch
import zoo

import fusedlstm

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Attribute .* is already saved during checkpointing:UserWarning"
    ),  # the forecaster's
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # speechbrain's attention loss
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),  # kokoro's convolutions
    pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning"),  # kokoro's LSTMs of one layer
]


@pytest.fixture
def _dtype(build):
    """Sets the default dtype, in which packages make their parameters and states."""
    torch.set_default_dtype(torch.float32 if build in zoo.FLOAT32 else torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _results(case):
    """The results of the model and the gradient of every parameter, always from the same seed."""
    torch.manual_seed(1)
    case.model.zero_grad()
    results = dict(case.run())
    results["loss"].backward()
    grads = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    without = tuple(name for name, grad in grads.items() if grad is None or not grad.any())
    assert without == (() if case.model.training else case.training_only)
    return results | {f"gradient of {name}": grad for name, grad in grads.items() if grad is not None}


def _tolerances():
    """Those of assert_close, except float64's absolute 1e-7: some gradients are below it, and zeros round to 1e-17."""
    return {"rtol": 1e-7, "atol": 1e-12} if torch.get_default_dtype() == torch.float64 else {}


def _classes(model):
    return {name: type(module) for name, module in model.named_modules()}


@pytest.mark.usefixtures("_dtype")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("build", [*zoo.FLOAT64, *zoo.FLOAT32], ids=lambda build: build.__name__)
def test_equal_before_and_after_a_swap_and_back(build, training):
    case = build()
    model = case.model.train(training)
    classes = _classes(model)
    expected = _results(case)
    fusedlstm.replace_lstm(model)
    kinds = [
        kind for kind in (fusedlstm.LSTM, fusedlstm.LSTMCell) for part in model.modules() if isinstance(part, kind)
    ]
    assert (kinds.count(fusedlstm.LSTM), kinds.count(fusedlstm.LSTMCell)) == (case.lstms, case.cells)
    torch.testing.assert_close(_results(case), expected, **_tolerances())
    fusedlstm.restore_lstm(model)
    assert _classes(model) == classes
    torch.testing.assert_close(_results(case), expected, rtol=0, atol=0)


def test_an_agent_learns_the_same():
    """Rollouts, in which episodes end, and updates: one different action would change everything after it."""
    contrib = pytest.importorskip("sb3_contrib")
    weights = []
    for swap in (lambda model: model, fusedlstm.replace_lstm):
        sizes = {"n_steps": 32, "batch_size": 16, "policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [8]}}
        # Steps so large that a relative error of 1e-4 in an LSTM's output shows in the weights.
        agent = contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1", learning_rate=0.03, n_epochs=2, seed=0, **sizes)
        start = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
        swap(agent.policy)
        agent.learn(96)
        weights.append(agent.policy.state_dict())
        assert not any(torch.equal(tensor, start[name]) for name, tensor in weights[-1].items())
    assert type(agent.policy.lstm_actor) is type(agent.policy.lstm_critic) is fusedlstm.LSTM
    torch.testing.assert_close(*weights)
