"""Tables from rows alone: whatever they say follows from the rows and from nothing else."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from benchmarks import environment, records
from benchmarks.cases import CASES, DTYPES, MODES, Case
from benchmarks.records import Row
from benchmarks.roofline import bound_us, flops, least_bytes

OURS, TORCH = "fusedlstm", "torch"
OURS_GRAPH, TORCH_GRAPH = "fusedlstm_graph", "torch_graph"
_NAMES = {OURS_GRAPH: "fusedlstm in a CUDA graph", TORCH: "nn.LSTM", TORCH_GRAPH: "nn.LSTM in a CUDA graph"}
_NAMES |= {"torch_layers": "nn.LSTM per layer", "torch_plain": "nn.LSTM in plain torch"}
_NAMES |= {"torch_padded": "nn.LSTM, episodes padded"}
_SUMMARY_MODES = ("inference", "training")
# Columns that a caption holds, and what is put before their values.
_CAPTION = {"device": "", "threads": "threads ", "torch": "torch ", "driver": "driver ", "cuda": "CUDA "}
_CAPTION |= {"cudnn": "cuDNN ", "fusedlstm": "fusedlstm ", "commit": "commit ", "date": "on "}

# How fusedlstm and another are compared.
KINDS = EAGER, GRAPHS, MIXED = "both eager", "both in CUDA graphs", "mixed: only nn.LSTM in a CUDA graph"
# Of which pairs a row of ours has the ratio, with its interval.
_RECORDED = {(OURS, TORCH), (OURS_GRAPH, TORCH_GRAPH)}

Key = tuple[str, str, int, str]  # dtype, mode, threads, name of the case
Group = dict[str, Row]  # the rows of one key by provider


def groups(rows: Iterable[Row]) -> dict[Key, Group]:
    """Rows that may be compared with each other, in the order of the tables whatever the order of the rows."""
    found: dict[Key, Group] = {}
    for row in sorted(rows, key=_order):
        found.setdefault((row.dtype, row.mode, row.threads, row.case), {})[row.provider] = row
    return found


def case_of(row: Row) -> Case:
    """The case that a row measured."""
    known = CASES.get(row.case, Case(row.case, row.T, row.N, row.I, row.H))
    return replace(known, T=row.T, N=row.N, I=row.I, H=row.H, L=row.L, D=row.D, P=row.P, V=row.V)


def time_us(row: Row | None) -> float | None:
    """Median of a row in microseconds; None for a row that holds an error, and for none."""
    return None if row is None or row.error else row.median_us


def kind(group: Group, other: str) -> str:
    """Which of KINDS the comparison with another provider is: nn.LSTM in a graph is compared with fusedlstm in one.

    Rows from before fusedlstm was measured in a graph have nn.LSTM in a graph alone: their comparison is mixed.
    """
    if other != TORCH_GRAPH:
        return EAGER
    return MIXED if time_us(group.get(OURS_GRAPH)) is None else GRAPHS


def _ours(group: Group, other: str) -> Row | None:
    return group.get(OURS_GRAPH if kind(group, other) == GRAPHS else OURS)


def ratio(group: Group, other: str) -> float | None:
    """Speed-up over another provider: its time divided by that of fusedlstm, in a graph or without as `kind` says."""
    ours = _ours(group, other)
    our_time, time = time_us(ours), time_us(group.get(other))
    if ours is None or our_time is None or time is None:
        return None
    recorded = ours.ratio if (ours.provider, other) in _RECORDED else None
    return time / our_time if recorded is None else recorded


def interval(group: Group, other: str) -> tuple[float, float] | None:
    """The 95% interval of `ratio`, where the rows have it."""
    ours = _ours(group, other)
    if ours is None or (ours.provider, other) not in _RECORDED or ours.ratio_low is None or ours.ratio_high is None:
        return None
    return ours.ratio_low, ours.ratio_high


def over_torch(group: Group, wanted: str) -> float | None:
    """The speed-up over nn.LSTM of one of KINDS; None where the rows do not have that."""
    other = TORCH if wanted == EAGER else TORCH_GRAPH
    return ratio(group, other) if kind(group, other) == wanted else None


def ratios(group: Group) -> dict[str, float]:
    """The speed-up over each other provider that has a time, the lowest of them first."""
    others = group.keys() - {OURS, OURS_GRAPH}
    found = {name: value for name in others if (value := ratio(group, name)) is not None}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def fastest(group: Group) -> tuple[str, float] | None:
    """The fastest of the other providers that run without a CUDA graph, and the speed-up over it."""
    return next(((name, value) for name, value in ratios(group).items() if kind(group, name) == EAGER), None)


def label(provider: str) -> str:
    """A provider's name for readers."""
    return _NAMES.get(provider, provider)


def folder(rows: Iterable[Row]) -> str:
    """Name of the folder of a machine's rows, as benchmarks.environment.folder gives it."""
    row = min(rows, key=_order)
    return environment.folder_of(row.device, bool(row.cuda))


def shown(results: Path) -> list[Path]:
    """The folders whose rows the README shows: of the GPU and of the processor that were measured last."""
    measured = {
        path.parent: max((row.date for row in records.read(path)), default="") for path in results.glob("*/rows.csv")
    }
    kinds = [[path for path in sorted(measured) if path.name.startswith("cpu-") == is_cpu] for is_cpu in (False, True)]
    return [max(of_kind, key=measured.__getitem__) for of_kind in kinds if of_kind]


def caption(rows: Sequence[Row]) -> str:
    """Device, threads, versions, commits and dates of rows; several values where the rows differ."""
    parts = [(name, sorted({str(getattr(row, column)) for row in rows} - {""})) for column, name in _CAPTION.items()]
    return ", ".join(name + " and ".join(values) for name, values in parts if values)


def tables(rows: Sequence[Row]) -> str:
    """Everything that the rows of one machine say, as Markdown."""
    found = groups(rows)
    kinds = list(dict.fromkeys(key[:3] for key in found))
    threads = {kind[2] for kind in kinds}
    parts = [
        "# Benchmarks",
        f"{caption(rows)}.",
        "Times are medians; those of fusedlstm come with their 20th and 80th percentile. The speed-up is the other's"
        " time divided by that of fusedlstm: above 1, fusedlstm is faster. Eager means without a CUDA graph: eager is"
        " compared with eager, a graph with a graph. Where fusedlstm was not measured in a graph, its eager time is"
        " compared with that of nn.LSTM in one, and this is called mixed. The speed-up over nn.LSTM comes with its 95%"
        " interval. The bound is the least time that the operations or the bytes of a case take at the rates under its"
        " table, with every byte read from memory. A case whose data stay in caches may be faster than that. Memory is"
        " that at the peak of a call beyond what was there before. In cases of cells, nn.LSTM stands for nn.LSTMCell;"
        " in cases with resets, for a call for each segment between them, and in alternating ones for a call a layer."
        " `python -m benchmarks list` describes the providers.",
    ]
    for dtype, mode, count in kinds:
        of_kind = [group for key, group in found.items() if key[:3] == (dtype, mode, count)]
        parts += [f"## {dtype}, {mode}" + (f", threads: {count}" if len(threads) > 1 else ""), f"{MODES[mode]}."]
        parts += _table(of_kind)
    return "\n\n".join([*parts, *_slower(found), *_absent(found)]) + "\n"


def _order(row: Row) -> tuple[int, int, int, int, str, int, str]:
    names = list(CASES)
    case = names.index(row.case) if row.case in CASES else len(names)
    first = [OURS, OURS_GRAPH, TORCH]
    provider = first.index(row.provider) if row.provider in first else len(first)
    place = list(DTYPES).index(row.dtype), list(MODES).index(row.mode), row.threads
    return *place, case, row.case, provider, row.provider


def _is_absent(row: Row) -> bool:
    return row.error.startswith("absent: ")


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else f"{value:g}"


def _size(row: Row) -> str:
    optional = [f"{name}{value}" for name, value, usual in (("D", row.D, 1), ("P", row.P, 0)) if value != usual]
    optional += [f"V{row.V}"] if row.mode == "lm_step" else []
    case = case_of(row)
    optional += [f"resets {100 * case.resets:g}%"] if case.form == "resets" else []
    optional += ["alternating"] if case.form == "alternating" else []
    return " ".join([f"T{row.T} N{row.N} I{row.I} H{row.H} L{row.L}", *optional])


def _time(row: Row | None) -> str:
    """A time with its unit, or in words why there is none."""
    if row is None:
        return "-"
    if row.error or row.median_us is None:
        return "absent" if _is_absent(row) else "error"
    scale, unit = (1.0, "us") if row.median_us < 1000 else (1e3, "ms")
    spread = ""
    if row.provider in (OURS, OURS_GRAPH) and row.p20_us is not None and row.p80_us is not None:
        spread = f" ({digits(row.p20_us / scale)}..{digits(row.p80_us / scale)})"
    return f"{digits(row.median_us / scale)} {unit}{spread}"


def _speedup(group: Group, other: str) -> str:
    value, ends = ratio(group, other), interval(group, other)
    if value is None:
        return "-"
    return digits(value) + (f" ({digits(ends[0])}..{digits(ends[1])})" if ends else "")


def _speedups(of_kind: Sequence[Group]) -> dict[str, list[str]]:
    """Columns of speed-ups; graphs have some only where one was measured."""
    columns = {}
    for wanted in KINDS:
        other = TORCH if wanted == EAGER else TORCH_GRAPH
        cells = [_speedup(group, other) if kind(group, other) == wanted else "-" for group in of_kind]
        if wanted == EAGER or set(cells) != {"-"}:
            columns[f"speed-up over nn.LSTM, {wanted}" + (" (95%)" if wanted != MIXED else "")] = cells
        if wanted == EAGER:
            fastest_others = map(fastest, of_kind)
            columns[f"over the fastest other, {EAGER}"] = [
                f"{digits(found[1])} ({label(found[0])})" if found else "-" for found in fastest_others
            ]
    return columns


def _rates(row: Row | None) -> list[str]:
    """TFLOP/s, GB/s and per cent of the bound."""
    time = time_us(row)
    if row is None or time is None:
        return ["-", "-", "-"]
    case = case_of(row)
    rates = [flops(case, row.mode) / time / 1e6, least_bytes(case, row.mode, row.dtype) / time / 1e3]
    if row.peak_tflops <= 0 or row.peak_gb_s <= 0:
        return [*map(digits, rates), "-"]
    share = bound_us(case, row.mode, row.dtype, row.peak_tflops, row.peak_gb_s) / time
    return [*map(digits, rates), f"{100 * share:.0f}%"]


def _memory(row: Row | None) -> str:
    return "-" if row is None or row.peak_mib is None else digits(row.peak_mib)


def _table(of_kind: Sequence[Group]) -> list[str]:
    """The table of one dtype and mode, and what a reader must know beside it."""
    present = {name for group in of_kind for name, row in group.items() if not _is_absent(row)}
    of_ours = [OURS] + [OURS_GRAPH] * (OURS_GRAPH in present)
    others = [TORCH] * (TORCH in present) + sorted(present - {OURS, OURS_GRAPH, TORCH})
    speedups = _speedups(of_kind)
    header = ["case", "size", *map(label, of_ours), *speedups, *map(label, others), "TFLOP/s", "GB/s", "of bound"]
    with_memory = any(row.peak_mib is not None for group in of_kind for row in group.values())
    header += ["memory, MiB", "of nn.LSTM"] if with_memory else []
    lines = []
    for index, group in enumerate(of_kind):
        ours, first = group.get(OURS), next(iter(group.values()))
        cells = [first.case, _size(first), *(_time(group.get(name)) for name in of_ours)]
        cells += [column[index] for column in speedups.values()]
        cells += [*(_time(group.get(name)) for name in others), *_rates(ours)]
        lines.append(cells + ([_memory(ours), _memory(group.get(TORCH))] if with_memory else []))
    return [_markdown(header, lines), *_means(of_kind, others), *_remarks(of_kind)]


def _pair(group: Group, other: str) -> str:
    """Another provider for readers; one in a graph with what fusedlstm is."""
    return f"{label(TORCH)} ({kind(group, other)})" if other == TORCH_GRAPH else label(other)


def _means(of_kind: Sequence[Group], others: Sequence[str]) -> list[str]:
    found: dict[str, list[float]] = {}
    for name in others:
        for group in of_kind:
            if (value := ratio(group, name)) is not None:
                found.setdefault(_pair(group, name), []).append(value)
    found[f"the fastest other, {EAGER}"] = [each[1] for group in of_kind if (each := fastest(group))]
    means = [
        f"{name} {digits(geometric_mean(values))} ({_count(len(values), 'case')})"
        for name, values in found.items()
        if values
    ]
    return [f"Geometric mean of the speed-up, over the cases that both have: {', '.join(means)}."] if means else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _remarks(of_kind: Sequence[Group]) -> list[str]:
    """The rates of the machine, then errors and notes of single rows."""
    rows = [row for group in of_kind for row in group.values()]
    rates = [(row.peak_tflops, row.peak_gb_s) for row in rows if row.peak_tflops > 0 and row.peak_gb_s > 0]
    spans = ["..".join(dict.fromkeys([digits(min(each)), digits(max(each))])) for each in zip(*rates, strict=True)]
    remarks = [f"Rates of the machine: {spans[0]} TFLOP/s, {spans[1]} GB/s."] if spans else []
    noted: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        text = " ".join((row.error or row.note).split()).replace("|", "\\|")
        if text and not _is_absent(row):
            noted.setdefault((label(row.provider), text), []).append(row.case)
    lines = [f"- {provider}, {', '.join(cases)}: {text}" for (provider, text), cases in noted.items()]
    return [*remarks, *(["\n".join(lines)] if lines else [])]


def _slower(found: dict[Key, Group]) -> list[str]:
    """Every case in which another provider is faster, worst first, and those in which only others have a time."""
    compared = {key: ratios(group) for key, group in found.items() if ratios(group)}
    losses = {key: {name: value for name, value in each.items() if value < 1} for key, each in compared.items()}
    losses = dict(sorted(((k, v) for k, v in losses.items() if v), key=lambda item: min(item[1].values())))
    lines = []
    for (dtype, mode, threads, case), others in losses.items():
        group = found[dtype, mode, threads, case]
        pairs = [f"{_pair(group, name)} {_speedup(group, name)}" for name in others]
        lines.append([case, mode, dtype, str(threads), ", ".join(pairs)])
    parts = [
        "## Where fusedlstm is slower",
        f"Another provider is faster in {len(losses)} of {_count(len(compared), 'measurement')}.",
    ]
    if lines:
        parts.append(_markdown(["case", "mode", "dtype", "threads", "faster than fusedlstm, with the speed-up"], lines))
    return parts + _missing(found)


def _missing(found: dict[Key, Group]) -> list[str]:
    """The cases for which only others have a time, and those for which that is so in a graph."""
    missing: dict[str, list[str]] = {}
    for (dtype, mode, _, case), group in found.items():
        times = {name for name, row in group.items() if time_us(row) is not None}
        lacks = {
            OURS: OURS not in times and times,
            OURS_GRAPH: OURS_GRAPH in group.keys() - times and TORCH_GRAPH in times,
        }
        for name in (name for name, lacks_it in lacks.items() if lacks_it):
            missing.setdefault(name, []).append(f"{case} {mode} {dtype}")
    return [f"Without a time of {label(n)}, though another has one: {', '.join(c)}." for n, c in missing.items()]


def _absent(found: dict[Key, Group]) -> list[str]:
    """Providers that were not there, with the reason."""
    reasons = sorted(
        {(row.provider, row.error) for group in found.values() for row in group.values() if _is_absent(row)}
    )
    lines = [f"- {label(name)}: {' '.join(error.removeprefix('absent: ').split())}" for name, error in reasons]
    return ["## Absent providers", "\n".join(lines)] if lines else []


def speed(machines: Sequence[Sequence[Row]]) -> str:
    """The README's table: a line for each machine and dtype, with the largest number of threads that was measured.

    There are four dtypes, and `shown` gives two machines at most: eight lines.
    """
    lines, notes = [], []
    for rows in machines:
        threads = max(row.threads for row in rows)
        found = groups(row for row in rows if row.threads == threads and row.mode in _SUMMARY_MODES)
        for dtype in dict.fromkeys(key[0] for key in found):
            line = [rows[0].device, dtype]
            for mode in _SUMMARY_MODES:
                of_kind = [group for key, group in found.items() if key[:2] == (dtype, mode)]
                line += [_mean([v for group in of_kind if (v := of(group)) is not None]) for of in _SUMMARIES.values()]
            lines.append(line)
        every = f"[every case](benchmarks/results/{folder(rows)}/tables.md)"
        notes.append(f"- {'. '.join([caption(rows), *_lowest(found), *_missing(found)]).rstrip('.')}: {every}.")
    header = ["device", "dtype", *(f"{mode}: {name}" for mode in _SUMMARY_MODES for name in _SUMMARIES)]
    shown = [index for index in range(len(header)) if any(line[index] != "-" for line in lines)]
    text = (
        "Speed-up of fusedlstm: the other's time divided by its own, geometric mean over all cases. In brackets: in how"
        " many of them fusedlstm is slower. Eager means without a CUDA graph. The fastest other is looked for in each"
        " case."
    )
    table = _markdown([header[index] for index in shown], [[line[index] for index in shown] for line in lines])
    return "\n\n".join([text, table, "\n".join(notes)])


def _fastest_ratio(group: Group) -> float | None:
    found = fastest(group)
    return found[1] if found else None


# Columns of the README's table in each mode: the speed-up that a group has. Those without any are left out.
_SUMMARIES: dict[str, Callable[[Group], float | None]] = {
    f"over nn.LSTM, {EAGER}": lambda group: over_torch(group, EAGER),
    f"over the fastest other, {EAGER}": _fastest_ratio,
    f"over nn.LSTM, {GRAPHS}": lambda group: over_torch(group, GRAPHS),
    f"over nn.LSTM, {MIXED}": lambda group: over_torch(group, MIXED),
}


def _mean(speedups: Sequence[float]) -> str:
    """The geometric mean, and how many are below 1."""
    losses = sum(value < 1 for value in speedups)
    return f"{digits(geometric_mean(speedups))} ({losses} of {len(speedups)})" if speedups else "-"


def _lowest(found: dict[Key, Group]) -> list[str]:
    """The lowest speed-up over nn.LSTM, with its case, of each kind of pair."""
    pairs: dict[str, list[tuple[float, Key]]] = {}
    for key, group in found.items():
        for name in (TORCH, TORCH_GRAPH):
            if (value := ratio(group, name)) is not None:
                pairs.setdefault(_pair(group, name), []).append((value, key))
    lowest = [f"{name} {digits(min(each)[0])} ({', '.join(_of(min(each)[1]))})" for name, each in pairs.items()]
    return [f"Lowest over {'; '.join(lowest)}"] if lowest else []


def _of(key: Key) -> tuple[str, str, str]:
    dtype, mode, _, case = key
    return case, mode, dtype


def figure(machines: Sequence[Sequence[Row]]) -> str:
    """The README's figure: that of the first machine, which is the GPU where one was measured."""
    rows = machines[0]
    found = groups(rows).values()
    kinds = [wanted for wanted in KINDS if any(over_torch(group, wanted) is not None for group in found)]
    text = f"Speed-up of fusedlstm over nn.LSTM on {rows[0].device} ({'; '.join(kinds)})"
    return f"![{text}, by case](benchmarks/results/{folder(rows)}/speedup.svg)"


def update_readme(readme: Path, machines: Sequence[Sequence[Row]]) -> None:
    """Replaces what stands between the README's markers by the figure and the table.

    Raises:
        ValueError: the file does not have each marker once, in their order.
    """
    text = readme.read_text(encoding="utf-8")
    for name, section in sections(machines).items():
        begin, end = markers(name)
        found = re.findall(f"{begin}|{end}", text)
        if found != [begin, end]:
            raise ValueError(
                f"{readme}: must have the lines {begin} and {end} once each, in this order, got {found}; add them"
            )
        text = f"{text.split(begin)[0]}{begin}\n{section}\n{end}{text.split(end)[1]}"
    readme.write_text(text, encoding="utf-8")


def sections(machines: Sequence[Sequence[Row]]) -> dict[str, str]:
    """What of the README is made of rows, by the name of its markers."""
    return {"figure": figure(machines), "speed": speed(machines)}


def markers(name: str) -> tuple[str, str]:
    """The lines around a section of the README."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
