"""The lines that the commands print: errors in one line each, and text that any terminal can show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_LONGEST = 1000


def process() -> str:
    """Number of this process among those that torchrun started."""
    return os.environ.get("RANK", "0")


def fail(message: str) -> None:
    """Prints an error as one line to standard error."""
    where = "" if process() == "0" else f" in process {process()}"
    text = " ".join(message.split())
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    # One write, where print makes several: under torchrun the processes share a stream, and their texts would mix.
    sys.stderr.write(f"fusedlstm: error{where}: {_printable(text, sys.stderr)}\n")


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line to standard output, or to another stream."""
    stream = file or sys.stdout
    with output():
        print(_printable(text, stream), file=stream, flush=True)


def write(text: str) -> None:
    """Prints a part of a line to standard output; a character that it cannot encode becomes a question mark."""
    with output():
        sys.stdout.buffer.write(text.encode(sys.stdout.encoding, errors="replace"))
        sys.stdout.buffer.flush()


@contextmanager
def output() -> Iterator[None]:
    """Names the output in an error of writing it; a reader that has exited stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"output must be writable, got the error: {error.strerror or error}") from error


def drop_unwritable() -> None:
    """Forgets what a standard stream cannot write, since Python would try again at exit and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _printable(text: str, stream: TextIO) -> str:
    """The text with escapes for what the stream cannot encode or a terminal obeys; a file's name may hold anything."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
