"""How time and memory grow with the steps, rows, hidden units and layers of an LSTM."""

import math
from collections.abc import Iterable, Sequence
from statistics import linear_regression

import torch
from torch import Tensor, nn

from benchmarks.cases import Case

# Sizes of each sweep; the quick one takes the first three. The others stay at T=64, N=16, H=I=256, L=1.
SIZES = {
    "T": (16, 32, 64, 128, 256),
    "N": (4, 8, 16, 32, 64),
    "H": (64, 128, 256, 512, 1024),
    "L": (1, 2, 4, 8, 16),
}

Point = tuple[str, int, float | None, float | None]  # variable, size, median_us, memory_mib; None: not measured


def sweep(variable: str, quick: bool = False) -> list[Case]:
    """The cases in which one size grows and the others stay; I grows with H.

    Args:
        variable: T, N, H or L.
        quick: the three smallest sizes alone.
    """
    if variable not in SIZES:
        raise ValueError(f"variable must be one of {', '.join(SIZES)}, got {variable!r}")
    cases = []
    for size in SIZES[variable][: 3 if quick else None]:
        sizes = {"T": 64, "N": 16, "H": 256, "L": 1} | {variable: size}
        name = "growth_" + "_".join(f"{name.lower()}{value}" for name, value in sizes.items())
        cases.append(Case(name, I=sizes["H"], **sizes, origin=f"growth with {variable}"))
    return cases


def kept_bytes(module: nn.Module, x: Tensor) -> list[int]:
    """Sizes of what a forward pass keeps for the backward pass beyond parameters and input; the same on any device."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(x)  # held until the storages are counted, lest one takes another's place
    sizes = list(kept.values())
    del outputs
    return sizes


def fit(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of the power law that is nearest to values over sizes, by least squares on their logarithms."""
    if len(sizes) != len(values) or len(set(sizes)) < 2:
        raise ValueError(f"sizes must be two different ones or more, as many as values, got {sizes} and {values}")
    if min(*sizes, *values) <= 0:
        raise ValueError(f"sizes and values must be above 0, got {sizes} and {values}")
    return linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


def table(points: Iterable[Point]) -> str:
    """A Markdown table with a line for each variable: its sizes, time and memory at each, and their exponents."""
    points = sorted(points, key=lambda point: (list(SIZES).index(point[0]), point[1]))
    lines = [
        "| grows | sizes | time, ms | exponent | memory, MiB | exponent |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variable in dict.fromkeys(point[0] for point in points):
        of_one = [point for point in points if point[0] == variable]
        sizes = [size for _, size, _, _ in of_one]
        times = [None if time is None else time / 1e3 for _, _, time, _ in of_one]
        memories = [memory for _, _, _, memory in of_one]
        cells = [variable, ", ".join(map(str, sizes)), *_cells(sizes, times), *_cells(sizes, memories)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(sizes: Sequence[int], values: Sequence[float | None]) -> tuple[str, str]:
    """Values and their exponent, which takes every one of them: a dash where any is missing or 0."""
    if all(value is None for value in values):
        return "-", "-"
    text = ", ".join("-" if value is None else f"{value:.3g}" for value in values)
    known = [value for value in values if value is not None and value > 0]
    complete = len(known) == len(values) and len(set(sizes)) > 1
    return text, f"{fit(sizes, known):.2f}" if complete else "-"
