"""LSTM and LSTMCell against nn.LSTM and nn.LSTMCell: construction, parameters, layouts, dropout, states, errors."""

import copy
import pickle
import re

import pytest
import torch
from cases import CASES, DTYPES
from comparison import random_state
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fusedlstm
from benchmarks.accuracy import assert_as_accurate

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def _pair(*args, device="cpu", **options):
    torchs = nn.LSTM(*args, **options, device=device)
    ours = fusedlstm.LSTM(*args, **options, device=device)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def _assert_equal_runs(ours, torchs, *args):
    for got, expected in zip(_flat(ours(*args)), _flat(torchs(*args)), strict=True):
        torch.testing.assert_close(got, expected)


def _flat(result):
    output, state = result
    return (*output, *state) if isinstance(output, PackedSequence) else (output, *state)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_seed_gives_the_same_module(case):
    torch.manual_seed(3)
    torchs = nn.LSTM(case.I, case.H, **case.options)
    torch.manual_seed(3)
    ours = fusedlstm.LSTM(case.I, case.H, **case.options)
    assert repr(ours) == f"fusedlstm.{torchs!r}"
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(map(torch.equal, ours.parameters(), torchs.parameters()))
    torchs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    "arguments",
    [(0, 4), (3, 0), (3, 4, 0), (3, 4, 1, True, False, 1.5), (3, 4, 1, True, False, 0.0, False, 4), (3.0, 4), (3, "4")],
    ids=str,
)
def test_bad_options_raise_what_nn_lstm_raises(arguments):
    with pytest.raises((ValueError, TypeError)) as expected:
        nn.LSTM(*arguments)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        fusedlstm.LSTM(*arguments)


def test_classes_and_methods_of_nn_lstm():
    ours, torchs = _pair(3, 4, 2, bidirectional=True, proj_size=2)
    assert isinstance(ours, nn.LSTM)
    assert isinstance(fusedlstm.LSTMCell(3, 4), nn.LSTMCell)
    x, hx = torch.randn(5, 2, 3), (torch.randn(4, 2, 2), torch.randn(4, 2, 4))
    for sizes in (None, torch.tensor([2, 2, 1])):
        for name in ("get_expected_hidden_size", "get_expected_cell_size"):
            assert getattr(ours, name)(x, sizes) == getattr(torchs, name)(x, sizes)
    for module in (ours, torchs):
        module.check_forward_args(x, hx, None)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(4, 2, 4\), got \[4, 2, 2\]"):
            module.check_forward_args(x, (hx[0], hx[0]), None)
    swapped = ours.permute_hidden(hx, torch.tensor([1, 0]))
    assert all(map(torch.equal, swapped, (state.flip(1) for state in hx)))
    assert [[id(w) for w in layer] for layer in ours.all_weights] == [
        [id(getattr(ours, name)) for name in names] for names in ours._all_weights
    ]


def test_wrong_shapes_raise_what_nn_lstm_raises_too():
    calls = [
        (fusedlstm.LSTM(3, 4), (torch.randn(5, 2, 2),)),
        (fusedlstm.LSTM(3, 4), (torch.randn(5, 2, 3), (torch.randn(1, 1, 4), torch.randn(1, 2, 4)))),
        (fusedlstm.LSTMCell(3, 4), (torch.randn(2, 2),)),
        (fusedlstm.LSTMCell(3, 4), (torch.randn(2, 3), (torch.randn(2, 3), torch.randn(2, 4)))),
    ]
    for module, call in calls:
        for error in (ValueError, RuntimeError):
            with pytest.raises(error, match="must be"):
                module(*call)


def test_dropout_of_a_single_layer_warns_as_nn_lstm_does():
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        fusedlstm.LSTM(3, 4, dropout=0.5)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["no_state", "state"])
def test_unbatched_input(batch_first, given, device):
    ours, torchs = _pair(3, 4, 2, bidirectional=True, proj_size=2, batch_first=batch_first, device=device)
    x = torch.randn(5, 3, device=device)
    hx = (torch.randn(4, 2, device=device), torch.randn(4, 4, device=device))
    _assert_equal_runs(ours, torchs, x, *([hx] if given else []))


def test_state_may_be_a_list():
    ours, torchs = _pair(3, 4)
    _assert_equal_runs(ours, torchs, torch.randn(5, 2, 3), [torch.randn(1, 2, 4), torch.randn(1, 2, 4)])


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_no_steps_and_an_empty_batch(grad, device):
    lstm = fusedlstm.LSTM(3, 4, 2, bidirectional=True, proj_size=2, device=device)
    with torch.set_grad_enabled(grad):
        hx = random_state(lstm, 5, torch.float32, device)
        y, (h_n, c_n) = lstm(torch.randn(0, 5, 3, device=device), hx)
        assert y.shape == (0, 5, 4)
        assert torch.equal(h_n, hx[0])
        assert torch.equal(c_n, hx[1])
        y, (h_n, c_n) = lstm(torch.randn(7, 0, 3, device=device))
        assert (y.shape, h_n.shape, c_n.shape) == ((7, 0, 4), (4, 0, 2), (4, 0, 4))
    if grad:
        y.sum().backward()
        assert all(not parameter.grad.any() for parameter in lstm.parameters())


def test_a_sequence_in_two_parts_is_the_whole(device):
    lstm = fusedlstm.LSTM(3, 20, 2, device=device)
    x = torch.randn(9, 4, 3, device=device)
    whole, last = lstm(x)
    first, state = lstm(x[:4])
    second, state = lstm(x[4:], state)
    # Bit for bit, except on a GPU, where cuBLAS sums products of another size in another order.
    tolerance = {} if device.type == "cuda" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(torch.cat([first, second]), whole, **tolerance)
    torch.testing.assert_close(state, last, **tolerance)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_draws_nn_lstms_masks(bidirectional):
    ours, torchs = _pair(3, 8, 3, dropout=0.4, bidirectional=bidirectional)
    x = torch.randn(5, 6, 3)
    packed = pack_padded_sequence(x, torch.tensor([5, 1, 4, 4, 2, 5]), enforce_sorted=False)
    for input in (x, packed):
        for mode in (True, False):
            results = []
            for module in (ours, torchs):
                torch.manual_seed(11)
                results.append(_flat(module.train(mode)(input))[0])
            torch.testing.assert_close(*results)


def test_dropout_of_everything():
    ours, torchs = _pair(3, 8, 2, dropout=1.0)
    _assert_equal_runs(ours, torchs, torch.randn(5, 2, 3))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 3, "proj_size": 3}], ids=str)
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("given", [False, True], ids=["no_state", "state"])
def test_packed_sequences(options, enforce_sorted, given, device):
    ours, torchs = _pair(4, 7, **options, device=device)
    lengths = [6, 6, 4, 1, 1] if enforce_sorted else [1, 6, 4, 1, 6]
    x = torch.randn(6, 5, 4, device=device)
    hx = random_state(torchs, 5, torch.float32, device) if given else None
    cotangents, grads = None, []
    for module in (ours, torchs):
        leaf = x.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        output, state = module(packed, hx)
        assert isinstance(output, PackedSequence)
        cotangents = cotangents or [torch.randn_like(output.data), *map(torch.randn_like, state)]
        grads.append(
            (
                pad_packed_sequence(output),
                *state,
                *torch.autograd.grad([output.data, *state], [leaf, *module.parameters()], cotangents),
            )
        )
        assert torch.equal(output.batch_sizes, packed.batch_sizes)
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_packed_batch_first_and_a_single_sequence():
    ours, torchs = _pair(2, 3, batch_first=True)
    _assert_equal_runs(ours, torchs, pack_padded_sequence(torch.randn(4, 5, 2), torch.tensor([5, 3, 3, 1]), True))
    _assert_equal_runs(ours, torchs, pack_sequence([torch.randn(1, 2)]))


def test_packed_under_another_default_device():
    ours, torchs = _pair(4, 7)
    packed = pack_padded_sequence(torch.randn(6, 3, 4), torch.tensor([6, 2, 1]))
    with torch.device("meta"):
        got = ours(packed)[0].data
    torch.testing.assert_close(got, torchs(packed)[0].data)


def test_packed_states_of_another_batch_are_refused():
    lstm, packed = fusedlstm.LSTM(4, 7), pack_padded_sequence(torch.randn(6, 3, 4), torch.tensor([6, 2, 1]))
    hx = torch.randn(1, 4, 7), torch.randn(1, 4, 7)
    with pytest.raises(ValueError, match=r"hx\[0\] must be \[1, 3, 7\] for this input, got \[1, 4, 7\]"):
        lstm(packed, hx)
    with pytest.raises(ValueError, match="hx must have a batch of 3 as the PackedSequence, got 4"):
        fusedlstm.lstm(packed, hx, list(lstm.parameters()))


def test_pickle_deepcopy_and_conversion(device):
    lstm = fusedlstm.LSTM(3, 4, 2, device=device).eval()
    x = torch.randn(5, 2, 3, device=device)
    expected = lstm(x)[0]
    for twin in (pickle.loads(pickle.dumps(lstm)), copy.deepcopy(lstm)):
        assert torch.equal(twin(x)[0], expected)
        assert not twin.training
    double = copy.deepcopy(lstm).to(torch.float64)
    torch.testing.assert_close(double(x.double())[0].float(), expected)
    half = copy.deepcopy(lstm).bfloat16()
    assert half(x.bfloat16())[0].dtype == torch.bfloat16


def test_meta_device_gives_shapes():
    lstm = fusedlstm.LSTM(3, 4, bidirectional=True, device="meta")
    y, (h_n, c_n) = lstm(torch.randn(5, 2, 3, device="meta"))
    assert (y.device.type, y.shape, h_n.shape, c_n.shape) == ("meta", (5, 2, 8), (2, 2, 4), (2, 2, 4))


def test_a_device_without_kernels_is_named(monkeypatch):
    monkeypatch.setattr("fusedlstm.ops._DEVICES", ("cpu",))
    lstm = fusedlstm.LSTM(3, 4, device="meta")
    with pytest.raises(RuntimeError, match="lstm: input must be on the CPU, got meta, for which"):
        lstm(torch.randn(5, 2, 3, device="meta"))


def test_weights_are_read_at_every_call(device):
    ours, torchs = _pair(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device)
    for module in (ours, torchs):
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        with torch.no_grad():
            module.parametrizations.weight_hh_l0.original0.mul_(2)
    grad = torch.autograd.grad(ours(x)[0].sum(), ours.parametrizations.weight_hh_l0.original0)[0]
    assert grad.any()
    ours.parametrizations.weight_hh_l0.original0.grad = None
    before = ours(x)[0]
    with torch.no_grad():
        ours.parametrizations.weight_hh_l0.original0.mul_(0)
    assert not torch.equal(before, ours(x)[0])


def test_functional_form_equals_the_module(device):
    lstm = fusedlstm.LSTM(3, 4, 2, bidirectional=True, device=device)
    hx = random_state(lstm, 2, torch.float32, device)
    x = torch.randn(5, 2, 3, device=device)
    y, state = fusedlstm.lstm(x, hx, list(lstm.parameters()), num_layers=2, bidirectional=True)
    expected, expected_state = lstm(x, hx)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, state, expected_state))
    y, _ = fusedlstm.lstm(
        x.transpose(0, 1), hx, list(lstm.parameters()), num_layers=2, bidirectional=True, batch_first=True
    )
    assert torch.equal(y.transpose(0, 1), expected)
    with pytest.raises(
        ValueError, match=r"weights must hold as many tensors for each of 2 layers x 2 directions, got 15"
    ):
        fusedlstm.lstm(x, hx, list(lstm.parameters())[1:], num_layers=2, bidirectional=True)
    for wrong in (torch.cat([hx[1], hx[1][:1]]), hx[1][0], torch.tensor(0.0, device=device)):
        match = rf"hx\[1\] must be \[4, .* 2 layers x 2 directions, got {re.escape(str(list(wrong.shape)))}"
        with pytest.raises(ValueError, match=match):
            fusedlstm.lstm(x, (hx[0], wrong), list(lstm.parameters()), num_layers=2, bidirectional=True)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        fusedlstm.lstm(x, hx, list(lstm.parameters()), num_layers=0)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiles_without_a_graph_break(device):
    lstm = fusedlstm.LSTM(3, 4, 2, bidirectional=True, device=device)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    results = []
    for module in (lstm, compiled):
        y = module(x)[0]
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *lstm.parameters()])))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


BAD_CALLS = {
    "rank": (lambda x, hx: (x[None], hx), ValueError, r"input must be \[steps, batch, 3\].* got \[1, 5, 2, 3\]"),
    "features": (lambda x, hx: (x[..., :2], hx), ValueError, r"input must be .* got \[5, 2, 2\]"),
    "scalar": (lambda x, hx: (x[0, 0, 0], hx), ValueError, r"input must be .* got \[\]"),
    "not_a_tensor": (lambda x, hx: ([1.0], hx), TypeError, "input must be a torch.Tensor, got list"),
    "dtype": (
        lambda x, hx: (x.double(), hx),
        ValueError,
        r"input must have the dtype of the parameters, torch.float32, got torch.float64; use input.to\(torch.float32\)",
    ),
    "integers": (lambda x, hx: (x.long(), hx), ValueError, "input must have the dtype of the parameters"),
    "device": (lambda x, hx: (x.to("meta"), hx), ValueError, "input must be on the device of the parameters, cpu"),
    "one_state": (lambda x, hx: (x, hx[0]), TypeError, r"hx must be a pair \(h_0, c_0\) of tensors, got Tensor"),
    "three_states": (lambda x, hx: (x, (*hx, hx[0])), TypeError, "hx must be a pair"),
    "no_tensor": (lambda x, hx: (x, (hx[0], None)), TypeError, r"hx\[1\] must be a torch.Tensor, got NoneType"),
    "h0": (lambda x, hx: (x, (hx[0][:, :1], hx[1])), ValueError, r"hx\[0\] must be \[1, 2, 4\] for this input, got"),
    "c0": (lambda x, hx: (x, (hx[0], hx[1][..., 1:])), ValueError, r"hx\[1\] must be \[1, 2, 4\] .* got \[1, 2, 3\]"),
    "state_rank": (
        lambda x, hx: (x[:, 0], hx),
        ValueError,
        r"hx\[0\] must be \[1, 4\] for this input, got \[1, 2, 4\]",
    ),
    "state_dtype": (lambda x, hx: (x, (hx[0].half(), hx[1])), ValueError, r"hx\[0\] must have the dtype of input"),
    "packed": (lambda x, hx: (pack_sequence([x[:, 0, :2]]), None), ValueError, "input must be a PackedSequence of"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_name_the_argument(arguments, error, message):
    lstm = fusedlstm.LSTM(3, 4)
    with pytest.raises(error, match=f"lstm: {message}"):
        lstm(*arguments(torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))))


@pytest.mark.parametrize("sizes", [[1, 2, 2], [2, 2], [2, 2, 2], [2, 0, 3], [2, 2, 2, -1], []], ids=str)
def test_batch_sizes_must_describe_the_data(sizes):
    data, lstm = torch.randn(5, 3), fusedlstm.LSTM(3, 4)
    lstm(PackedSequence(data, torch.tensor([2, 2, 1])))
    wrong = PackedSequence(data, torch.tensor(sizes, dtype=torch.int64), torch.tensor([1, 0]), torch.tensor([1, 0]))
    with pytest.raises(
        RuntimeError, match=r"lstm: (batch_sizes\[\d\] must be in|input must have \d entries, the sum of)"
    ):
        lstm(wrong)


def test_batch_sizes_must_have_a_step():
    with pytest.raises(ValueError, match=r"lstm: batch_sizes must be \[steps\], of at least one step, got \[0\]"):
        fusedlstm.LSTM(3, 4)(PackedSequence(torch.randn(0, 3), torch.zeros(0, dtype=torch.int64)))


def _cell_results(cell, inputs):
    x, *hx = (tensor.to(cell.weight_ih).requires_grad_() for tensor in inputs)
    h, c = cell(x, tuple(hx)) if hx else cell(x)
    grads = torch.autograd.grad(h.sum() + c.square().sum(), [x, *hx, *cell.parameters()])
    return {f"result {index}": tensor.detach() for index, tensor in enumerate((h, c, *grads))}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("given", [False, True], ids=["no_state", "state"])
def test_cell(given, batched, bias, dtype, device):
    torch.manual_seed(3)
    torchs = nn.LSTMCell(5, 10, bias, device=device, dtype=dtype)
    torch.manual_seed(3)
    ours = fusedlstm.LSTMCell(5, 10, bias, device=device, dtype=dtype)
    truth = nn.LSTMCell(5, 10, bias, dtype=torch.float64)
    truth.load_state_dict(torchs.state_dict())
    assert repr(ours) == f"fusedlstm.{torchs!r}"
    assert all(map(torch.equal, ours.state_dict().values(), torchs.state_dict().values()))
    batch = (20,) if batched else ()
    shapes = [(*batch, 5), (*batch, 10), (*batch, 10)][: 3 if given else 1]
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    got, own, true = (_cell_results(cell, inputs) for cell in (ours, torchs, truth))
    if dtype == torch.float64:
        torch.testing.assert_close(got, own)
    else:
        got, own = ({name: tensor.cpu() for name, tensor in each.items()} for each in (got, own))
        assert_as_accurate(got, [own], true)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(2, 4),), ValueError, r"input must be \[batch, 3\] \(or \[3\] unbatched\), got \[2, 4\]"),
        ((torch.randn(2, 3).double(),), ValueError, "input must have the dtype of the parameters"),
        ((torch.randn(2, 3), torch.randn(2, 4)), TypeError, "hx must be a pair"),
        ((torch.randn(2, 3), (torch.randn(1, 4),) * 2), ValueError, r"hx\[0\] must be \[2, 4\] .* got \[1, 4\]"),
    ],
    ids=["shape", "dtype", "one_state", "state_shape"],
)
def test_bad_calls_of_the_cell_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=f"lstm_cell: {message}"):
        fusedlstm.LSTMCell(3, 4)(*arguments)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("kind", "first"), [("LSTM", (0, 2)), ("LSTM", (1, 2)), ("LSTMCell", (2,))], ids=["no_steps", "one_step", "cell"]
)
def test_results_may_be_changed_in_place(kind, first, grad):
    """Without hx both first states are the same zeros, and a cell's results are parts of a layer's."""
    module, x = getattr(fusedlstm, kind)(3, 4), torch.randn(*first, 3)

    def run():
        results = module(x)
        return _flat(results) if kind == "LSTM" else results

    with torch.set_grad_enabled(grad):
        expected, results = run(), run()
        for number, result in enumerate(results):
            assert result._base is None
            result.mul_(2).add_(1)
            assert torch.equal(result, expected[number] * 2 + 1)
            assert all(map(torch.equal, results[number + 1 :], expected[number + 1 :]))
