"""Lines of JSON: added whole or not at all, and to nothing that holds anything else."""

import os
from pathlib import Path

import pytest

from quantgolf.errors import QuantGolfError
from quantgolf.json_lines import append_line, refuse_unlike


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    append_line(path, "1")
    append_line(path, "2")
    assert path.read_text() == "1\n2\n"
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:2]))
    with pytest.raises(QuantGolfError, match="expected room for it"):
        append_line(path, "333")
    monkeypatch.undo()
    assert path.read_text() == "1\n2\n"
    with pytest.raises(QuantGolfError, match="expected a folder"):
        append_line(tmp_path / "no" / "a", "x")


@pytest.mark.parametrize(
    ("rest", "kept"), [(b'{"a": 1}', b'{"a": 1}\n'), (b'{"a": "\xe6', b""), (b'{"a":' * 50_000, b"")]
)
def test_half_a_last_line_is_cut_off(tmp_path: Path, rest: bytes, kept: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"{}\n" + rest)
    append_line(path, "{}")
    assert path.read_bytes() == b"{}\n" + kept + b"{}\n"


@pytest.mark.parametrize(
    "text",
    [b"my diary\nby hand, without line break", b"by hand\n", b"{}\nby hand", b'\x8a\0\0\0\0\0\0\0{"a":', b"[1,\n 2\n]"],
)
def test_nothing_is_added_to_what_is_no_such_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(text)
    for refused in (lambda: append_line(path, "{}"), lambda: refuse_unlike(path)):
        with pytest.raises(QuantGolfError, match=r"ends in .*, expected lines of JSON"):
            refused()
    assert path.read_bytes() == text


@pytest.mark.parametrize("text", [b"", b"{}\n", b"{}", b'{"a', b'{"a": 1}\n{"b', b"x\n{}\n", b"{" + b"1" * 300_000])
def test_what_is_one_is_not_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a"
    refuse_unlike(path)
    path.write_bytes(text)
    refuse_unlike(path)
    assert path.read_bytes() == text


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuantGolfError, match="Is a directory"):
        refuse_unlike(tmp_path)
