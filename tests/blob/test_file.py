"""Files: whole or not there, never replaced unasked, and read only if they are ours."""

import os
from pathlib import Path

import pytest

from quantgolf.atomic import refuse_unwritable
from quantgolf.blob import MAGIC, read_blob, write_blob
from quantgolf.errors import FormatError, QuantGolfError


def test_writing_never_replaces_unasked_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.qg"
    write_blob(path, b"first")
    for write in (lambda: write_blob(path, b"second"), lambda: refuse_unwritable(path)):
        with pytest.raises(QuantGolfError, match="exists already"):
            write()
    assert path.read_bytes() == b"first"
    refuse_unwritable(path, overwrite=True)
    write_blob(path, b"third", overwrite=True)
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [lambda path: write_blob(path, b"x"), refuse_unwritable])
def test_places_that_cannot_be_written_are_refused(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with pytest.raises(QuantGolfError, match="expected a folder to write to"):
        write(tmp_path / "no" / "folder.qg")
    with pytest.raises(QuantGolfError, match="is a folder"):
        write(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(QuantGolfError, match="expected a folder to write to"):
        write(tmp_path / "file" / "a.qg")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.qg"
    write_blob(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QuantGolfError, match="No space left"):
        write_blob(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.qg"
    with pytest.raises(QuantGolfError, match=r"a\.qg: no such file"):
        read_blob(path)
    path.write_bytes(b"hello")
    with pytest.raises(FormatError, match=r"a\.qg: this is not a quantgolf file"):
        read_blob(path)
    path.write_bytes(MAGIC + b"\0\x90\x4e" + bytes(100))
    with pytest.raises(FormatError, match=r"a\.qg: the file is truncated: declares 10,000 more bytes, has 100"):
        read_blob(path)
    with pytest.raises(QuantGolfError, match="no such file"):
        read_blob(tmp_path)
