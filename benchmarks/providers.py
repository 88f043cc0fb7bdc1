"""Who is measured: each provider makes something to call of the same nn.LSTM."""

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedlstm
from benchmarks import engines
from benchmarks.cases import FORMS, Case
from benchmarks.graphs import graphed
from benchmarks.recipes import BySegments, PaddedEpisodes

State = tuple[Tensor, Tensor]
Forward = Callable[..., Any]  # of (x, (h0, c0)), and of the resets where a case has them

ALL_MODES = frozenset(("inference", "forward", "backward", "training", "lm_step"))
PASSES = ALL_MODES - {"lm_step"}
BASELINE = "torch"


@dataclass(frozen=True)
class Contestant:
    """An LSTM or a cell to call, and its parameters in torch's order; without any it makes no gradients."""

    forward: Forward
    parameters: list[Tensor]


@dataclass(frozen=True)
class Provider:
    """A way to run an LSTM.

    ``make`` takes an nn.LSTM whose weights it must use (an nn.LSTMCell where the case is a cell; ``forward`` is then a
    step of it; a module of `benchmarks.recipes` for the forms that nn.LSTM does not have); ``takes`` says for which
    case, dtype and device it can, ``forms`` which forms of cases it has; ``absent`` what is missing where it is not
    installed; ``cell`` is its name in fusedlstm.lm for `lm_step`; ``baseline`` the provider that its ratio is to.
    """

    name: str
    about: str
    make: Callable[[Any], Contestant]
    modes: frozenset[str] = PASSES
    takes: Callable[[Case, str, torch.device], bool] = lambda case, dtype, device: True
    forms: frozenset[str] = frozenset(("padded",))
    absent: Callable[[], str | None] = lambda: None
    surroundings: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    cell: str | None = None
    baseline: str = BASELINE


def _fused(module: nn.Module) -> Contestant:
    """fusedlstm has resets itself, and so needs no loop over segments."""
    fused = fusedlstm.replace_lstm(copy.deepcopy(module.lstm if isinstance(module, BySegments) else module))
    return Contestant(fused, list(fused.parameters()))


def _as_it_comes(module: nn.Module) -> Contestant:
    return Contestant(module, list(module.parameters()))


@contextlib.contextmanager
def without_fast_path():  # type: ignore[no-untyped-def]
    """torch's own layers in place of oneDNN's and cuDNN's; other switches stay as they are."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            yield
    finally:
        torch.backends.cudnn.enabled = before


def _single_layers(module: nn.LSTM) -> Contestant:
    """One nn.LSTM a layer: cuDNN has its persistent kernel for single layers alone."""
    outputs = (1 + module.bidirectional) * (module.proj_size or module.hidden_size)
    options = {"bias": module.bias, "bidirectional": module.bidirectional, "proj_size": module.proj_size}
    weight = module.weight_ih_l0
    layers = []
    for index in range(module.num_layers):
        inputs = module.input_size if index == 0 else outputs
        layer = nn.LSTM(inputs, module.hidden_size, **options, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.copy_(getattr(module, name.replace("_l0", f"_l{index}")))
        layers.append(layer)

    def forward(x: Tensor, hx: State) -> tuple[Tensor, State]:
        states = zip(hx[0].chunk(len(layers)), hx[1].chunk(len(layers)), strict=True)
        h_n, c_n = [], []
        for layer, state in zip(layers, states, strict=True):
            x, (h, c) = layer(x, state)
            h_n.append(h)
            c_n.append(c)
        return x, (torch.cat(h_n), torch.cat(c_n))

    return Contestant(forward, [parameter for layer in layers for parameter in layer.parameters()])


def _cell(gates_x: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor) -> State:
    i, f, g, o = (gates_x + F.linear(h, weight_hh)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _compiled(module: nn.LSTM) -> Contestant:
    """What one writes oneself: the input's product over all steps, and a compiled cell in a loop."""
    torch._dynamo.reset()  # each case gets code for its own sizes
    cell = torch.compile(_cell, dynamic=False)

    def forward(x: Tensor, hx: State) -> tuple[Tensor, State]:
        h_n, c_n = [], []
        for layer in range(module.num_layers):
            weights = [getattr(module, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            gates_x = F.linear(x, weights[0], weights[2] + weights[3])
            h, c = hx[0][layer], hx[1][layer]
            steps = []
            for t in range(len(x)):
                h, c = cell(gates_x[t], h, c, weights[1])
                steps.append(h)
            x = torch.stack(steps)
            h_n.append(h)
            c_n.append(c)
        return x, (torch.stack(h_n), torch.stack(c_n))

    return Contestant(forward, list(module.parameters()))


# The compiler takes longer for a case than all other providers together.
_COMPILED_CASES = ("lm_200", "sequence_128", "t35_n20_h650_l2")


def _padded_episodes(module: BySegments) -> Contestant:
    return _as_it_comes(PaddedEpisodes(module.lstm))


def _in_graphs(make: Callable[[nn.Module], Contestant]) -> Callable[[nn.Module], Contestant]:
    def make_graphed(module: nn.Module) -> Contestant:
        eager = make(module)
        assert isinstance(eager.forward, nn.Module)
        return Contestant(graphed(eager.forward), eager.parameters)

    return make_graphed


def _on_cpu(case: Case, dtype: str, device: torch.device) -> bool:
    return device.type == "cpu" and dtype == "float32" and not case.P


def _on_gpu(case: Case, dtype: str, device: torch.device) -> bool:
    return device.type == "cuda"


def _engine(name: str, about: str, takes: Callable[[Case, str, torch.device], bool]) -> Provider:
    def make(module: nn.LSTM) -> Contestant:
        create = getattr(engines, name)
        return Contestant(create(module, torch.get_num_threads()) if takes is _on_cpu else create(module), [])

    return Provider(
        name, about, make, modes=frozenset(("inference",)), takes=takes, absent=lambda: engines.why_absent(name)
    )


def _graph(name: str, make: Callable[[nn.Module], Contestant], about: str, baseline: str = BASELINE) -> Provider:
    modes, forms = frozenset(("inference", "training")), frozenset(("padded", "alternating"))
    return Provider(f"{name}_graph", about, _in_graphs(make), modes, takes=_on_gpu, forms=forms, baseline=baseline)


def _one_plain_layer(case: Case, dtype: str, device: torch.device) -> bool:
    return device.type == "cuda" and case.L == case.D == 1 and not case.P


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("fusedlstm", "this package", _fused, modes=ALL_MODES, forms=frozenset(FORMS), cell="lstm"),
        Provider(
            "torch",
            "nn.LSTM as it comes (oneDNN, cuDNN); nn.LSTMCell where a case is a cell; a call a segment, as in rl_games,"
            " where episodes end; a call a layer where layers alternate",
            _as_it_comes,
            modes=ALL_MODES,
            forms=frozenset(FORMS),
            cell="torch",
        ),
        Provider(
            "torch_plain",
            "nn.LSTM with oneDNN and cuDNN off",
            _as_it_comes,
            takes=lambda case, dtype, device: device.type == "cpu" or case.T <= 256,
            surroundings=without_fast_path,
        ),
        Provider(
            "torch_layers",
            "an nn.LSTM for each layer, in which cuDNN may use its persistent kernel",
            _single_layers,
            takes=lambda case, dtype, device: device.type == "cuda" and case.L > 1,
        ),
        Provider(
            "compiled_cell",
            "a cell of one's own under torch.compile, in a loop",
            _compiled,
            takes=lambda case, dtype, device: case.name in _COMPILED_CASES,
        ),
        Provider(
            "torch_padded",
            "nn.LSTM with each piece of an episode as a row, padded, as rsl_rl does",
            _padded_episodes,
            forms=frozenset(("resets",)),
        ),
        _graph("fusedlstm", _fused, "this package in CUDA graphs", baseline="torch_graph"),
        _graph("torch", _as_it_comes, "nn.LSTM in CUDA graphs"),
        _engine("onnxruntime", "ONNX Runtime", _on_cpu),
        _engine("openvino", "OpenVINO", _on_cpu),
        _engine("flashrnn", "FlashRNN, fused", _one_plain_layer),
        _engine("haste", "haste", _one_plain_layer),
    )
}
