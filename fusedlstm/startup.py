"""Ctrl-C while ``python -m fusedlstm`` starts and ends: exit status 130 without a traceback.

The command imports torch, which takes seconds, before any code of its own could catch the exception.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTED = 130


def is_command() -> bool:
    """Return whether this process runs ``python -m fusedlstm`` and is about to import it."""
    # Python replaces the "-m" in sys.argv once it has found the module. The rest are the command's own arguments.
    return sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] in ("fusedlstm", "-mfusedlstm")


def exit_on_ctrl_c() -> None:
    """Lets Ctrl-C end the process at once, unless the process was started to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt in the block, as it usually does; after it, the process ends at once."""
    if signal.getsignal(signal.SIGINT) is not _exit:
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:  # in the moment before the block began or after it ended
        os._exit(_INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)
