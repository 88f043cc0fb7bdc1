"""At the limits of the numbers: NaN, infinities and exact zeros stand where nn.LSTM has them.

Compared are the positions of NaN, +inf, -inf and exact zeros, in every output and gradient. Left out is what depends
on the order of a sum or on its precision, so that two implementations of nn.LSTM differ too:

* several numbers near the largest of their type in one sum, which overflows in one order alone;
* sigmoid from -87 to -88.7 in float32: a subnormal number, or zero in oneDNN and in the persistent CUDA kernels;
* a tanh or sigmoid within one unit of 1, whose derivative is zero or not;
* in 16-bit types, states that exceed the type: they are float32 here, and rounded in each step there.
"""

import math

import by_steps
import emulated
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedlstm

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEEDS = 20


@pytest.fixture(autouse=True)
def _torchs_own_kernels():
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        yield


def _units(dtype, device, **gates):
    """A layer whose gates are given before their activation, one number for all units or a tensor of one each."""
    H = max(len(gate) for gate in gates.values() if isinstance(gate, torch.Tensor))
    lstm = fusedlstm.LSTM(1, H, dtype=dtype, device=device)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        for bias, gate in zip(lstm.bias_ih_l0.chunk(4), "ifgo", strict=True):
            bias.copy_(torch.as_tensor(gates[gate]))
    return lstm


def _around_the_limits(dtype):
    """Arguments of either sign: where exp overflows and underflows, the largest number, infinity and NaN."""
    largest = torch.finfo(dtype).max
    near = {torch.float64: [40, 700, 708, 709.5, 710, 745, 747]}.get(dtype, [20, 80, 87, 88, 88.5, 89, 90, 104, 106])
    return torch.tensor([NAN, *(sign * value for value in (*near, largest, INF) for sign in (1, -1))], dtype=dtype)


@pytest.mark.parametrize("N", [1, 40], ids=["one_row", "rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sigmoid_is_exact_at_its_limits(dtype, N, device):
    """i = 0 and g = 0, so that c_1 is sigmoid(gate) c_0."""
    gate = _around_the_limits(dtype).to(device)
    lstm = _units(dtype, device, i=-INF, f=gate, g=0.0, o=0.0)
    x, h0 = gate.new_zeros(1, N, 1), gate.new_zeros(1, N, len(gate))
    sigmoid, of_infinity = (lstm(x, (h0, torch.full_like(h0, c0)))[1][1].double() for c0 in (1, INF))
    exp = (-gate.to(torch.float64 if dtype == torch.float64 else torch.float32)).exp()
    right = (1 / (1 + exp.double())).expand(1, N, -1)
    overflows = (exp == INF).expand(1, N, -1)
    assert (sigmoid[overflows] == 0).all()
    assert of_infinity[overflows].isnan().all()  # 0 * inf
    assert (of_infinity[~overflows & ~right.isnan()] == INF).all()
    assert (sigmoid[..., gate >= 40] == 1).all()
    torch.testing.assert_close(
        sigmoid, right, rtol=3 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).smallest_normal / 8, equal_nan=True
    )


@pytest.mark.parametrize("N", [1, 40], ids=["one_row", "rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tanh_is_exact_at_its_limits(dtype, N, device):
    """Of a gate, with i = 1 and f = 0: c_1 is tanh(g); and of a cell state, with i = 0 and f = o = 1."""
    given = _around_the_limits(dtype).to(device)
    x, h0 = given.new_zeros(1, N, 1), given.new_zeros(1, N, len(given))
    right = torch.where(given.isnan(), given, given.sign()).expand(1, N, -1)
    _, (_, c_n) = _units(dtype, device, i=INF, f=-INF, g=given, o=0.0)(x)
    torch.testing.assert_close(c_n, right, rtol=0, atol=0, equal_nan=True)
    y, _ = _units(dtype, device, i=-INF, f=INF, g=0 * h0[0, 0], o=INF)(x, (h0, given + h0))
    torch.testing.assert_close(y, right, rtol=0, atol=0, equal_nan=True)


def test_a_negative_zero_stays_one(device):
    """f = 1, i = 0 and g = -1: every term of c_1 is -0, and so are c_1 and tanh(c_1)."""
    lstm = _units(torch.float32, device, i=-INF, f=INF, g=torch.full((3,), -INF), o=0.0)
    h0 = torch.zeros(1, 2, 3, device=device)
    y, (_, c_n) = lstm(h0[..., :1], (h0, -h0))
    assert (y == 0).all()
    assert y.signbit().all()
    assert c_n.signbit().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_saturated_gate_has_no_gradient(dtype, device):
    """Not even times the largest number: the weights' gradients multiply x by the gates' gradients."""
    lstm = fusedlstm.LSTM(1, 4, dtype=dtype, device=device)
    for signs in ([1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, -1.0], [1.0] * 4, [-1.0] * 4):
        with torch.no_grad():
            lstm.weight_ih_l0.copy_(torch.tensor(signs).repeat_interleave(4)[:, None])
        x = torch.full((2, 3, 1), torch.finfo(dtype).max, dtype=dtype, device=device, requires_grad=True)
        y, (_, c_n) = lstm(x)
        for grad in torch.autograd.grad(y.sum() + c_n.sum(), [x, *lstm.parameters()]):
            assert (grad == 0).all(), (signs, grad)


class _Problem:
    """A layer and its inputs, random but for one or two numbers among them: infinite, NaN or saturating.

    nn.LSTM computes what is right, or where it has no such option by_steps.py; for 16-bit types in float32, in which a
    16-bit layer computes as well.
    """

    def __init__(self, seed, dtype, T, N, H, I=3, packed=False, lengths=None, resets=None, recompute=False, **options):
        self.seed, self.dtype, self.T, self.N, self.I, self.H = seed, dtype, T, N, I, H
        self.packed, self.lengths, self.resets, self.recompute, self.options = (
            packed,
            lengths,
            resets,
            recompute,
            options,
        )
        random = torch.Generator().manual_seed(seed)
        module = nn.LSTM(I, H, **options)
        states, P = module.num_layers * (1 + module.bidirectional), module.proj_size or H
        self.parameters = {name: parameter.shape for name, parameter in module.named_parameters()}
        shapes = {"x": (T, N, I), "h0": (states, N, P), "c0": (states, N, H), **self.parameters}
        self.leaves = {
            name: torch.randn(shape, generator=random).to(dtype) / (math.sqrt(H) if name in self.parameters else 1)
            for name, shape in shapes.items()
        }
        self._plant(random)
        y = torch.randn(T, N, (1 + module.bidirectional) * P, generator=random)
        if packed:
            y = pack_padded_sequence(y, lengths, enforce_sorted=False).data
        self.cotangents = [y, *(torch.randn(shapes[name], generator=random) for name in ("h0", "c0"))]

    def _plant(self, random):
        def choose(values):
            return values[int(torch.randint(len(values), (), generator=random))]

        for _ in range(choose([1, 2])):
            name = choose(list(self.leaves))
            saturating = {"x": [-300, torch.finfo(self.dtype).max], "c0": []}.get(name, [300, -300])
            flat = self.leaves[name].view(-1)
            flat[choose(range(len(flat)))] = choose([INF, -INF, NAN, *saturating])

    def run(self, function, dtype, device="cpu"):
        """Outputs and gradients by name."""
        leaves = {name: leaf.to(device, dtype, copy=True).requires_grad_() for name, leaf in self.leaves.items()}
        outputs = function(leaves)
        cotangents = [cotangent.to(device, dtype) for cotangent in self.cotangents]
        grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
        results = dict(zip(["y", "h_n", "c_n"], outputs, strict=True))
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            results[f"grad_{name}"] = torch.zeros_like(leaf) if grad is None else grad
        return results

    def _call(self, module, leaves, **given):
        x = leaves["x"]
        if self.packed:
            x = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        weights = {name: leaves[name] for name in self.parameters}
        y, state = torch.func.functional_call(module, weights, (x, (leaves["h0"], leaves["c0"])), given)
        return (y.data if self.packed else y, *state)

    def ours(self, device):
        module = fusedlstm.LSTM(
            self.I, self.H, recompute=self.recompute, **self.options, dtype=self.dtype, device=device
        )
        given = {} if self.packed else {"lengths": self.lengths, "resets": self.resets}
        return self.run(lambda leaves: self._call(module, leaves, **given), self.dtype, device)

    def right(self):
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        module = nn.LSTM(self.I, self.H, **self.options, dtype=dtype)
        if self.packed or (self.lengths is None and self.resets is None):
            return self.run(lambda leaves: self._call(module, leaves), dtype)
        lengths = [self.T] * self.N if self.lengths is None else self.lengths.tolist()
        resets = torch.zeros(self.T, self.N, dtype=torch.bool) if self.resets is None else self.resets

        def by_the_steps(leaves):
            for name in self.parameters:
                module._parameters.pop(name, None)
                setattr(module, name, leaves[name])
            return by_steps.run(module, leaves["x"], leaves["h0"], leaves["c0"], lengths, resets)[:3]

        return self.run(by_the_steps, dtype)

    def check(self, device):
        """NaN, infinities and zeros are where they must be."""
        ours = self.ours(device)
        for name, right in self.right().items():
            got, expected = _pattern(ours[name].cpu()), _pattern(right.to(self.dtype))
            assert torch.equal(got, expected), f"seed {self.seed}, {name}:\n{ours[name]}\nmust be as\n{right}"


def _pattern(tensor):
    """A code for each number: NaN, +inf, -inf, zero, any other."""
    codes = (tensor != 0).to(torch.int8)
    codes[tensor == INF], codes[tensor == -INF], codes[tensor.isnan()] = 2, 3, 4
    return codes


LENGTHS, SHORTER = torch.tensor([5, 1, 3, 2, 5, 4, 1]), torch.tensor([5, 0, 3, 2, 5, 4, 1])
RESETS = torch.zeros(5, 7, dtype=torch.bool)
RESETS[[0, 1, 2, 2, 3, 4], [2, 0, 0, 1, 4, 4]] = True
SIZES = {"T": 5, "N": 7, "H": 19}
EVERYTHING = {"num_layers": 2, "bidirectional": True, "proj_size": 5}
PROBLEMS = {
    "one_row_of_one_step": {"T": 1, "N": 1, "H": 5},
    "one_row": {"T": 4, "N": 1, "H": 20, "bias": False},
    "one_step": {"T": 1, "N": 7, "H": 17},
    "steps": {"T": 5, "N": 7, "H": 33},
    "rows": {"T": 3, "N": 60, "H": 20},
    "everything": SIZES | EVERYTHING,
    "recompute": SIZES | {"bidirectional": True, "recompute": True},
    "packed": SIZES | {"packed": True, "lengths": LENGTHS},
    "packed_and_everything": SIZES | {"packed": True, "lengths": LENGTHS} | EVERYTHING,
    "lengths": SIZES | {"bidirectional": True, "lengths": SHORTER},
    "resets": SIZES | {"bidirectional": True, "resets": RESETS},
    "resets_and_lengths": SIZES | {"proj_size": 3, "lengths": SHORTER, "resets": RESETS},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_nan_and_infinity_are_where_torch_has_them(problem, dtype):
    for seed in range(SEEDS):
        _Problem(seed, dtype, **problem).check(torch.device("cpu"))


# On a GPU the products over all rows have zeros where a row takes no part. Left out is where these products meet a
# weight that is not finite: resets forward step by step, and lengths and resets with a projection.
ON_A_GPU = {
    "stepwise": ["one_row_of_one_step", "one_row", "steps", "everything", "recompute", "packed", "lengths"],
    "persistent": ["one_row_of_one_step", "one_row", "steps", "recompute", "packed", "lengths", "resets"],
}


@pytest.mark.parametrize(
    ("strategy", "dtype"),
    [
        ("stepwise", torch.float32),
        ("stepwise", torch.float16),
        ("persistent", torch.float16),
        ("persistent", torch.bfloat16),
    ],
    ids=str,
)
def test_nan_and_infinity_are_where_torch_has_them_on_a_gpu(strategy, dtype):
    with emulated.operators(strategy):
        for name in ON_A_GPU[strategy]:
            for seed in range(SEEDS // 2):
                _Problem(seed, dtype, **PROBLEMS[name]).check(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_fast_activations_are_exact_at_their_limits(dtype):
    """Those of the persistent kernels, with zero where the sigmoid is below the least normal number."""
    gate = _around_the_limits(dtype)
    x, h0 = gate.new_zeros(1, 9, 1), gate.new_zeros(1, 9, len(gate))
    with emulated.operators("persistent"):
        sigmoid, of_infinity = (
            _units(dtype, gate.device, i=-INF, f=gate, g=0.0, o=0.0)(x, (h0, torch.full_like(h0, c0)))[1][1]
            for c0 in (1, INF)
        )
        _, (_, tanh) = _units(dtype, gate.device, i=INF, f=-INF, g=gate, o=0.0)(x)
    right = 1 / (1 + (-gate.double()).exp())
    right[right < torch.finfo(torch.float32).tiny] = 0
    torch.testing.assert_close(sigmoid, right.to(dtype).expand(1, 9, -1), rtol=1e-2, atol=0, equal_nan=True)
    assert torch.equal(sigmoid == 1, (gate > 0).expand(1, 9, -1))
    assert torch.equal(of_infinity.isnan(), ((right == 0) | right.isnan()).expand(1, 9, -1))
    torch.testing.assert_close(
        tanh, torch.where(gate.isnan(), gate, gate.sign()).expand(1, 9, -1), rtol=0, atol=0, equal_nan=True
    )
