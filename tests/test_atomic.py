"""A name holds a whole file or what was there before, whatever goes wrong on the way."""

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from quantgolf import atomic
from quantgolf.atomic import fill, held, lock, refuse_unwritable, unfinished, written
from quantgolf.errors import QuantGolfError


def rests(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, QuantGolfError])
def test_what_raises_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), written(path, overwrite=True) as beside:
        fill(beside, b"half")
        raise error
    assert path.read_text() == "old" and rests(tmp_path) == ["a"]


def test_the_old_file_is_there_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with written(path, overwrite=True) as beside:
        fill(beside, b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and rests(tmp_path) == ["a"]
    with pytest.raises(QuantGolfError, match="exists already"), written(path):
        raise AssertionError("not entered")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "No space left on device, expected room for it; free some"),
     (errno.EROFS, "Read-only file system, expected a folder to write to; choose another")],
)  # fmt: skip
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_disk_that_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str, call: str
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, call, refuse)
    with pytest.raises(QuantGolfError, match=expected), written(path, overwrite=True) as beside:
        fill(beside, b"new")
    monkeypatch.undo()
    assert path.read_text() == "old" and rests(tmp_path) == ["a"]


def test_everybody_may_read_who_could_have(tmp_path: Path) -> None:
    path, plain = tmp_path / "a", tmp_path / "b"
    plain.touch()
    with written(path) as beside:  # made anew for its owner alone, as safetensors does
        beside.unlink()
        os.close(os.open(beside, os.O_CREAT | os.O_WRONLY, 0o600))
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_names_that_cannot_be_written_are_found_out_before(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "a")
    assert rests(tmp_path) == []
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "a", "expected a folder to write to")):
        with pytest.raises(QuantGolfError, match=why):
            refuse_unwritable(path, overwrite=True)


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    dead, living, other = unfinished(path), unfinished(path), unfinished(tmp_path / "b")
    dead.mkdir()
    (dead / "statistics-00000.safetensors").write_bytes(b"half")
    unfinished(path).write_bytes(b"half")
    living.write_bytes(b"half")
    other.write_bytes(b"half")
    with held(living), written(path) as beside:
        fill(beside, b"new")
    assert path.read_bytes() == b"new" and rests(tmp_path) == sorted(["a", living.name, other.name])
    with written(path, overwrite=True) as beside:
        fill(beside, b"newer")
    assert rests(tmp_path) == sorted(["a", other.name])


def test_of_two_that_may_not_overwrite_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with pytest.raises(QuantGolfError, match="exists already"), written(path) as beside:
        fill(beside, b"late")
        path.write_bytes(b"first")
    assert path.read_bytes() == b"first" and rests(tmp_path) == ["a"]
    path.unlink()

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(atomic.os, "link", no_links)
    with written(path) as beside:
        fill(beside, b"one")
    assert path.read_bytes() == b"one" and rests(tmp_path) == ["a"]
    path.unlink()
    with pytest.raises(QuantGolfError, match="exists already"), written(path) as beside:
        path.write_bytes(b"first")
    assert path.read_bytes() == b"first"


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    with written(link, overwrite=True) as beside:
        fill(beside, b"new")
    assert link.is_symlink() and real.read_bytes() == b"new" and real.stat().st_mode & 0o777 == 0o600
    real.unlink()  # and one that leads nowhere yet
    with written(link, overwrite=True) as beside:
        fill(beside, b"again")
    assert real.read_bytes() == b"again" and rests(tmp_path / "far") == ["real"]


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(QuantGolfError, match="is a device or a pipe"):
            refuse_unwritable(path, overwrite=True)


@pytest.mark.parametrize("number", atomic.UNLOCKED)
def test_without_locks_files_are_written_and_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unlocked(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.fcntl, "flock", unlocked)
    path = tmp_path / "a"
    left = unfinished(path)
    left.write_bytes(b"of a run that may live")
    with written(path) as beside:
        fill(beside, b"x")
    assert path.read_bytes() == b"x" and left.exists()


def test_locks_are_of_files_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS gives exclusive ones of no others."""
    flock, path = fcntl.flock, tmp_path / "a"

    def strict(handle: int, how: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, how)

    monkeypatch.setattr(atomic.fcntl, "flock", strict)
    left = unfinished(path)
    left.write_bytes(b"dead")
    with written(path) as beside:
        handle = os.open(beside, os.O_RDWR)
        assert lock(handle, wait=False) is False
        os.close(handle)
        fill(beside, b"x")
    assert rests(tmp_path) == ["a"]


def test_a_link_is_tried_out_where_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "no" / "such")
    with pytest.raises(QuantGolfError, match="expected a folder to write to"):
        refuse_unwritable(link, overwrite=True)
    link.unlink()
    link.symlink_to(link)  # to itself: there is nothing else to write to
    refuse_unwritable(link, overwrite=True)
    with written(link, overwrite=True) as beside:
        fill(beside, b"x")
    assert link.read_bytes() == b"x" and rests(tmp_path) == ["link"]
