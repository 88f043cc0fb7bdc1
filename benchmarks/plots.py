"""Figures from rows alone; each carries the digest of the rows it was drawn from."""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import report
from benchmarks.cases import CASES
from benchmarks.records import Row
from benchmarks.report import EAGER, GRAPHS, KINDS, MIXED, OURS, TORCH, Group, Key
from benchmarks.roofline import bound_us

# The colours of Okabe and Ito, which the colour-blind tell apart; modes differ in their marker too.
BLUE, GREEN, PURPLE, LOSS, GREY = "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#777777"
MODES = {"inference": ("o", BLUE), "training": ("s", GREEN)}

# In speedup.svg: marker, colour, whether filled.
KIND_MARKS = {EAGER: ("o", BLUE, True), GRAPHS: ("s", GREEN, False), MIXED: ("^", PURPLE, False)}
_LOSS_MARK = ("slower than nn.LSTM, either mode", "D", LOSS, True)
_BOUND_LOOKS = {"bound": ("|", "black", True), "fusedlstm": ("o", BLUE, True), "nn.LSTM": ("D", GREY, False)}

_STYLE: Any = {
    "svg.hashsalt": "fusedlstm",  # else names inside the file are random
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def draw(rows: Sequence[Row], target: Path) -> list[Path]:
    """Writes speedup.svg, scaling.svg and bound.svg.

    Args:
        rows: of one machine; of several numbers of threads the largest is drawn.
        target: the folder, made where there is none.

    Returns:
        The files.
    """
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for make in (speedup, scaling, bound):
        with matplotlib.rc_context(_STYLE):
            path = target / f"{make.__name__}.svg"
            make(rows).savefig(path, metadata={"Date": None, "Creator": None, "Description": digest(rows)})
            paths.append(path)
    return paths


def digest(rows: Iterable[Row]) -> str:
    """SHA-256 of rows in whatever order, the same before they are written to a file and after."""
    numbers = (int, float)
    lines = sorted(repr([float(v) if isinstance(v, numbers) else v for v in astuple(row)]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest_in(path: Path) -> str:
    """The digest that a figure carries, empty for a file without one."""
    found = ElementTree.parse(path).find(".//{http://purl.org/dc/elements/1.1/}description")
    return "" if found is None else found.text or ""


def speedup(rows: Sequence[Row]) -> Figure:
    """The speed-up over nn.LSTM in each case, eager and in CUDA graphs, a panel for each dtype and mode."""
    drawn = _with_ratio(rows)
    if not drawn:
        return _empty("no ratio to nn.LSTM in the rows")
    names = _distinct(drawn, 3)
    of_panels = list(dict.fromkeys(key[:2] for key in drawn))
    figure = Figure(figsize=(9, 1.2 + 0.17 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(of_panels), sharex=True, sharey=True, squeeze=False)[0]
    kinds = [kind for kind in KINDS if any(report.over_torch(group, kind) is not None for group in drawn.values())]
    for of_panel, axes in zip(of_panels, panels, strict=True):
        axes.axvline(1, color="black", linewidth=0.8)
        for group in (group for key, group in drawn.items() if key[:2] == of_panel):
            y = names.index(group[OURS].case)
            axes.hlines(y, *_interval(group), color=_color(_ratio(group), BLUE), linewidth=1.6)
            for kind in kinds:
                value = report.over_torch(group, kind)
                if value is not None:
                    marker, color, filled = KIND_MARKS[kind]
                    shown = _color(value, color)
                    axes.plot(value, y, marker, color=shown, markerfacecolor=shown if filled else "white", markersize=5)
        axes.set_title(", ".join(of_panel))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    panels[0].set_xscale("log")
    _ratio_axis(panels[0].xaxis, *_limits(drawn, kinds))
    panels[0].set_xlim(_limits(drawn, kinds))
    _cases_axis(panels[0], names)
    figure.supxlabel("speed-up of fusedlstm over nn.LSTM: time of nn.LSTM / time of fusedlstm", fontsize=9)
    marks = [(kind, *KIND_MARKS[kind]) for kind in kinds]
    _legend(figure, [*marks, ("below 1: fusedlstm is slower", "D", LOSS, True)])
    return figure


def scaling(rows: Sequence[Row]) -> Figure:
    """The eager speed-up over hidden size, batch and steps; lines join cases that differ in nothing else."""
    drawn = _with_ratio(rows)
    if not drawn:
        return _empty("no ratio to nn.LSTM in the rows")
    dtypes = _distinct(drawn, 0)
    figure = Figure(figsize=(8, 0.8 + 2.4 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), 3, sharex="col", sharey=True, squeeze=False)
    for dtype, line in zip(dtypes, panels, strict=True):
        of_dtype = {key: group for key, group in drawn.items() if key[0] == dtype}
        for variable, axes in zip("HNT", line, strict=True):
            axes.axhline(1, color="black", linewidth=0.8)
            axes.grid(axis="y")
            _scale(axes, of_dtype, variable)
        line[0].set_ylabel(f"{dtype}: speed-up over\nnn.LSTM, both eager")
    for axes, name in zip(panels[-1], ("hidden size H", "batch size N", "steps T"), strict=True):
        axes.set_xlabel(name)
    panels[0, 0].set_yscale("log")
    _ratio_axis(panels[0, 0].yaxis, *_limits(drawn))
    panels[0, 0].set_ylim(_limits(drawn))
    _legend(figure, [*_modes(drawn), _LOSS_MARK])
    return figure


def bound(rows: Sequence[Row]) -> Figure:
    """Time per step and layer of fusedlstm and nn.LSTM beside the bound, a panel for each dtype and mode."""
    drawn = {key: group for key, group in _drawn(rows).items() if _bound_us(group) is not None}
    if not drawn:
        return _empty("no time of fusedlstm with the rates of its machine in the rows")
    names, dtypes, modes = (_distinct(drawn, index) for index in (3, 0, 1))
    figure = Figure(figsize=(8, 0.8 + len(dtypes) * (0.4 + 0.2 * len(names))), layout="constrained")
    panels = figure.subplots(len(dtypes), len(modes), sharex=True, sharey=True, squeeze=False)
    for dtype, line in zip(dtypes, panels, strict=True):
        for mode, axes in zip(modes, line, strict=True):
            of_panel = {key[3]: group for key, group in drawn.items() if key[:2] == (dtype, mode)}
            for case, group in of_panel.items():
                _beside_bound(axes, group, names.index(case))
            axes.set_title(f"{dtype}, {mode}")
            axes.grid(axis="x")
    axes = panels[0, 0]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))
    _cases_axis(axes, names)
    figure.supxlabel("time per step and layer, us", fontsize=9)
    _legend(figure, [(label, *look) for label, look in _BOUND_LOOKS.items()])
    return figure


def _beside_bound(axes: Axes, group: Group, y: float) -> None:
    """The marks of one case and a thin line from the bound to the slowest."""
    steps = group[OURS].T * group[OURS].L
    times = (_bound_us(group), report.time_us(group[OURS]), report.time_us(group.get(TORCH)))
    known = [time / steps for time in times if time is not None]
    axes.hlines(y, min(known), max(known), color="0.8", linewidth=0.8, zorder=0)
    for time, (marker, color, filled) in zip(times, _BOUND_LOOKS.values(), strict=True):
        if time is not None:
            axes.plot(time / steps, y, marker, color=color, markerfacecolor=color if filled else "none", markersize=6)


def _scale(axes: Axes, drawn: dict[Key, Group], variable: str) -> None:
    """The dots of one panel, and lines through those that differ in its variable alone."""
    series: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for (_, mode, _, _), group in drawn.items():
        row, value = group[OURS], _ratio(group)
        marker, color = _look(group, mode)
        x = getattr(row, variable) * (0.96 if mode == "inference" else 1.04)  # side by side, not one over the other
        axes.vlines(x, *_interval(group), color=color, linewidth=1)
        axes.plot(x, value, marker, color=color, markersize=4)
        inputs = row.I == row.H if variable == "H" else row.I  # in a sweep of H the input usually grows with it
        others = tuple(getattr(row, name) for name in "TNHLDP" if name != variable)
        series.setdefault((mode, inputs, *others), []).append((x, value))
    for (of_mode, *_), points in series.items():
        axes.plot(*zip(*sorted(points), strict=True), color=MODES[str(of_mode)][1], linewidth=0.8, alpha=0.5, zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _drawn(rows: Sequence[Row]) -> dict[Key, Group]:
    threads = max((row.threads for row in rows), default=0)
    return report.groups(row for row in rows if row.mode in MODES and row.threads == threads)


def _with_ratio(rows: Sequence[Row]) -> dict[Key, Group]:
    return {key: group for key, group in _drawn(rows).items() if report.ratio(group, TORCH) is not None}


def _distinct(drawn: dict[Key, Group], index: int) -> list[str]:
    """Values of one part of the keys, in the order of the tables."""
    names = dict.fromkeys(str(key[index]) for key in drawn)
    return sorted(names, key=list(CASES).index) if index == 3 and names.keys() <= CASES.keys() else list(names)


def _ratio(group: Group) -> float:
    value = report.ratio(group, TORCH)
    assert value is not None, "only groups of _with_ratio"
    return value


def _interval(group: Group) -> tuple[float, float]:
    return report.interval(group, TORCH) or (_ratio(group), _ratio(group))


def _look(group: Group, mode: str) -> tuple[str, str]:
    """Marker and colour."""
    return MODES[mode][0], _color(_ratio(group), MODES[mode][1])


def _color(value: float, color: str) -> str:
    return LOSS if value < 1 else color


def _bound_us(group: Group) -> float | None:
    row = group.get(OURS)
    if row is None or report.time_us(row) is None or row.peak_tflops <= 0 or row.peak_gb_s <= 0:
        return None
    return bound_us(report.case_of(row), row.mode, row.dtype, row.peak_tflops, row.peak_gb_s)


def _limits(drawn: dict[Key, Group], kinds: Sequence[str] = ()) -> tuple[float, float]:
    """Ends of an axis that holds every interval, and the speed-ups of these kinds."""
    ends = [end for group in drawn.values() for end in _interval(group)]
    ends += [v for group in drawn.values() for kind in kinds if (v := report.over_torch(group, kind)) is not None]
    return min(*ends, 1) / 1.15, max(*ends, 1) * 1.15


def _ratio_axis(axis: Axis, low: float, high: float) -> None:
    """A logarithmic axis on which twice as fast and half as fast are equally far from 1."""
    steps = (1, 1.5) if high / low < 10 else (1,)
    ticks = [step * 2.0**power for power in range(-7, 11) for step in steps]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _cases_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _modes(drawn: dict[Key, Group]) -> list[tuple[str, str, str, bool]]:
    return [(mode, *MODES[mode], True) for mode in _distinct(drawn, 1)]


def _legend(figure: Figure, marks: Sequence[tuple[str, str, str, bool]]) -> None:
    """A legend above the panels; a mark is its text, marker, colour and whether it is filled."""
    handles = [
        Line2D(
            [], [], linestyle="", marker=marker, color=color, markerfacecolor=color if filled else "none", label=text
        )
        for text, marker, color, filled in marks
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(marks))


def _empty(text: str) -> Figure:
    figure = Figure(figsize=(8, 1))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure
