"""The tensors of a problem: random values, and the layouts and views in which a call gets them."""

from dataclasses import dataclass

import torch
from fuzz.problem import Problem, weight_shapes
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Values:
    """Tensors on the CPU in the dtype of the problem, laid out as those of the loop (loop.run)."""

    arguments: dict[str, Tensor]  # x, h0, c0, w0, w1, ..
    cotangents: dict[str, Tensor]  # of the outputs from which a gradient comes
    resets: Tensor | None

    @property
    def weights(self) -> list[Tensor]:
        """All weights, in the order of nn.LSTM.parameters()."""
        return [value for name, value in self.arguments.items() if name.startswith("w")]


def draw(problem: Problem, number: int) -> Values:
    """The number-th random values of a problem."""
    torch.manual_seed(problem.seed * 1000 + number)
    T, N, states = problem.T, problem.N, problem.L * problem.D
    shapes = {"x": (T, N, problem.I), "h0": (states, N, problem.outputs), "c0": (states, N, problem.H)}
    arguments = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    if not problem.state:
        arguments["h0"].zero_()
        arguments["c0"].zero_()
    of_weights = weight_shapes(problem.I, problem.H, problem.L, problem.D, problem.P, problem.bias)
    for index, shape in enumerate(of_weights):
        arguments[f"w{index}"] = (2 * torch.rand(shape, dtype=torch.float64) - 1) / problem.H**0.5
    shapes = {"y": (T, N, problem.D * problem.outputs), "h_n": shapes["h0"], "c_n": shapes["c0"]}
    shapes |= {"h_all": (states, T, N, problem.outputs), "c_all": (states, T, N, problem.H)}
    cotangents = {name: torch.randn(shapes[name], dtype=torch.float64) for name in sorted(problem.cotangents)}
    resets = None if problem.reset_rate is None else torch.rand(T, N) < problem.reset_rate
    for tensors in (arguments, cotangents):
        for name, value in tensors.items():
            if problem.views.get(name) == "expanded":
                value = value[:1].expand_as(value)
            tensors[name] = value.to(problem.dtype).clone()
    if problem.lengths is not None and problem.views["x"] != "expanded":
        for n, length in enumerate(problem.lengths):
            arguments["x"][length:, n] = float("nan")
    return Values(arguments, cotangents, resets)


def view(dense: Tensor, kind: str) -> Tensor:
    """The same values as another view of memory; what lies between them is NaN (True, or a length out of range)."""
    filler = float("nan") if dense.is_floating_point() else True if dense.dtype == torch.bool else 255
    if kind == "permuted":
        order = tuple(reversed(range(dense.dim())))
        return dense.permute(order).contiguous().permute(order)
    if kind == "offset":
        memory = dense.new_full((dense.numel() + 2,), filler)
        inner = memory[1:-1].view(dense.shape)
        return inner.copy_(dense)
    if kind == "strided":
        memory = dense.new_full((*dense.shape, 3), filler)
        return memory[..., 1].copy_(dense)
    if kind == "expanded":
        for dim, size in enumerate(dense.shape):
            first = dense.narrow(dim, 0, min(size, 1))
            if size > 1 and torch.equal(first.expand_as(dense), dense):
                return first.clone().expand_as(dense)
    return dense.clone()


class Layout:
    """How a problem's sequences and states are laid out in the call, from the loop's layout and back."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.packed = problem.layout.startswith("packed")
        steps = problem.steps
        self.order = sorted(range(problem.N), key=lambda n: -steps[n])
        self.active = [sum(length > t for length in steps) for t in range(problem.T)]
        # Positions in the packed data; the functional form takes states in the order of the packed sequences.
        self.places = [(t, n) for t in range(problem.T) for n in self.order[: self.active[t]]]
        self.sorts_states = self.packed and problem.form == "functional"

    def sequence(self, steps: Tensor) -> Tensor:
        """[T, N, F], or [T, N], as the call takes it; a packed one as its data."""
        if self.packed:
            return torch.stack([steps[place] for place in self.places])
        if self.problem.layout == "one":
            return steps[:, 0]
        return steps.transpose(0, 1) if self.problem.batch_first else steps

    def sequence_back(self, given: Tensor) -> Tensor:
        """[T, N, F] of what the call returned, zero where packed data have no step."""
        if self.packed:
            steps = given.new_zeros(self.problem.T, self.problem.N, given.shape[1])
            for place, vector in zip(self.places, given, strict=True):
                steps[place] = vector
            return steps
        if self.problem.layout == "one":
            return given.unsqueeze(1)
        return given.transpose(0, 1) if self.problem.batch_first else given

    def packed_sequence(self, data: Tensor) -> PackedSequence:
        """The PackedSequence of such data."""
        sizes = torch.tensor(self.active)
        if self.problem.layout == "packed":
            return PackedSequence(data, sizes)
        order = torch.tensor(self.order, device=data.device)
        return PackedSequence(data, sizes, order, order.argsort())

    def state(self, state: Tensor) -> Tensor:
        """[L*D, N, F] as the call takes it."""
        if self.sorts_states:
            state = state[:, self.order]
        if self.problem.layout == "one":
            state = state[:, 0]
        return state[0] if self.problem.form == "cell" else state

    def state_back(self, given: Tensor) -> Tensor:
        """[L*D, N, F] of what the call returned."""
        if self.problem.form == "cell":
            given = given[None]
        if self.problem.layout == "one":
            given = given.unsqueeze(1)
        if self.sorts_states:
            back = torch.empty_like(given)
            back[:, self.order] = given
            return back
        return given

    def all_back(self, given: Tensor) -> Tensor:
        """[L*D, T, N, F] of what the call returned."""
        return given.unsqueeze(2) if self.problem.layout == "one" else given
