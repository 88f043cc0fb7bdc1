"""Rows: one CSV line for each provider, case, mode and dtype of a machine, with units in the column names."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

# What identifies a row: measuring it again replaces it.
KEY = ("case", "provider", "mode", "dtype", "threads")


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none (`error`, and then no times)."""

    case: str
    provider: str
    mode: str
    dtype: str
    threads: int  # of the CPU
    T: int
    N: int
    I: int
    H: int
    L: int
    D: int
    P: int
    V: int
    median_us: float | None = None
    p20_us: float | None = None
    p80_us: float | None = None
    samples: int = 0
    ratio: float | None = None  # time of the provider's baseline, nn.LSTM, over its own: above 1, it is faster
    ratio_low: float | None = None  # 95% interval of it, by bootstrap over the rounds
    ratio_high: float | None = None
    first_call_us: float | None = None  # compilation, packing and warming up included
    peak_mib: float | None = None  # memory at its peak beyond what was there: of the GPU, or of the process on a CPU
    kernels: str = ""  # names of the GPU kernels that took most of the time
    note: str = ""  # what a reader must know of this provider here
    error: str = ""
    peak_tflops: float = 0.0  # of a large matrix product in this dtype on this machine, in the same run
    peak_gb_s: float = 0.0  # of a large copy, bytes read and written
    device: str = ""
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    torch: str = ""
    fusedlstm: str = ""
    commit: str = ""
    date: str = ""


_TYPES = {field.name: field.type for field in fields(Row)}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Puts rows into a file; those with the same key as an older one replace it."""
    merged = {_key(row): row for row in [*(read(path) if path.exists() else []), *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(merged.values(), key=_key))
    partial.replace(path)


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        ValueError: the file's columns are not those of a row.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [field.name for field in fields(Row)]:
            raise ValueError(f"{path}: columns must be those of benchmarks.records.Row; run the benchmarks again")
        return [Row(**{name: _parse(name, text) for name, text in line.items()}) for line in reader]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(getattr(row, name)) for name in KEY)


def _parse(name: str, text: str) -> str | int | float | None:
    kind = _TYPES[name]
    if kind is str:
        return text
    if kind is int:
        return int(text)
    return float(text) if text else None
