"""torch.export, AOTInductor and ONNX of models whose LSTMs were swapped."""

import sys

import pytest
import torch
from torch import nn
from torch.export import Dim

import fusedlstm

# Warnings of the exporters themselves, and about inputs that share a size.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning",
    "ignore:.*:FutureWarning",
    "ignore:.*shares the same shape constraints",
    "ignore:The given buffer is not writable",
)


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.lstm = nn.LSTM(6, 10, 2, **options)
        self.read = nn.Linear(20 if self.lstm.bidirectional else 10, 4)

    def forward(self, x, hx=None, lengths=None):
        y, (h_n, c_n) = self.lstm(x, hx, lengths=lengths)
        return self.read(y), h_n, c_n


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTMCell(6, 6), nn.LSTMCell(6, 6)

    def forward(self, x, hx):
        h, c = self.first(x, hx)
        return self.second(x, (h, c))


T, N = Dim("T"), Dim("N")


def _hx(states, N):
    return torch.randn(states, N, 10), torch.randn(states, N, 10)


# Options of the LSTM, the arguments for T steps and N sequences, and which of their sizes are dynamic.
CALLS = {
    "plain": ({}, lambda t, n: (torch.randn(t, n, 6),), ({0: T, 1: N},)),
    "state": ({}, lambda t, n: (torch.randn(t, n, 6), _hx(2, n)), ({0: T, 1: N}, ({1: N}, {1: N}))),
    "no_bias": ({"bias": False}, lambda t, n: (torch.randn(t, n, 6),), ({0: T, 1: N},)),
    "lengths": (
        {"bidirectional": True},
        lambda t, n: (torch.randn(t, n, 6), _hx(4, n), torch.tensor([t, 0, 1, t - 1] * n)[:n]),
        ({0: T, 1: N}, ({1: N}, {1: N}), {0: N}),
    ),
    "batch_first": ({"batch_first": True}, lambda t, n: (torch.randn(n, t, 6),), ({0: N, 1: T},)),
}
SIZES = [(5, 3), (9, 4), (2, 2)]


def _model(options):
    return fusedlstm.replace_lstm(Model(**options)).eval()


def _assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), other.detach())


@pytest.mark.parametrize("strict", [False, True], ids=["not_strict", "strict"])
@pytest.mark.parametrize(("options", "arguments", "sizes"), CALLS.values(), ids=CALLS)
def test_an_exported_program_runs_at_any_size(options, arguments, sizes, strict, tmp_path):
    model = _model(options)
    program = torch.export.export(model, arguments(5, 3), dynamic_shapes=sizes, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in SIZES:
        call = arguments(*size)
        _assert_equal(loaded(*call), model(*call))


def test_an_exported_program_trains_and_keeps_no_gates():
    model = _model({})
    x = torch.randn(5, 3, 6)
    program = torch.export.export(model, (x,)).module()
    losses = [sum(out.square().sum() for out in run(x)) for run in (program, model)]
    grads = [torch.autograd.grad(losses[0], list(program.parameters()))]
    grads.append(torch.autograd.grad(losses[1], list(model.parameters())))
    _assert_equal(*grads)
    operators = [str(node.target) for node in program.graph.nodes if "lstm_" in str(node.target)]
    assert operators == ["fusedlstm.lstm_inference.default"] * 2


class Whole(nn.Module):
    """Layers before and after an LSTM and a cell."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.cell, self.read = (
            nn.Linear(6, 8),
            nn.LSTM(8, 10),
            nn.LSTMCell(10, 5),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        y, (h_n, c_n) = self.lstm(self.embed(x))
        return self.read(self.cell(y[-1])[0]), h_n, c_n


@pytest.mark.parametrize("how", ["no_grad", "frozen", "strict"])
def test_a_program_made_without_gradients_has_them_later(how):
    model, x = fusedlstm.replace_lstm(Whole()), torch.randn(5, 3, 6)
    model.requires_grad_(how != "frozen")
    with torch.set_grad_enabled(how == "frozen"):
        program = torch.export.export(model, (x,), strict=how == "strict").module()
    grads = []
    for run in (program, model):
        run.requires_grad_(True)
        grads.append(torch.autograd.grad(sum(out.square().sum() for out in run(x)), list(run.parameters())))
    _assert_equal(*grads)


def test_an_aot_inductor_package(tmp_path):
    model = _model({"bidirectional": True})
    _, arguments, sizes = CALLS["lengths"]
    program = torch.export.export(model, arguments(5, 3), dynamic_shapes=sizes)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for size in SIZES:
        call = arguments(*size)
        _assert_equal(compiled(*call), model(*call))


def _onnx(model, args, **options):
    pytest.importorskip("onnxscript")
    from fusedlstm.onnx import translations

    table = translations()
    return torch.onnx.export(model, args, dynamo=True, custom_translation_table=table, verbose=False, **options)


@pytest.mark.parametrize(("options", "arguments", "sizes"), CALLS.values(), ids=CALLS)
def test_onnx_runtime_gives_the_same_at_any_size(options, arguments, sizes, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    model = _model(options)
    program = _onnx(model, arguments(5, 3), dynamic_shapes=sizes)
    operators = [node.op_type for node in program.model.graph]
    assert operators.count("LSTM") == 2
    assert "Gather" not in operators  # the gates' order is folded into the weights
    program.save(tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    for size in SIZES:
        call = arguments(*size)
        tensors = torch.utils._pytree.tree_leaves(call)
        results = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        _assert_equal(results, model(*call))


def test_onnx_of_cells():
    ort = pytest.importorskip("onnxruntime")
    model = fusedlstm.replace_lstm(Cells()).eval()
    call = torch.randn(3, 6), (torch.randn(3, 6), torch.randn(3, 6))
    program = _onnx(model, call)
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    tensors = torch.utils._pytree.tree_leaves(call)
    results = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
    _assert_equal(results, model(*call))


@pytest.mark.parametrize(
    ("module", "options", "rule"),
    [
        (fusedlstm.LSTM(6, 10, proj_size=3), {}, "proj_size must be 0"),
        (fusedlstm.LSTM(6, 10), {"resets": torch.zeros(5, 3, dtype=torch.bool)}, "resets must be None"),
        (fusedlstm.LSTM(6, 10), {"return_states": True}, "return_states must be False"),
    ],
    ids=["projection", "resets", "return_states"],
)
def test_what_onnx_does_not_have_is_named(module, options, rule):
    with pytest.raises(torch.onnx.OnnxExporterError) as error:
        _onnx(module.eval(), (torch.randn(5, 3, 6),), kwargs=options)
    causes = []
    cause = error.value
    while cause:
        causes.append(str(cause))
        cause = cause.__cause__
    assert any(f"lstm: {rule} in an export to ONNX" in text for text in causes)


def test_a_missing_onnxscript_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "fusedlstm.onnx", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install fusedlstm\[onnx\]"):
        import fusedlstm.onnx  # noqa: F401
