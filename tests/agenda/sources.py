"""Digests of the sources that records depend on."""

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from agenda.part import Part

ROOT = Path(__file__).parents[2]
EVERY_PART = ("setup.py", "csrc/*", "csrc/cuda/*", "fusedlstm/*.py")
"""Sources that the record of every part depends on: not the CPU's kernels."""


class Sources:
    """Digests of the sources under a folder, which must not change meanwhile: each file is read once."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._of_file = cache(lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
        self._files = cache(lambda pattern: [path for path in root.glob(pattern) if _is_source(path)])

    def digest(self, patterns: Iterable[str], more: str = "") -> str:
        """Stands for the names and contents of all files that a pattern fits, and for the text ``more``."""
        files = {path for pattern in patterns for path in self._files(pattern)}
        lines = sorted(f"{path.relative_to(self.root).as_posix()} {self._of_file(path)}" for path in files)
        return hashlib.sha256("\n".join([more, *lines]).encode()).hexdigest()

    def of_part(self, part: Part) -> str:
        """The same for what a part's record depends on, its command among it."""
        return self.digest((*EVERY_PART, *part.sources), " ".join(part.command))

    def of_all(self, parts: Iterable[Part]) -> str:
        """One digest for all parts."""
        return self.digest([], " ".join(self.of_part(part) for part in parts))


def _is_source(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".md", ".pyc", ".so")
