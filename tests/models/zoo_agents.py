"""Agents: policies and value functions whose episodes end inside a batch."""

import pytest
import torch
from building import Case, import_module
from torch import nn


def recurrent_policy() -> Case:
    """An actor and a critic, each with its LSTM: episodes that begin in mid-sequence, and acting step by step."""
    policies = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    spaces = pytest.importorskip("gymnasium.spaces")
    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
    # With the package's own initial weights gradients are as small as the errors that assert_close allows in float32.
    sizes = {"lstm_hidden_size": 8, "ortho_init": False}
    model = policies.RecurrentActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **sizes)
    rows, steps = 2, 6
    observations, actions = torch.rand(rows * steps, 3), torch.randint(4, (rows * steps,))
    begins = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.float32).flatten()
    states = [tuple(torch.randn(1, rows, 8) for _ in range(2)) for _ in range(2)]

    def run():
        training = model.training  # predict() turns it off
        values, log_prob, entropy = model.evaluate_actions(observations, actions, policies.RNNStates(*states), begins)
        loss = values.square().sum() - log_prob.sum() - entropy.sum()
        moves, state = [], None
        for seen in observations.view(steps, rows, 3).numpy():
            move, state = model.predict(seen, state)
            moves.append(move)
        model.train(training)
        return {"values": values, "log_prob": log_prob, "moves": moves, "state": state, "loss": loss}

    return Case(model, run, lstms=2, cells=0)


def rollout_module() -> Case:
    """An agent's LSTM: rows that hold several episodes are cut where one begins and packed; acting goes by steps."""
    modules = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    names = {"in_keys": ["seen", "h", "c"], "out_keys": ["features", ("next", "h"), ("next", "c")]}
    model = modules.LSTMModule(input_size=3, hidden_size=5, num_layers=2, dropout=0.2, **names)
    rows, steps = 2, 6
    begins = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)[..., None]
    states = {name: torch.randn(rows, steps, 2, 5) for name in ("h", "c")}
    data = tensordict.TensorDict({"seen": torch.randn(rows, steps, 3), "is_init": begins, **states}, [rows, steps])

    def run():
        with modules.set_recurrent_mode(True):
            batch = model(data.clone())
        acted, carried = [], data[:, 0].select("h", "c")
        with torch.no_grad():
            for step in data.select("seen", "is_init").unbind(1):
                acted.append(model(step.clone().update(carried)))
                carried = acted[-1]["next"]
        original = model.lstm
        kept = model.make_cudnn_based().lstm is original  # it makes a new nn.LSTM of anything that is none
        tensors = {"batch": batch.to_dict(), "acted": [step.to_dict() for step in acted]}
        return {**tensors, "kept": kept, "loss": batch["features"].square().sum()}

    return Case(model, run, lstms=1, cells=0)


def locomotion_actor() -> Case:
    """A robot's policy: padded episodes with their first states, acting step by step, and both kinds of export."""
    writers = ["rsl_rl.utils.neptune_log_writer", "rsl_rl.utils.wandb_log_writer"]  # of logs, by tensorboard
    models = import_module("rsl_rl.models", without=writers)
    utils = pytest.importorskip("rsl_rl.utils")
    tensordict = pytest.importorskip("tensordict")
    robots, steps, layers, hidden = 2, 6, 2, 6
    seen = tensordict.TensorDict({"policy": torch.randn(steps, robots, 3)}, [steps, robots])
    sizes = {"hidden_dims": [8], "rnn_hidden_dim": hidden, "rnn_num_layers": layers}
    noise = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution"}
    model = models.RNNModel(seen[0], {"actor": ["policy"]}, "actor", 2, distribution_cfg=noise, **sizes)
    torch.distributions.Distribution.set_default_validate_args(True)  # the package turns it off for everybody
    dones = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 1], [0, 0], [0, 0]])
    episodes, masks = utils.split_and_pad_trajectories(seen, dones[..., None])
    starts = tuple(torch.randn(layers, episodes.shape[1], hidden) for _ in range(2))
    actions = torch.randn(steps, robots, 2)

    def run():
        model(episodes, masks, starts, stochastic_output=True)
        loss = -model.get_output_log_prob(actions).sum()
        model.reset()
        acted, jitted, onnx = [], [], []
        script, graph = model.as_jit(), model.as_onnx()
        states = tuple(torch.zeros(layers, 1, hidden) for _ in range(2))
        with torch.no_grad():
            for now, done in zip(seen, dones, strict=True):
                acted.append(model(now))
                model.reset(done)
                jitted.append(script(now["policy"][:1]))
                action, *states = graph(now["policy"][:1], *states)
                onnx.append(action)
        mean, state = model.output_mean.detach(), model.get_hidden_state()
        model.reset()
        return {"mean": mean, "acted": acted, "state": state, "jit": jitted, "onnx": onnx, "loss": loss}

    return Case(model, run, lstms=1, cells=0)


def q_function() -> Case:
    """A sequence of layers that finds its recurrent ones by their class; each episode's state is its own."""
    pfrl = import_module("pfrl", without=["pfrl.wrappers"])  # they need gym
    recurrent = pytest.importorskip("pfrl.utils.recurrent")
    lstms = [nn.LSTM(6, 5, num_layers=2), nn.LSTM(4, 3)]
    model = pfrl.nn.RecurrentSequential(nn.Linear(3, 6), nn.ReLU(), lstms[0], nn.Linear(5, 4), lstms[1])
    episodes = [torch.randn(length, 3) for length in (5, 4, 2)]
    now = torch.randn(4, 3, 3)

    def run():
        values, state = recurrent.pack_and_forward(model, episodes, None)
        acted = []
        with torch.no_grad():
            for seen in now:
                action, state = recurrent.one_step_forward(model, seen, state)
                state = recurrent.mask_recurrent_state_at(state, 1)
                states = [recurrent.get_recurrent_state_at(state, n, detach=True) for n in (2, 0)]
                state = recurrent.concatenate_recurrent_states([*states, None])
                acted.append(action)
        return {"values": values, "acted": acted, "state": state, "loss": values.square().sum()}

    return Case(model, run, lstms=2, cells=0)
