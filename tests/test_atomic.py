"""A name holds a whole file or what was there before, whatever goes wrong on the way."""

import errno
import os
import stat
from pathlib import Path

import pytest

from quantgolf import atomic
from quantgolf.atomic import append_line, fill, held, refuse_unwritable, unfinished, written
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


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    write = os.write
    monkeypatch.setattr(atomic.os, "write", lambda file, data: write(file, data[:2]))
    with pytest.raises(QuantGolfError, match="expected room for it"):
        append_line(path, "three")
    monkeypatch.undo()
    assert path.read_text() == "one\ntwo\n"
    with pytest.raises(QuantGolfError, match="expected a folder"):
        append_line(tmp_path / "no" / "a", "x")


@pytest.mark.parametrize(("rest", "kept"), [(b'{"a": 1}', b'{"a": 1}\n'), (b'{"a": "\xe6', b""), (b"[" * 200_000, b"")])
def test_half_a_last_line_is_cut_off(tmp_path: Path, rest: bytes, kept: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"{}\n" + rest)
    append_line(path, "{}")
    assert path.read_bytes() == b"{}\n" + kept + b"{}\n"


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
