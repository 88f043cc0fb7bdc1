"""Models of other engines, built from the weights of an nn.LSTM, give its results."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from comparison import random_state, reference_lstm
from torch import nn

from benchmarks import engines
from benchmarks.accuracy import assert_as_accurate

SIZES = [(7, 3), (1, 1), (1, 5), (9, 1)]  # T and N, one after another in the same Forward
MODULES = {
    "plain": {},
    "no_bias": {"bias": False},
    "layers": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "bidirectional_no_bias": {"bidirectional": True, "bias": False},
    "bidirectional_layers": {"bidirectional": True, "num_layers": 3},
}
ONE_DIRECTION = [name for name, options in MODULES.items() if "bidirectional" not in options]


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request):
    """Makes a Forward of a module, with two threads."""
    for package in ("onnx", request.param):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return lambda module: getattr(engines, request.param)(module, threads=2)


def _named(y, hx):
    return {"y": y.detach(), "h_n": hx[0].detach(), "c_n": hx[1].detach()}


def _assert_as_accurate(forward, module, T, N):
    x, hx = torch.randn(T, N, module.input_size), random_state(module, N, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        ours, torchs = _named(*forward(x, hx)), _named(*module(x, hx))
        exact = copy.deepcopy(module).double()
        truth = _named(*reference_lstm(exact, x.double(), tuple(state.double() for state in hx)))
    assert_as_accurate(ours, [torchs], truth)


@pytest.mark.parametrize("name", MODULES)
def test_as_accurate_as_nn_lstm(engine, name):
    module = nn.LSTM(5, 13, **MODULES[name])
    forward = engine(module)
    for T, N in SIZES:
        _assert_as_accurate(forward, module, T, N)


def test_sizes_worth_two_threads(engine):
    module = nn.LSTM(65, 130, num_layers=2)
    _assert_as_accurate(engine(module), module, 20, 9)


def test_results_stay_when_it_runs_again(engine):
    module = nn.LSTM(5, 13)
    forward = engine(module)
    inputs = [(torch.randn(4, 2, 5), random_state(module, 2, torch.float32, torch.device("cpu"))) for _ in range(2)]
    before = _named(*forward(*inputs[0]))
    kept = {name: tensor.clone() for name, tensor in before.items()}
    forward(*inputs[1])
    for name, tensor in before.items():
        assert torch.equal(tensor, kept[name]), name


def test_inputs_need_not_be_contiguous(engine):
    module = nn.LSTM(5, 13)
    x, hx = torch.randn(2, 4, 5).transpose(0, 1), random_state(module, 2, torch.float32, torch.device("cpu"))
    forward = engine(module)
    for got, expected in zip(_named(*forward(x, hx)).values(), _named(*forward(x.clone(), hx)).values(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", MODULES)
def test_the_model_is_valid_onnx(name):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = onnx.load_from_string(engines.onnx_model(nn.LSTM(5, 13, **MODULES[name])))
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("LSTM") == MODULES[name].get("num_layers", 1)
    assert set(operators) <= {"LSTM", "Transpose", "Reshape", "Split", "Concat"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 3}, "proj_size must be 0 for ONNX .*, got 3"),
        ({"batch_first": True}, "batch_first must be False for ONNX .*, got True"),
        ({"dtype": torch.float64}, r"dtype must be one of \[torch.float32\] for ONNX .*, got torch.float64"),
    ],
)
def test_what_onnx_does_not_have_is_refused(options, message):
    pytest.importorskip("onnx", reason="onnx is not installed")
    with pytest.raises(ValueError, match=message):
        engines.onnx_model(nn.LSTM(5, 13, **options))


def _cell(gates, c):
    i, f, g, o = gates
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _flashrnn(Wx, R, b, states, function, backend, dtype):
    """Replaces the package's function by the equations and layouts of its README, in torch."""
    assert (function, backend, dtype) == ("lstm", "cuda_fused", "float32")
    N, T, _, heads, H = Wx.shape
    assert (R.shape, b.shape, states.shape) == ((4, heads, H, H), (4, heads, H), (2, N, 1, heads, H))
    for tensor, kernels in ((Wx, (1, 0, 3, 4, 2)), (R, (1, 2, 0, 3)), (b, (1, 2, 0))):
        assert tensor.permute(kernels).is_contiguous(), "the package will make a copy"
    h, c = states[:, :, 0]
    steps = []
    for t in range(T):
        gates = Wx[:, t] + torch.einsum("gndp,bnp->bgnd", R, h) + b
        h, c = _cell(gates.unbind(1), c)
        steps.append(torch.stack((h, c)))
    return torch.stack(steps, dim=2), steps[-1][:, :, None]


class _HasteLSTM(nn.LSTM):
    """Replaces the package's LSTM by torch's behind the same interface of one layer."""

    def from_native_weights(self, *weights):
        for name, weight in zip(self._flat_weights_names, weights, strict=True):
            setattr(self, name, nn.Parameter(weight.clone()))

    def forward(self, x, state):
        return super().forward(x, state)


STAND_INS = {
    "flashrnn": ("flashrnn", SimpleNamespace(flashrnn=_flashrnn)),
    "haste": ("haste_pytorch", SimpleNamespace(LSTM=_HasteLSTM)),
}


@pytest.fixture(params=STAND_INS)
def gpu_engine(request, monkeypatch):
    monkeypatch.setitem(sys.modules, *STAND_INS[request.param])
    return getattr(engines, request.param)


@pytest.mark.parametrize("name", ONE_DIRECTION)
def test_layouts_for_gpu_engines(gpu_engine, name):
    module = nn.LSTM(5, 16, **MODULES[name])
    forward = gpu_engine(module)
    for T, N in SIZES:
        _assert_as_accurate(forward, module, T, N)


def test_gpu_engines_have_gradients(gpu_engine):
    module = nn.LSTM(5, 16, num_layers=2)
    made = gpu_engine(module)
    x, hx = torch.randn(4, 3, 5, requires_grad=True), random_state(module, 3, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(*(torch.autograd.grad(run(x, hx)[0].square().sum(), x)[0] for run in (made, module)))
    made(x, hx)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("options", [{"proj_size": 3}, {"batch_first": True}, {"bidirectional": True}], ids=str)
def test_what_gpu_engines_do_not_have_is_refused(gpu_engine, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        gpu_engine(nn.LSTM(5, 16, **options))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "flashrnn", "haste"])
def test_absent_packages_are_named(monkeypatch, name):
    package = {"haste": "haste_pytorch"}.get(name, name)
    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace())
    monkeypatch.setitem(sys.modules, package, SimpleNamespace())
    assert engines.why_absent(name) is None
    monkeypatch.delitem(sys.modules, package)
    monkeypatch.setattr(sys, "path", [])
    assert engines.why_absent(name) == f"absent: pip install {package}"


def test_a_broken_package_says_why(monkeypatch, tmp_path):
    (tmp_path / "flashrnn.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    assert engines.why_absent("flashrnn") == (
        "absent: flashrnn is installed, but importing it fails: "
        "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    )
