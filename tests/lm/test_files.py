"""The file that a run writes: replaced in one step, by nobody else's name, locked against another run."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from fusedlstm.lm import files


def _others(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "model")


def test_the_new_file_has_a_new_name_each_time_and_no_link_is_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (names.append(source), replace(source, target)))
    for planted in ("model.tmp", "model.lock"):
        (tmp_path / planted).symlink_to("victim")
    for data in (b"first", b"second"):
        files.replace(tmp_path / "model", data)
        assert (tmp_path / "model").read_bytes() == data
    assert len({*names}) == 2

    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".fusedlstm-guessed.tmp").symlink_to("victim")
    with pytest.raises(FileExistsError):
        files.replace(tmp_path / "model", b"third")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "model").read_bytes() == b"second"
    assert _others(tmp_path) == [".fusedlstm-guessed.tmp", "model.lock", "model.tmp", "victim"]


def test_the_mode_is_that_of_the_file_replaced_or_of_any_new_file(tmp_path):
    path = tmp_path / "model"
    before = os.umask(0o027)
    try:
        files.replace(path, b"")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        files.replace(path, b"")
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").write_text("old")
    (tmp_path / "model").symlink_to("disk/real")
    files.replace(tmp_path / "model", b"new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "real").read_bytes() == b"new"
    assert _others(tmp_path / "disk") == ["real"]
    with files.lock(tmp_path / "model"), pytest.raises(BlockingIOError), files.lock(tmp_path / "disk" / "real"):
        pass


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=type)
def test_after_a_failure_the_old_contents_stay_and_nothing_else(tmp_path, monkeypatch, failing, error):
    (tmp_path / "model").write_text("old")

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        files.replace(tmp_path / "model", b"new")
    assert (tmp_path / "model").read_text() == "old"
    assert _others(tmp_path) == []


def _socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


REFUSED = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/null"),
    "a link to no file": lambda path: path.symlink_to("absent"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_nothing_but_a_regular_file_is_replaced(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    REFUSED[kind](Path("model"))
    before = os.lstat("model")
    for act in (lambda: files.replace("model", b""), lambda: files.lock("model").__enter__()):
        with pytest.raises(OSError, match=f"it is {kind}"):
            act()
    assert os.path.samestat(os.lstat("model"), before)
    assert _others(tmp_path) == []


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model").touch()
    for path in ("", f"{tmp_path}/new/"):
        with pytest.raises(OSError, match="the name of a file is missing"):
            files.resolve(path)
    with pytest.raises(OSError, match="there is no such folder"):
        files.resolve(tmp_path / "absent" / "model")
    for locked, message in ((tmp_path / "model", "it is write-protected"), (tmp_path, "its folder is write-protected")):
        # Not by mode, which binds no superuser.
        monkeypatch.setattr(os, "access", lambda path, mode, locked=locked: Path(path) != locked)
        with pytest.raises(OSError, match=message):
            files.resolve(tmp_path / "model")


def test_a_second_run_is_told_who_holds_the_lock(tmp_path):
    with files.lock(tmp_path / "model"):
        holder = rf"process {os.getpid()} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        with pytest.raises(BlockingIOError, match=holder), files.lock(tmp_path / "model"):
            pass
        with files.lock(tmp_path / "another"):
            pass
        assert _others(tmp_path) == ["model.lock"]
    assert _others(tmp_path) == []


def test_a_lock_that_a_killed_run_left_is_taken_over(tmp_path):
    left = tmp_path / "model.lock"
    left.write_text(
        "fusedlstm: process 1 on elsewhere since 1970-01-01 00:00:00+00:00, and more of it than a new one has\n"
    )
    with files.lock(tmp_path / "model"):
        assert left.read_text().startswith(f"fusedlstm: process {os.getpid()} on ")
        assert "more" not in left.read_text()
    assert not left.exists()


def test_a_lock_that_its_holder_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    held, flock = [], fcntl.flock

    def remove_once(descriptor, operation):
        if not held:
            (tmp_path / "model.lock").unlink()
        held.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with files.lock(tmp_path / "model"):
        assert len(held) == 2
        assert (tmp_path / "model.lock").exists()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with files.lock(tmp_path / "model"):
        pass


@pytest.mark.parametrize("kind", ["own file", "link", "hard link", "pipe"])
def test_a_lock_is_no_file_of_something_else(kind, tmp_path):
    planted, victim = tmp_path / "model.lock", tmp_path / "victim"
    victim.write_text("fusedlstm: precious")
    if kind == "own file":
        planted.write_text("precious")
    elif kind == "pipe":
        os.mkfifo(planted)
    else:
        (planted.symlink_to if kind == "link" else planted.hardlink_to)(victim)
    before = planted.lstat()
    reason = "Too many levels of symbolic links" if kind == "link" else "that is a file of something else; remove it"
    with pytest.raises(OSError, match=f"cannot lock it by {planted}: {reason}"), files.lock(tmp_path / "model"):
        pass
    assert os.path.samestat(planted.lstat(), before)
    assert "precious" in victim.read_text()
    assert kind != "own file" or planted.read_text() == "precious"
