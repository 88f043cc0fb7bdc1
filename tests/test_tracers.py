"""torch.fx, torch.jit.trace, TensorBoard's graphs and the old ONNX exporter, with models that were swapped."""

import io

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig_mapping, quantize_fx
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import fusedlstm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:FutureWarning"),
]


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 10, 2, **options)
        self.cell = nn.LSTMCell(20 if self.lstm.bidirectional else 10, 5)

    def forward(self, x):
        y, state = self.lstm(self.embed(x))
        y, (h_n, _) = self.lstm(self.embed(x), state)
        h, c = self.cell(y[-1])
        return self.cell(y[0], (h, c))[0], h_n


class Packing(Model):
    """Packs in its forward; sorted sequences tell their number by batch_sizes alone."""

    def __init__(self, enforce_sorted):
        super().__init__(bidirectional=True)
        self.enforce_sorted = enforce_sorted

    def forward(self, x, lengths):
        y, state = self.lstm(pack_padded_sequence(self.embed(x), lengths, enforce_sorted=self.enforce_sorted))
        return pad_packed_sequence(y)[0], *state


class Options(Model):
    def forward(self, x, lengths, resets):
        y, state, states = self.lstm(self.embed(x), lengths=lengths, resets=resets, return_states=True)
        return y, *state, *states


def _resets(T, N):
    return torch.arange(T * N).view(T, N) % 3 == 0


# torch's own functions of packing, and nn.LSTM, compare sizes in Python when they are traced.
WARNS = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

# What to build, and the arguments of two calls of different sizes.
TRACED = {
    "plain": (Model, [(torch.randn(5, 4, 6),), (torch.randn(7, 2, 6),)]),
    "packed": pytest.param(
        lambda: Packing(False),
        [(torch.randn(5, 4, 6), torch.tensor([5, 1, 3, 2])), (torch.randn(7, 3, 6), torch.tensor([1, 7, 3]))],
        marks=WARNS,
    ),
    "packed_sorted": pytest.param(
        lambda: Packing(True),
        [(torch.randn(5, 4, 6), torch.tensor([5, 3, 3, 2])), (torch.randn(7, 3, 6), torch.tensor([7, 4, 3]))],
        marks=WARNS,
    ),
    "options": (
        Options,
        [
            (torch.randn(5, 4, 6), torch.tensor([0, 1, 5, 3]), _resets(5, 4)),
            (torch.randn(7, 2, 6), torch.tensor([7, 2]), _resets(7, 2)),
        ],
    ),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(("build", "calls"), TRACED.values(), ids=TRACED)
def test_a_trace_runs_at_any_size_and_has_gradients(build, calls, grad):
    model = fusedlstm.replace_lstm(build())
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, calls[0])
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    loaded = torch.jit.load(stored)
    for call in (*calls, *calls):  # TorchScript optimises a program after its first runs
        got, expected = loaded(*call), model(*call)
        torch.testing.assert_close(got, expected)
        grads = [
            torch.autograd.grad(sum(out.square().sum() for out in outputs), list(owner.parameters()), allow_unused=True)
            for outputs, owner in ((got, loaded), (expected, model))
        ]
        torch.testing.assert_close(*grads)
    operators = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("fusedlstm::")]
    kinds = {"fusedlstm::lstm_forward"} if build is Options else {"fusedlstm::lstm_inference"}
    assert set(operators) == kinds


def test_tensorboard_draws_a_model():
    """SummaryWriter.add_graph needs the package tensorboard; this is what it does."""
    model = fusedlstm.replace_lstm(Model())
    traced = torch.jit.trace(model, (torch.randn(5, 4, 6),), strict=False)
    torch._C._jit_pass_inline(traced.graph)
    assert "fusedlstm::lstm_inference" in str(traced.graph)


def _nodes(module):
    calls = [node for node in module.graph.nodes if node.op != "get_attr"]  # whose numbers count all traces of a model
    return [(node.op, str(node.target), len(node.args), len(node.kwargs)) for node in calls]


def test_fx_sees_a_leaf_as_with_nn_lstm():
    model, x = Model(), torch.randn(5, 4, 6)
    plain = fx.symbolic_trace(model)
    expected = model(x)
    fusedlstm.replace_lstm(model)
    traced = fx.symbolic_trace(model)
    assert _nodes(traced) == _nodes(plain)
    assert isinstance(traced.lstm, fusedlstm.LSTM)
    torch.testing.assert_close(traced(x), expected)
    ShapeProp(traced).propagate(x)
    shapes = {node.name: node.meta["tensor_meta"] for node in traced.graph.nodes if node.op == "call_module"}
    assert shapes["lstm"][0].shape == (5, 4, 10)


class Output(Options):
    def forward(self, x, lengths, resets):
        return self.lstm(self.embed(x), lengths=lengths, resets=resets)[0]


def test_fx_records_our_options():
    model, call = fusedlstm.replace_lstm(Output()), (torch.randn(5, 4, 6), torch.tensor([0, 1, 5, 3]), _resets(5, 4))
    torch.testing.assert_close(fx.symbolic_trace(model)(*call), model(*call))


@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning", "ignore:Please use quant_min:UserWarning")
def test_fx_quantisation_leaves_the_lstm():
    model, x = fusedlstm.replace_lstm(Model()).eval(), torch.randn(5, 4, 6)
    prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    converted = quantize_fx.convert_fx(prepared)
    assert isinstance(converted.lstm, fusedlstm.LSTM)
    torch.testing.assert_close(converted(x), model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("module", [nn.LSTM(6, 8), nn.LSTMCell(6, 8)], ids=str)
def test_script_names_the_remedy_and_leaves_the_model(module):
    model = fusedlstm.replace_lstm(nn.Sequential(nn.Identity(), module))
    kind = type(model[1])
    with pytest.raises(
        NotImplementedError, match=rf"does not compile fusedlstm.{kind.__name__}; .* fusedlstm.restore_lstm"
    ):
        torch.jit.script(model)
    assert type(model[1]) is kind
    torch.jit.script(fusedlstm.restore_lstm(model)[1])


class Doubling(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


@pytest.mark.parametrize("model", [nn.Sequential(Doubling(6, 8)), nn.LSTM(6, 8), nn.LSTMCell(6, 8)], ids=str)
def test_fx_refuses_what_it_would_record_wrongly(model):
    """A node that calls the subclass would double the input a second time; nn.LSTM cannot be traced either."""
    with pytest.raises(TypeError, match=r"input must be a torch\.Tensor, got Proxy"):
        fx.symbolic_trace(fusedlstm.replace_lstm(model))


class Constant(nn.Module):
    """Its LSTM's input is no argument of the model, but the state is."""

    def __init__(self):
        super().__init__()
        self.lstm, self.cell = nn.LSTM(6, 8), nn.LSTMCell(6, 8)

    def forward(self, h):
        y, _ = self.lstm(torch.ones(3, 2, 6), hx=(h[None], h[None]))
        return y + self.cell(torch.ones(2, 6), (h, h))[0]


def _double_output(module, args, output):
    return tuple(2 * part if isinstance(part, (torch.Tensor, fx.Proxy)) else part for part in output)


@pytest.mark.parametrize("build", [Model, Constant])
def test_fx_runs_hooks_once_and_takes_any_arguments(build):
    model, x = build(), torch.randn(5, 4, 6) if build is Model else torch.randn(2, 8)
    for module in (model.lstm, model.cell):
        module.register_forward_hook(_double_output)
        module.register_forward_pre_hook(lambda module, args: (3 * args[0], *args[1:]))
    plain = fx.symbolic_trace(model)
    expected = model(x)
    traced = fx.symbolic_trace(fusedlstm.replace_lstm(model))
    assert _nodes(traced) == _nodes(plain)
    torch.testing.assert_close(traced(x), expected)
    prepared = quantize_fx.prepare_fx(model.eval(), QConfigMapping(), (x,))
    torch.testing.assert_close(prepared(x), expected)


@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
def test_the_old_onnx_exporter_gets_the_standard_lstm(options):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, stored = fusedlstm.replace_lstm(Model(**options)).eval(), io.BytesIO()
    sizes = {"x": {0: "steps", 1: "batch"}}
    x = torch.randn(5, 4, 6)
    torch.onnx.export(model, (x,), stored, dynamo=False, input_names=["x"], dynamic_axes=sizes)
    operators = [node.op_type for node in onnx.load_from_string(stored.getvalue()).graph.node]
    assert operators.count("LSTM") == 4
    session = ort.InferenceSession(stored.getvalue())
    for call in (x, torch.randn(7, 2, 6)):
        for got, expected in zip(session.run(None, {"x": call.numpy()}), tree_leaves(model(call)), strict=True):
            torch.testing.assert_close(torch.tensor(got), expected.detach())


@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning")
@WARNS
@pytest.mark.parametrize("module", [nn.LSTM(6, 8, batch_first=True), nn.LSTMCell(6, 8)], ids=str)
def test_the_old_onnx_exporter_takes_the_module_itself(module):
    onnx = pytest.importorskip("onnx")
    inputs = torch.randn(4, 6), (torch.randn(4, 8), torch.randn(4, 8))
    if isinstance(module, nn.LSTM):
        inputs = inputs[0][:, None], tuple(state[None] for state in inputs[1])
    operators = []
    for _ in range(2):
        for call in (inputs, inputs[:1]):
            stored = io.BytesIO()
            torch.onnx.export(module.eval(), call, stored, dynamo=False)
            operators.append([node.op_type for node in onnx.load_from_string(stored.getvalue()).graph.node])
        fusedlstm.replace_lstm(module)
    assert operators[2:] == operators[:2]


def test_the_old_onnx_exporter_refuses_our_options():
    call = torch.randn(5, 4, 6), torch.tensor([0, 1, 5, 3]), _resets(5, 4)
    model = fusedlstm.replace_lstm(Options()).eval()
    with pytest.raises(ValueError, match=r"lengths must not be given in torch.onnx.export\(dynamo=False\)"):
        torch.onnx.export(model, call, io.BytesIO(), dynamo=False)
