"""torch.compile of models whose LSTMs were swapped: one graph, any size, the results of eager mode."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.profiler import ProfilerActivity, profile

import fusedlstm
from fusedlstm import ops, tracers

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # the compiler's own

SIZES = [(5, 3), (7, 4), (12, 2), (3, 6)]  # T, N


class Model(nn.Module):
    """Embedding, LSTM, readout; the LSTM's keyword arguments are the model's."""

    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 10, 2, **options)
        self.read = nn.Linear((self.lstm.proj_size or 10) * (2 if self.lstm.bidirectional else 1), 4)

    def forward(self, x, hx=None, **options):
        if isinstance(x, PackedSequence):
            y, state = self.lstm(x._replace(data=self.embed(x.data)), hx)
            return self.read(y.data), *state
        y, *states = self.lstm(self.embed(x), hx, **options)
        return self.read(y), *(tensor for state in states for tensor in state)


class Decoder(nn.Module):
    """Calls a cell in a loop."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(6, 6)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], 6)
        for step in range(3):
            h, c = self.cell(x[step] + h, (h, c))
        return h, c


class Lowered(Model):
    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().forward(x)


def _packed(x, enforce_sorted):
    T, N, _ = x.shape
    lengths = torch.randint(1, T + 1, (N,))
    lengths[0] = T
    return pack_padded_sequence(
        x, lengths.sort(descending=True)[0] if enforce_sorted else lengths, enforce_sorted=enforce_sorted
    )


def _state(x):
    return torch.randn(2, x.shape[1], 10, device=x.device), torch.randn(2, x.shape[1], 10, device=x.device)


# What to build, and the arguments of a call for an input x [T, N, 6].
CALLS = {
    "plain": (Model, lambda x: ((x,), {})),
    "bidirectional": (lambda: Model(bidirectional=True), lambda x: ((x,), {})),
    "projected": (lambda: Model(proj_size=3), lambda x: ((x,), {})),
    "state": (Model, lambda x: ((x, _state(x)), {})),
    "lengths": (Model, lambda x: ((x,), {"lengths": torch.randint(0, len(x) + 1, x.shape[1:2], device=x.device)})),
    "resets": (Model, lambda x: ((x,), {"resets": torch.rand(x.shape[:2], device=x.device) < 0.3})),
    "every_state": (Model, lambda x: ((x,), {"return_states": True})),
    "packed": (Model, lambda x: ((_packed(x, False),), {})),
    "packed_state": (Model, lambda x: ((_packed(x, False), _state(x)), {})),
    "packed_sorted": (Model, lambda x: ((_packed(x, True),), {})),
    "packed_sorted_state": (Model, lambda x: ((_packed(x, True), _state(x)), {})),
    "cell": (Decoder, lambda x: ((x,), {})),
    "autocast": (Lowered, lambda x: ((x,), {})),
}


def _outputs_and_gradients(function, model, arguments):
    args, kwargs = arguments
    outputs = function(*args, **kwargs)
    loss = sum(output.float().square().sum() for output in outputs)
    return *outputs, *torch.autograd.grad(loss, list(model.parameters()))


def _assert_same(model, got, expected):
    for one, other in zip(got, expected, strict=True):
        # Under autocast the compiler may round the other layers at other places: a unit of the largest value.
        unit = torch.finfo(torch.bfloat16).eps * other.abs().max().item()
        torch.testing.assert_close(one, other, **({"rtol": 0, "atol": unit} if isinstance(model, Lowered) else {}))


@pytest.mark.parametrize(("build", "arguments"), CALLS.values(), ids=CALLS)
def test_one_graph_for_every_size(build, arguments, device):
    torch._dynamo.reset()
    model = fusedlstm.replace_lstm(build()).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for T, N in SIZES:
        call = arguments(torch.randn(T, N, 6, device=device))
        got, expected = (_outputs_and_gradients(run, model, call) for run in (compiled, model))
        _assert_same(model, got, expected)
    assert counter.frame_count == 2  # one for the first size, one for all others


@pytest.mark.parametrize("options", [{}, {"lengths": torch.tensor([4, 0, 5])}], ids=["plain", "lengths"])
def test_inductor(options):
    torch._dynamo.reset()
    model = fusedlstm.replace_lstm(Model(bidirectional=True))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    call = (torch.randn(5, 3, 6),), options
    got, expected = (_outputs_and_gradients(run, model, call) for run in (compiled, model))
    _assert_same(model, got, expected)
    with torch.no_grad():
        _assert_same(model, compiled(*call[0], **options), model(*call[0], **options))


class Packing(Model):
    """Packs and unpacks in its forward, which torch does not trace."""

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.embed(x), lengths, enforce_sorted=False)
        y, state = self.lstm(packed)
        return self.read(pad_packed_sequence(y)[0]), *state


@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch 2.11 fails to trace pad_packed_sequence")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_a_model_that_packs_by_itself_is_compiled_around_it():
    torch._dynamo.reset()
    model = fusedlstm.replace_lstm(Packing())
    compiled = torch.compile(model, backend="aot_eager")
    for T, N in SIZES:
        call = (torch.randn(T, N, 6), torch.tensor([1, T, 2, 3, 1, 1][:N])), {}
        got, expected = (_outputs_and_gradients(run, model, call) for run in (compiled, model))
        _assert_same(model, got, expected)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32 matrix multiplication available")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_cuda_graphs_by_the_compiler(training, cuda):
    """mode="reduce-overhead" records CUDA graphs and replays them."""
    torch._dynamo.reset()
    model = fusedlstm.replace_lstm(Model()).to(cuda)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")

    def run(function, x):
        if training:
            return _outputs_and_gradients(function, model, ((x,), {}))
        with torch.no_grad():
            return function(x)

    for _ in range(4):  # recorded at the second, replayed from then on
        x = torch.randn(5, 3, 6, device=cuda)
        got = [tensor.clone() for tensor in run(compiled, x)]
        _assert_same(model, got, run(model, x))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiled:
        run(compiled, x)
        torch.cuda.synchronize()
    launches = [event.count for event in profiled.key_averages() if event.key.startswith("cudaGraphLaunch")]
    assert sum(launches) >= (2 if training else 1)  # one for each pass


class Mine(nn.LSTM):
    """A subclass of the user's, and a method that nn.LSTM calls."""

    def check_forward_args(self, input, hidden, batch_sizes):
        assert hidden[0].dim() == 3
        super().check_forward_args(input, hidden, batch_sizes)

    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class LastState(nn.Module):
    """Asks for the class of its layer, as models for any kind of RNN do."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        y, state = self.lstm(x)
        return y, state[0] if isinstance(self.lstm, nn.LSTM) else state


@pytest.mark.parametrize(
    "lstm",
    [nn.LSTM(6, 8), Mine(6, 8), nn.utils.parametrizations.weight_norm(nn.LSTM(6, 8), "weight_hh_l0")],
    ids=["plain", "subclass", "parametrized"],
)
def test_a_true_nn_lstm_is_compiled(lstm):
    torch._dynamo.reset()
    model = fusedlstm.replace_lstm(LastState(lstm))
    assert isinstance(model.lstm, nn.LSTM)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 6)
    got, expected = (_outputs_and_gradients(run, model, ((x,), {})) for run in (compiled, model))
    _assert_same(model, got, expected)


def test_plain_lstms_stay_as_torch_has_them():
    torch._dynamo.reset()
    x = torch.randn(5, 3, 6)
    model = nn.ModuleList([fusedlstm.LSTM(6, 6), nn.LSTM(6, 6)])

    def run(x):
        return model[1](model[0](x)[0])[0]

    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(x), run(x))
    assert not torch._dynamo.config.allow_rnn


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's
def test_a_torch_without_that_place_breaks_the_graph_and_is_right(monkeypatch):
    """As if VariableBuilder.wrap_module, in which the LSTMs are let through, had another name in a torch to come."""
    from torch._dynamo.variables import builder

    wrap_module = builder.VariableBuilder.wrap_module.__wrapped__  # torch's own
    monkeypatch.setattr(builder.VariableBuilder, "wrap_module", wrap_module)
    torch._dynamo.reset()
    model, x = fusedlstm.replace_lstm(Model()), torch.randn(5, 3, 6)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    got, expected = (_outputs_and_gradients(run, model, ((x,), {})) for run in (compiled, model))
    _assert_same(model, got, expected)
    monkeypatch.delattr(builder.VariableBuilder, "wrap_module")
    tracers.let_dynamo_trace(fusedlstm.LSTM)
    assert not hasattr(builder.VariableBuilder, "wrap_module")


@pytest.mark.parametrize("order", ["import torch._dynamo, fusedlstm", "import fusedlstm, torch._dynamo"])
def test_the_compiler_may_be_imported_before_or_after(order):
    code = f"""
{order}
import sys, torch
lstm, x = fusedlstm.LSTM(3, 4), torch.randn(5, 2, 3)
torch.testing.assert_close(torch.compile(lstm, fullgraph=True, backend="eager")(x), lstm(x))
assert not any("fusedlstm" in type(finder).__module__ for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_layer_adds_less_than_a_second():
    seconds = []
    for layers in (1, 1, 5):  # the first compilation of a process loads the compiler
        torch._dynamo.reset()
        model = fusedlstm.replace_lstm(nn.LSTM(4, 4, layers))
        begin = time.perf_counter()
        torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(3, 2, 4))[0].sum().backward()
        seconds.append(time.perf_counter() - begin)
    assert (seconds[2] - seconds[1]) / 4 < 1


def test_the_mark_of_a_constant_is_torchs_own():
    """ops.py sets it without torch's function, whose import takes a second."""
    assert vars(ops._tf32_allowed) == vars(torch.compiler.assume_constant_result(lambda: True))
