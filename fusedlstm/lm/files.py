"""The file that a run writes: what may be replaced, how it is replaced in one step, and the lock of the run.

A link is followed to the file it names, which is then replaced; the link stays. Nothing but a regular file is replaced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_LOCK_START = "fusedlstm: "
_LOCK_BYTES = 300
# Some network file systems have no locks. Training there is better than none.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def _kind(mode: int) -> str | None:
    """What the st_mode of a file says it is, None if that is a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_to_read(name: str, pipes: bool = False) -> BinaryIO:
    """Open a regular file for reading; a device may have no end.

    Args:
        name: absolute, or relative to the working directory.
        pipes: whether it may be a pipe too.

    Returns:
        The file, at its beginning.

    Raises:
        OSError: it is something else, or cannot be read.

    Example:
        >>> with open_to_read("text.txt") as file:  # doctest: +SKIP
        ...     text = file.read()
    """
    _check_name(name)
    mode = Path(name).stat().st_mode
    found = _kind(mode)
    if found and not (pipes and stat.S_ISFIFO(mode)):
        raise OSError(f"it is {found}")
    return Path(name).open("rb")


def _check_name(name: str) -> None:
    if not name or name.endswith(os.sep):
        raise OSError("the name of a file is missing")
    if "\0" in name:
        raise OSError("its name holds a zero byte")


def resolve(path: str | os.PathLike[str]) -> Path:
    """Find the regular file that a path names or would create.

    Args:
        path: absolute, or relative to the working directory.

    Returns:
        Its absolute path without links.

    Raises:
        OSError: it is something else, a link to no file, or cannot be written; the text is the reason alone.

    Example:
        >>> resolve("model.safetensors").name
        'model.safetensors'
    """
    name = os.fspath(path)
    _check_name(name)
    target = Path(os.path.realpath(name))
    try:
        found = _kind(os.stat(name).st_mode)  # noqa: PTH116 - of the name as it is, since Path drops a final dot
    except FileNotFoundError as error:
        if Path(name).is_symlink():
            raise OSError("it is a link to no file") from error
        if not target.parent.is_dir():
            raise OSError("there is no such folder") from error
    except OSError as error:
        raise OSError(error.strerror) from error
    else:
        if found:
            raise OSError(f"it is {found}")
        if not os.access(target, os.W_OK):
            raise OSError("it is write-protected")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OSError("its folder is write-protected")
    return target


def replace(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one step: until all is on the disk, and after any failure, the old contents stay.

    The data go to a new file beside it, whose name nobody can know before. The mode is that of the file replaced, or of
    any new file.

    Args:
        path: the file to create or replace; a link is followed.
        data: its contents.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> replace("model.safetensors", b"")  # doctest: +SKIP
    """
    target = resolve(path)
    temporary = target.with_name(f".fusedlstm-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError, PermissionError):  # a new file; a file system without modes
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode) & 0o777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # noqa: PTH105 - atomic on POSIX
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Claim a file for the block, against other processes that claim it, on other hosts too if they share its folder.

    The lock is that of the kernel on a file beside it, FILE.lock, so that it ends with its process, however that ends.
    FILE.lock says who holds the lock, and is removed at the end; one that a killed run left is taken over.

    Args:
        path: as for :func:`replace`.

    Raises:
        BlockingIOError: another process holds the lock; the text says which.
        OSError: the path cannot be written, see :func:`resolve`, or FILE.lock is in the way.

    Example:
        >>> with lock("model.safetensors"):  # doctest: +SKIP
        ...     replace("model.safetensors", b"")
    """
    target = resolve(path)
    beside = target.with_name(target.name + ".lock")
    try:
        descriptor = _locked(beside)
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(f"cannot lock it by {beside}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            beside.unlink()  # before the lock ends, so that nobody's but ours is removed
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Returns the descriptor of the lock file, locked and with this process's name in it."""
    while True:
        # Not blocking, for a pipe in its place.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
        try:
            if _claim(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _claim(descriptor: int, path: Path) -> bool:
    """Locks the file and writes this process's name into it; False if its holder has removed it meanwhile."""
    status = os.fstat(descriptor)
    text = os.pread(descriptor, _LOCK_BYTES, 0).decode(errors="replace") if stat.S_ISREG(status.st_mode) else "?"
    if status.st_nlink > 1 or (text and not text.startswith(_LOCK_START)):
        raise OSError("that is a file of something else; remove it")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(text.removeprefix(_LOCK_START).strip() or "a process that just began") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            return False
    except FileNotFoundError:
        return False
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{_LOCK_START}process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
    return True
