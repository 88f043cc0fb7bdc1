"""What nn.LSTM does not have: lengths of a padded batch and every state, each against nn.LSTM on single sequences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedlstm

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def _pair(device, I=5, H=6, **options):
    torchs = nn.LSTM(I, H, **options, dtype=torch.float64, device=device)
    ours = fusedlstm.LSTM(I, H, **options, dtype=torch.float64, device=device)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def _states(module, N, device):
    states = module.num_layers * (1 + module.bidirectional)
    sizes = module.proj_size or module.hidden_size, module.hidden_size
    return [torch.randn(states, N, size, dtype=torch.float64, device=device, requires_grad=True) for size in sizes]


def _one_by_one(torchs, x, h0, c0, lengths):
    """nn.LSTM on each sequence alone, cut to its length; x and the output are [T, N, ...]."""
    T = len(x)
    outputs, h_n, c_n = [], [], []
    for n, length in enumerate(lengths):
        one = slice(n, n + 1)
        state = h0[:, one].contiguous(), c0[:, one].contiguous()
        width = (1 + torchs.bidirectional) * h0.shape[2]
        y = x.new_zeros(T, 1, width) + 0 * x.sum()  # a graph even if no sequence has a step
        if length:
            part, state = torchs(x[:length, one].contiguous(), state)
            y = torch.cat([part, y[length:]])
        outputs.append(y)
        h_n.append(state[0])
        c_n.append(state[1])
    return torch.cat(outputs, 1), torch.cat(h_n, 1), torch.cat(c_n, 1)


def _check_lengths(ours, torchs, T, lengths, device):
    x = torch.randn(T, len(lengths), 5, dtype=torch.float64, device=device)
    spoiled = x.clone()
    for n, length in enumerate(lengths):
        spoiled[length:, n] = float("nan")
    h0, c0 = _states(torchs, len(lengths), device)
    leaves = [x.requires_grad_(), h0, c0]
    expected = _one_by_one(torchs, *leaves, lengths)
    spoiled.requires_grad_()
    layout = (lambda t: t.transpose(0, 1)) if ours.batch_first else (lambda t: t)
    y, state = ours(layout(spoiled), (h0, c0), lengths=torch.tensor(lengths))
    got = layout(y), *state
    cotangents = [torch.randn_like(out) for out in expected]
    right = torch.autograd.grad(expected, [*leaves, *torchs.parameters()], cotangents, allow_unused=True)
    grads = torch.autograd.grad(got, [spoiled, h0, c0, *ours.parameters()], cotangents)
    for ours_one, right_one in zip([*got, *grads], [*expected, *right], strict=True):
        torch.testing.assert_close(ours_one, torch.zeros_like(ours_one) if right_one is None else right_one)


OPTIONS = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "layers": {"num_layers": 3, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 3},
    "batch_first": {"batch_first": True, "bias": False},
}


@pytest.mark.parametrize("lengths", [[4, 0, 2, 4, 1], [0, 0], [1], [4, 4]], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_sequence_ends_at_its_length(options, lengths, device):
    """Outputs, last states and every gradient; NaN past the end of a sequence reaches none of them."""
    torchs_options = {key: value for key, value in options.items() if key != "batch_first"}
    ours, _ = _pair(device, **options)
    torchs = nn.LSTM(5, 6, **torchs_options, dtype=torch.float64, device=device)
    torchs.load_state_dict(ours.state_dict())
    _check_lengths(ours, torchs, 4, lengths, device)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    num_layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    proj_size=st.sampled_from([0, 2]),
)
def test_lengths_with_any_option(lengths, num_layers, bidirectional, proj_size):
    device = torch.device("cpu")
    ours, torchs = _pair(device, num_layers=num_layers, bidirectional=bidirectional, proj_size=proj_size)
    _check_lengths(ours, torchs, 6, lengths, device)


def test_lengths_are_those_of_a_packed_sequence(device):
    ours, _ = _pair(device, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(6, 4, 5, dtype=torch.float64, device=device), torch.tensor([2, 6, 1, 3])
    packed, (h_n, c_n) = ours(pack_padded_sequence(x, lengths, enforce_sorted=False))
    y, state = ours(x, lengths=lengths)
    assert torch.equal(pad_packed_sequence(packed)[0], y)
    assert torch.equal(h_n, state[0])
    assert torch.equal(c_n, state[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8], ids=str)
def test_lengths_may_be_any_integers(dtype, device):
    ours, _ = _pair(device)
    x = torch.randn(6, 3, 5, dtype=torch.float64, device=device)
    expected = ours(x, lengths=torch.tensor([3, 0, 6]))[0]
    assert torch.equal(ours(x, lengths=torch.tensor([3, 0, 6], dtype=dtype, device=device))[0], expected)


@pytest.mark.parametrize("proj_size", [0, 3], ids=["plain", "projected"])
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["full", "lengths"])
def test_every_state_of_a_stack(lengths, proj_size, device):
    """The states after step t are nn.LSTM's last states of the first t + 1 steps; gradients come from all of them."""
    ours, torchs = _pair(device, num_layers=2, proj_size=proj_size)
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    h0, c0 = _states(torchs, 3, device)
    options = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    y, (h_n, c_n), (h_all, c_all) = ours(x, (h0, c0), return_states=True, **options)
    assert (h_all.shape, c_all.shape) == ((2, 4, 3, proj_size or 6), (2, 4, 3, 6))
    live = torch.tensor([[t < length for length in lengths or [4] * 3] for t in range(4)], device=device)[:, :, None]
    prefixes = [torchs(x[: t + 1], (h0, c0))[1] for t in range(4)]
    expected = [torch.stack(each, 1).where(live, 0) for each in zip(*prefixes, strict=True)]
    torch.testing.assert_close(h_all, expected[0])
    torch.testing.assert_close(c_all, expected[1])
    assert torch.equal(h_all[-1], y)
    cotangents = [torch.randn_like(state) for state in expected]
    right = torch.autograd.grad(expected, [x, h0, c0, *torchs.parameters()], cotangents)
    grads = torch.autograd.grad([h_all, c_all], [x, h0, c0, *ours.parameters()], cotangents)
    for ours_one, right_one in zip(grads, right, strict=True):
        torch.testing.assert_close(ours_one, right_one)
    if lengths is None:
        assert torch.equal(h_n, h_all[:, -1])
        assert torch.equal(c_n, c_all[:, -1])


def test_every_state_of_the_reverse_direction(device):
    """After step t it has read the steps from the end of each sequence down to t."""
    ours, torchs = _pair(device, bidirectional=True)
    lengths = [4, 0, 2]
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    h0, c0 = _states(torchs, 3, device)
    _, _, (h_all, c_all) = ours(x, (h0, c0), lengths=torch.tensor(lengths), return_states=True)
    for n, length in enumerate(lengths):
        one = slice(n, n + 1)
        for t in range(4):
            if t >= length:
                assert not h_all[:, t, n].any()
                assert not c_all[:, t, n].any()
                continue
            _, (h, c) = torchs(x[t:length, one].contiguous(), (h0[:, one].contiguous(), c0[:, one].contiguous()))
            torch.testing.assert_close(h_all[1, t, n], h[1, 0])
            torch.testing.assert_close(c_all[1, t, n], c[1, 0])


def test_states_of_one_sequence_and_of_batch_first(device):
    ours, _ = _pair(device, batch_first=True, bidirectional=True)
    x = torch.randn(3, 4, 5, dtype=torch.float64, device=device)
    y, last, every = ours(x, return_states=True)
    alone_y, alone_last, alone_every = ours(x[1], return_states=True)
    torch.testing.assert_close(alone_y, y[1])
    for alone, batch in zip((*alone_last, *alone_every), (*last, *every), strict=True):
        torch.testing.assert_close(alone, batch.select(-2, 1))


def test_states_and_lengths_compile_whole():
    ours = fusedlstm.LSTM(5, 6, bidirectional=True)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x, lengths = torch.randn(4, 3, 5), torch.tensor([4, 0, 2])
    expected = ours(x, lengths=lengths, return_states=True)
    got = compiled(x, lengths=lengths, return_states=True)
    for one, other in zip((expected[0], *expected[1], *expected[2]), (got[0], *got[1], *got[2]), strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_with_lengths(device):
    ours, _ = _pair(device, I=2, H=3)
    lengths = torch.tensor([3, 0, 2])

    def run(x):
        y, _, (_, c_all) = ours(x, lengths=lengths, return_states=True)
        return y, c_all

    x = torch.randn(3, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradgradcheck(run, x)


BAD = {
    "shape": (torch.tensor([1, 2]), ValueError, r"lengths must be \[3\], one for each sequence of input, got \[2\]"),
    "floats": (torch.tensor([1.0, 2, 3]), TypeError, r"lengths must be integers, got torch.float32; use lengths.long"),
    "bools": (torch.tensor([True, False, True]), TypeError, "lengths must be integers, got torch.bool"),
    "long": (torch.tensor([1, 5, 2]), ValueError, r"lengths must be in 0\.\.4, the steps of input, got 5"),
    "negative": (torch.tensor([1, -1, 2]), ValueError, r"lengths must be in 0\.\.4, the steps of input, got -1"),
    "list": ([1, 2, 3], TypeError, "lengths must be a torch.Tensor, got list"),
    "meta": (
        torch.ones(3, dtype=torch.int64, device="meta"),
        ValueError,
        "lengths must be on the device of input, cpu, got meta",
    ),
}


@pytest.mark.parametrize(("lengths", "error", "message"), BAD.values(), ids=BAD)
def test_bad_lengths_are_named(lengths, error, message):
    with pytest.raises(error, match=message):
        fusedlstm.LSTM(5, 6)(torch.randn(4, 3, 5), lengths=lengths)


def test_lengths_need_a_batch_that_is_not_packed():
    lstm = fusedlstm.LSTM(5, 6)
    with pytest.raises(ValueError, match=r"lengths must come with a batch, got one sequence; cut it with input\[:"):
        lstm(torch.randn(4, 5), lengths=torch.tensor([2]))
    packed = pack_padded_sequence(torch.randn(4, 3, 5), torch.tensor([4, 2, 1]))
    with pytest.raises(ValueError, match="lengths must not come with a PackedSequence; use pad_packed_sequence"):
        lstm(packed, lengths=torch.tensor([4, 2, 1]))
    with pytest.raises(ValueError, match="return_states must not come with a PackedSequence"):
        lstm(packed, return_states=True)
