"""The archive that carries records from the machine that made them to a checkout."""

import hashlib
import io
import json
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import records

LIMIT = 16_000_000
"""Bytes of an archive."""

_MANIFEST, _LEFT_OUT = "manifest.json", "left-out.txt"
_ROWS = "rows.csv"
_FOLDER = "[a-z0-9-]+"
_NAMES = re.compile(rf"{_MANIFEST}|{_LEFT_OUT}|began/{_ROWS}|results/{_FOLDER}(/[\w-][\w.-]*)+")


class RefusedError(ValueError):
    """An archive that does not belong here."""


class Packing:
    """Packs what changes in a machine's folder from now on.

    The archive has results/<machine>/..., the files that were changed or made since; began/rows.csv, the rows before;
    manifest.json, where they are from and the digest of what each file was before; left-out.txt, the files that were
    too large, if any.

    Args:
        folder: the machine's folder of records.
        out: where records.tar.gz goes.
        commit: what the records are of.
        sources: digest of all sources.
    """

    def __init__(self, folder: Path, out: Path, commit: str, sources: str) -> None:
        self.folder, self.path = folder, out / "records.tar.gz"
        self._facts = {"folder": folder.name, "commit": commit, "sources": sources}
        self._before = _contents(folder)

    def pack(self, limit: int = LIMIT) -> list[str]:
        """Writes the archive in one step.

        Returns:
            The files that did not fit, the largest ones.
        """
        now = _contents(self.folder)
        changed = {name: data for name, data in now.items() if self._before.get(name) != data}
        left_out: list[str] = []
        while len(packed := self._archive(changed, left_out)) > limit and changed:
            left_out.append(max(changed, key=lambda name: len(changed[name])))
            del changed[left_out[-1]]
        _replace(self.path, packed)
        return left_out

    def _archive(self, changed: dict[str, bytes], left_out: list[str]) -> bytes:
        began = {name: _digest(self._before[name]) for name in changed if name in self._before}
        files = {_MANIFEST: json.dumps(self._facts | {"began": began}, indent=1).encode()}
        files |= {f"results/{self.folder.name}/{name}": data for name, data in changed.items()}
        if _ROWS in changed and _ROWS in self._before:
            files[f"began/{_ROWS}"] = self._before[_ROWS]
        if left_out:
            files[_LEFT_OUT] = "".join(f"{name}\n" for name in left_out).encode()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return buffer.getvalue()


def collect(path: Path, results: Path, sources: str, commit: str, force: bool = False) -> list[str]:
    """Puts the records of an archive in their places.

    A file replaces the one it began from. Of rows.csv, the rows that the run measured replace those with the same key,
    whatever else was measured meanwhile. Of two records of one part's run the newer stays.

    Args:
        path: the archive.
        results: folder of all records.
        sources: digest of this checkout's sources.
        commit: name of this checkout's sources.
        force: also take records of other sources, and files whose predecessor has changed here.

    Returns:
        The files that were changed, and those that the run had left out, with a note.

    Raises:
        RefusedError: the archive is not one, is of other sources, or has a file whose predecessor has changed here.
    """
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = Path(temporary)
        manifest = _unpack(path, unpacked)
        if manifest["sources"] != sources and not force:
            raise RefusedError(
                f"{path} must be of this checkout's sources ({commit}), got those of {manifest['commit']}; check that "
                "commit out, or take the records as stale ones with FORCE=1"
            )
        folder, from_there = results / manifest["folder"], unpacked / "results" / manifest["folder"]
        here = _contents(folder)
        new = {name: data for name, data in _contents(from_there).items() if here.get(name) != data}
        conflicts = [name for name in new if not _has_place(name, here, manifest["began"])]
        if conflicts and not force:
            raise RefusedError(
                f"{', '.join(conflicts)} in {folder} must be what the run began with, got another; collect an archive "
                "before the next run starts, or replace what is here with FORCE=1"
            )
        for name, data in new.items():
            if name == _ROWS and name in here:
                _merge_rows(folder / name, from_there / name, unpacked / "began" / name)
            elif not (name.startswith("agenda/") and _date(data) < _date(here.get(name, b""))):
                _replace(folder / name, data)
        left_out = unpacked / _LEFT_OUT
        notes = left_out.read_text().splitlines() if left_out.exists() else []
    return [f"{folder.name}/{name}" for name in new] + [f"{name}: left out of the archive, too large" for name in notes]


def _unpack(path: Path, to: Path) -> dict[str, Any]:
    """Unpacks the files of an archive if all of them have the names of one, and returns its manifest."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            members = tar.getmembers()
            wrong = [member.name for member in members if not (member.isfile() and _NAMES.fullmatch(member.name))]
            if wrong:
                raise RefusedError(
                    f"{path} must have files of records alone, got {', '.join(wrong)}; nothing was unpacked"
                )
            tar.extractall(to, filter="data")
        manifest: dict[str, Any] = json.loads((to / _MANIFEST).read_text())
    except RefusedError:
        raise
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise RefusedError(f"{path} must be an archive of `make gpu-agenda`, got: {error}") from error
    if manifest.keys() != {"folder", "commit", "sources", "began"} or not re.fullmatch(_FOLDER, manifest["folder"]):
        raise RefusedError(f"{path} must have the manifest of an archive of `make gpu-agenda`, got {manifest}")
    return manifest


def _has_place(name: str, here: dict[str, bytes], began: dict[str, str]) -> bool:
    """Whether a file overwrites nothing that its run did not know; rows are merged, records of parts have dates."""
    return name not in here or name == _ROWS or name.startswith("agenda/") or began.get(name) == _digest(here[name])


def _merge_rows(target: Path, after: Path, before: Path) -> None:
    known = set(records.read(before)) if before.exists() else set()
    records.write(target, [row for row in records.read(after) if row not in known])


def _date(record: bytes) -> str:
    """When a part ended; empty for what is no record."""
    try:
        return str(json.loads(record)["date"])
    except (KeyError, TypeError, ValueError):
        return ""


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its name in there; none if there is no folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.suffix != ".partial"}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
