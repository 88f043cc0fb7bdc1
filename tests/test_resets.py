"""resets=, alone and with every other option, against the loop over steps of by_steps.py in float64."""

import by_steps
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusedlstm

STARTS = [[0], [1], [0, 1, 2, 3, 4], [2, 4], []]


def _mask(starts, T):
    """bool [T, N] from the steps at which the segments of each sequence begin."""
    mask = torch.zeros(T, len(starts), dtype=torch.bool)
    for n, steps in enumerate(starts):
        mask[[t for t in steps if t < T], n] = True
    return mask


def _check(device, resets, lengths=None, batch_first=False, recompute=False, **options):
    """Every output and state, and the gradient of every input and parameter through all of them."""
    T, N = resets.shape
    module = fusedlstm.LSTM(
        3, 6, batch_first=batch_first, recompute=recompute, **options, dtype=torch.float64, device=device
    )
    states = module.num_layers * (1 + module.bidirectional)
    x = torch.randn(T, N, 3, dtype=torch.float64, device=device, requires_grad=True)
    h0, c0 = (
        torch.randn(states, N, size, dtype=torch.float64, device=device, requires_grad=True)
        for size in (module.proj_size or 6, 6)
    )
    expected = by_steps.run(module, x, h0, c0, [T] * N if lengths is None else lengths, resets)

    def layout(tensor):
        return tensor.transpose(0, 1) if batch_first else tensor

    given_lengths = None if lengths is None else torch.tensor(lengths)
    y, last, every = module(
        layout(x), (h0, c0), lengths=given_lengths, resets=layout(resets).to(device), return_states=True
    )
    got = layout(y), *last, *every
    leaves = [x, h0, c0, *module.parameters()]
    cotangents = [torch.randn_like(out) for out in expected]
    connected = [out + 0 * x.sum() for out in expected]  # a graph even if no sequence has a step
    right = torch.autograd.grad(connected, leaves, cotangents, allow_unused=True)
    grads = torch.autograd.grad(got, leaves, cotangents)
    for ours, true in zip([*got, *grads], [*expected, *right], strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if true is None else true)


OPTIONS = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "batch_first": {"batch_first": True, "bias": False, "num_layers": 2},
    "recompute": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "recompute": True},
}


@pytest.mark.parametrize("lengths", [None, [5, 2, 3, 0, 4]], ids=["full", "lengths"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_segment_begins_with_zero_states(options, lengths, device):
    _check(device, _mask(STARTS, 5), lengths, **options)


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("everywhere", [False, True], ids=["nowhere", "everywhere"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "bidirectional"])
def test_one_sequence_of_one_or_more_steps(T, everywhere, bidirectional, device):
    _check(device, torch.full((T, 1), everywhere), bidirectional=bidirectional)


@given(
    data=st.data(),
    T=st.integers(1, 6),
    N=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    proj_size=st.sampled_from([0, 2]),
    recompute=st.booleans(),
    cut=st.booleans(),
)
def test_any_mask_with_any_option(data, T, N, cut, **options):
    resets = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=T, max_size=T)))
    lengths = data.draw(st.lists(st.integers(0, T), min_size=N, max_size=N)) if cut else None
    _check(torch.device("cpu"), resets, lengths, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_border_for_the_whole_batch_is_two_calls(dtype, device):
    """Bit for bit, in the types that the float64 tests leave out; on a GPU, where cuBLAS sums products of another size
    in another order, up to rounding. On a CPU 48 uses of a weight make all calls pack it, for all passes."""
    tolerance = {} if device.type == "cuda" else {"rtol": 0, "atol": 0}
    lstm = fusedlstm.LSTM(7, 33, proj_size=5, dtype=dtype, device=device)
    x = torch.randn(6, 24, 7, dtype=dtype, device=device, requires_grad=True)
    resets = torch.zeros(6, 24, dtype=torch.bool, device=device)
    resets[2] = True
    y, (h_n, c_n) = lstm(x, resets=resets)
    first, last = lstm(x[:2]), lstm(x[2:])
    torch.testing.assert_close(y, torch.cat([first[0], last[0]]), **tolerance)
    torch.testing.assert_close((h_n, c_n), last[1], **tolerance)
    cotangent = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, cotangent)
    (expected,) = torch.autograd.grad((first[0], last[0]), x, (cotangent[:2], cotangent[2:]))
    torch.testing.assert_close(grad, expected, **tolerance)


@pytest.mark.parametrize("proj_size", [0, 5], ids=["plain", "projected"])
@pytest.mark.parametrize("N", [17, 18, 35], ids=str)
def test_a_border_in_the_last_row_of_a_tile(N, proj_size, device):
    """The backward product of the other rows is in tiles of up to 16, which must not reach the row that is cut."""
    lstm = fusedlstm.LSTM(7, 33, proj_size=proj_size, dtype=torch.bfloat16, device=device)
    exact = fusedlstm.LSTM(7, 33, proj_size=proj_size, dtype=torch.float64)
    exact.load_state_dict(lstm.state_dict())
    x = torch.randn(6, N, 7, dtype=torch.bfloat16)
    resets = torch.zeros(6, N, dtype=torch.bool)
    resets[3, -1] = True
    grads = []
    for module, on in ((lstm, device), (exact, "cpu")):
        leaf = x.to(on, module.weight_ih_l0.dtype).requires_grad_()
        y, _ = module(leaf, resets=resets.to(on))
        grads += torch.autograd.grad(y, leaf, torch.ones_like(y))
    torch.testing.assert_close(grads[0].cpu().double(), grads[1], rtol=0, atol=0.03 * grads[1].abs().max().item())


def test_a_diverged_segment_does_not_spoil_the_next(device):
    lstm = fusedlstm.LSTM(3, 6, num_layers=2, device=device)
    x = torch.randn(5, 2, 3, device=device)
    resets = _mask([[3], []], 5).to(device)
    clean, _ = lstm(x, resets=resets)
    x[1, 0] = float("nan")
    y, _ = lstm(x, resets=resets)
    assert y[1:3, 0].isnan().all()
    assert torch.equal(y[3:], clean[3:])


def test_one_sequence(device):
    lstm = fusedlstm.LSTM(3, 6, bidirectional=True, device=device)
    x = torch.randn(5, 3, device=device)
    resets = torch.tensor([False, True, False, False, True], device=device)
    alone, _ = lstm(x, resets=resets)
    batch, _ = lstm(x[:, None], resets=resets[:, None])
    assert torch.equal(alone, batch[:, 0])


def test_second_derivatives(device):
    lstm = fusedlstm.LSTM(2, 3, bidirectional=True, dtype=torch.float64, device=device)
    x = torch.randn(4, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    resets = _mask([[0, 2], [3]], 4).to(device)
    assert torch.autograd.gradcheck(lambda x: lstm(x, resets=resets)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: lstm(x, resets=resets)[0], x)


def test_resets_compile_whole(device):
    lstm = fusedlstm.LSTM(3, 6, bidirectional=True, recompute=True, device=device)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    x, resets = torch.randn(5, 5, 3, device=device, requires_grad=True), _mask(STARTS, 5).to(device)
    (y, (h_n, c_n)), (y_, (h_n_, c_n_)) = lstm(x, resets=resets), compiled(x, resets=resets)
    for ours, theirs in zip((y, h_n, c_n), (y_, h_n_, c_n_), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (y, y_)))


BAD = {
    "shape": (
        torch.ones(3, 4, dtype=torch.bool),
        ValueError,
        r"resets must be \[4, 3\], one for each step of input, got",
    ),
    "row": (torch.ones(4, dtype=torch.bool), ValueError, r"resets must be \[4, 3\]"),
    "floats": (torch.ones(4, 3), TypeError, r"resets must be bool, got torch.float32; use resets.bool\(\)"),
    "list": ([[True] * 3] * 4, TypeError, "resets must be a torch.Tensor, got list"),
    "device": (
        torch.ones(4, 3, dtype=torch.bool, device="meta"),
        ValueError,
        r"resets must be on the device of input, cpu, got meta; use resets.to\('cpu'\)",
    ),
}


@pytest.mark.parametrize(("resets", "error", "message"), BAD.values(), ids=BAD)
def test_bad_resets_are_named(resets, error, message):
    with pytest.raises(error, match=message):
        fusedlstm.LSTM(5, 6)(torch.randn(4, 3, 5), resets=resets)


def test_resets_do_not_come_with_a_packed_sequence():
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(4, 3, 5), torch.tensor([4, 2, 1]))
    with pytest.raises(ValueError, match="resets must not come with a PackedSequence; use pad_packed_sequence"):
        fusedlstm.LSTM(5, 6)(packed, resets=torch.zeros(4, 3, dtype=torch.bool))
