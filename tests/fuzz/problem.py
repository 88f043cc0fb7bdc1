"""What one seed stands for: the sizes, options, layout and views of a call, and which gradients are asked for."""

import random
from dataclasses import dataclass

import torch

DTYPES = {torch.float32: 8, torch.float64: 4, torch.bfloat16: 5, torch.float16: 3}
FORMS = {"lstm": 10, "swapped": 3, "functional": 4, "cell": 3}
LAYOUTS = {"batch": 11, "one": 2, "packed": 3, "packed_unsorted": 4}
VIEWS = {"dense": 6, "permuted": 2, "offset": 2, "strided": 2, "expanded": 1}

# Sizes on both sides of vectors (4 to 16 lanes), of tiles and of row blocks; T is long where few sequences are.
STEPS = (0, 1, 1, 2, 3, 4, 5, 7, 9, 13, 16, 17, 25, 33, 64, 130)
BATCHES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 33, 49, 65, 97)
FEATURES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
# Steps of cells that the loop computes for a problem. Most of them are small, so that many fit into the time.
BUDGETS = {60: 12, 150: 7, 400: 2, 900: 1}
EMULATED_BUDGETS = {12: 3, 30: 1}
EMULATED_FEATURES = tuple(size for size in FEATURES if size <= 33)


@dataclass(frozen=True)
class Problem:
    """A call. Names as in nn.LSTM; P is 0 without a projection."""

    seed: int
    form: str  # of FORMS
    dtype: torch.dtype
    T: int
    N: int
    I: int
    H: int
    L: int
    D: int
    P: int
    bias: bool
    batch_first: bool
    recompute: bool
    return_states: bool
    dropout: float  # in eval mode where it is not zero
    layout: str  # of LAYOUTS
    lengths: tuple[int, ...] | None  # None: T for all
    lengths_dtype: torch.dtype
    reset_rate: float | None  # None: without resets
    state: bool  # whether hx is given
    views: dict[str, str]  # of every argument and cotangent; of VIEWS
    needs: frozenset[str]  # arguments whose gradients are asked for
    grad_mode: str  # "no_grad" and "inference_mode" only where none are
    cotangents: frozenset[str]  # outputs from which a gradient comes
    threads: tuple[int, int]  # the results of both runs have the same bits

    @property
    def outputs(self) -> int:
        """Values a direction puts out in a step."""
        return self.P or self.H

    @property
    def weights_of_each(self) -> int:
        """Weights of a layer and direction."""
        return 2 + 2 * self.bias + (self.P > 0)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of each sequence."""
        return (self.T,) * self.N if self.lengths is None else self.lengths

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("y", "h_n", "c_n", *(("h_all", "c_all") if self.return_states else ()))

    def __str__(self) -> str:
        sizes = " ".join(f"{name}{getattr(self, name)}" for name in "TNIHLDP")
        rest = {
            "lengths": self.lengths,
            "resets": self.reset_rate,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "recompute": self.recompute,
            "return_states": self.return_states,
            "state": self.state,
            "gradients of": sorted(self.needs) or self.grad_mode,
            "from": sorted(self.cotangents),
            "views": {name: view for name, view in self.views.items() if view != "dense"},
            "threads": self.threads,
        }
        return f"{self.form} {self.dtype} {sizes} {self.layout} " + " ".join(f"{k}={v}" for k, v in rest.items())


def weight_shapes(I: int, H: int, L: int, D: int, P: int, bias: bool) -> list[tuple[int, ...]]:
    """Shapes of all weights, in the order of nn.LSTM.parameters()."""
    shapes: list[tuple[int, ...]] = []
    for layer in range(L):
        for _ in range(D):
            shapes += [(4 * H, I if layer == 0 else D * (P or H)), (4 * H, P or H)]
            shapes += [(4 * H,), (4 * H,)] if bias else []
            shapes += [(P, H)] if P else []
    return shapes


def draw(seed: int, emulated: bool = False) -> Problem:
    """The problem of a seed; the same one everywhere, but smaller on the emulator, which is slow."""
    rng = random.Random(seed)
    budget = _pick(rng, EMULATED_BUDGETS if emulated else BUDGETS)
    while True:
        problem = _draw(rng, seed, EMULATED_FEATURES if emulated else FEATURES)
        if sum(problem.steps) * problem.L * problem.D <= budget and 20 * budget >= problem.T * problem.N:
            return problem


def _pick(rng, weighted):
    return rng.choices(list(weighted), list(weighted.values()))[0]


def _draw(rng: random.Random, seed: int, features: tuple[int, ...]) -> Problem:
    form = _pick(rng, FORMS)
    cell = form == "cell"
    layout = _pick(rng, LAYOUTS)
    if layout != "batch" and (cell or layout == "one") and form != "lstm" and form != "swapped":
        layout = "one" if cell and layout == "one" else "batch"  # a cell has no packed input, the function a batch
    packed = layout.startswith("packed")
    T, N = rng.choice(STEPS), 1 if layout == "one" else rng.choice(BATCHES)
    if packed or cell:
        T, N = max(T, 1), max(N, 1 if packed else 0)
    I, H = rng.choice(features), rng.choice(features)
    if form in ("functional", "cell") and rng.random() < 0.05:
        I = 0  # which nn.LSTM does not let its users make
    L, D = rng.choices((1, 2, 3), (6, 2, 1))[0], rng.choice((1, 2))
    P = rng.randrange(1, H) if H > 1 and rng.random() < 0.25 else 0
    bias = rng.random() < 0.7
    if cell:
        L, D, P = 1, 1, 0
    lengths = _lengths(rng, layout, T, N) if not cell and layout != "one" else None
    padded = not packed and not cell
    return_states = padded and rng.random() < 0.3
    state = rng.random() < 0.7 or form == "functional"
    count = len(weight_shapes(I, H, L, D, P, bias))
    arguments = ["x", *(["h0", "c0"] if state else []), *(f"w{index}" for index in range(count))]
    results = ["y", "h_n", "c_n", *(["h_all", "c_all"] if return_states else [])]
    some = [name for name in arguments if rng.random() < 0.5]
    needs = rng.choices((arguments, some, []), (5, 4, 1))[0]
    return Problem(
        seed=seed,
        form=form,
        dtype=_pick(rng, DTYPES),
        T=T,
        N=N,
        I=I,
        H=H,
        L=L,
        D=D,
        P=P,
        bias=bias,
        batch_first=not cell and rng.random() < 0.4,
        recompute=rng.random() < 0.25,
        return_states=return_states,
        dropout=0.5 if L > 1 and rng.random() < 0.3 else 0.0,
        layout=layout,
        lengths=lengths,
        lengths_dtype=rng.choice((torch.int64, torch.int64, torch.int32, torch.uint8)),
        reset_rate=rng.choice((0.05, 0.3, 1.0)) if padded and rng.random() < 0.35 else None,
        state=state,
        views={name: _pick(rng, VIEWS) for name in [*arguments, *results, "lengths", "resets"]},
        needs=frozenset(needs),
        grad_mode="enable_grad" if needs else rng.choice(("enable_grad", "no_grad", "inference_mode")),
        cotangents=frozenset([name for name in results if rng.random() < 0.7] or [rng.choice(results)]),
        threads=(rng.choice((1, 2, 3)), rng.choice((1, 2, 2, 4))) if T <= 33 else (1, 2),  # a barrier each step
    )


def _lengths(rng: random.Random, layout: str, T: int, N: int) -> tuple[int, ...] | None:
    packed = layout.startswith("packed")
    if not packed and rng.random() < 0.45:
        return None
    least = 1 if packed else 0
    kind = rng.choice(("any", "full", "one_long", "extremes", "alike"))
    if kind == "any":
        lengths = [rng.randint(least, T) for _ in range(N)]
    elif kind == "full":
        lengths = [T] * N
    elif kind == "one_long":
        lengths = [rng.randint(least, min(T, 3)) for _ in range(N)]
    elif kind == "extremes":
        lengths = [rng.choice((least, T)) for _ in range(N)]
    else:
        lengths = [rng.randint(least, T)] * N
    if N and (packed or kind == "one_long"):  # the steps of a PackedSequence are those of its longest
        lengths[rng.randrange(N)] = T
    return tuple(sorted(lengths, reverse=True) if layout == "packed" else lengths)
