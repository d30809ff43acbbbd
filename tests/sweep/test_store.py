"""Results files: whole lines whatever happens, and half ones cut off."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import FrontierPoint, Measured
from quantgolf.sweep.store import Claim, ResultsFile

POINT = FrontierPoint("a", "m", "f", 10, "slope", {"solver": "slope"}, {"fingerprint": "t"}, bytes=5, kl=Measured(0.1))


def point(key: str, status: str = "done") -> FrontierPoint:
    return replace(POINT, key=key, status=status, error="" if status == "done" else "too small")


def test_points_come_back_in_order_and_a_finished_one_wins(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "r.jsonl")
    assert file.read().points == {}
    for each in (point("a", "failed"), point("b"), point("a"), point("b", "failed")):
        file.append(each)
    stored = file.read()
    assert {key: p.status for key, p in stored.points.items()} == {"a": "done", "b": "done"} and stored.notes == ()


@given(cut=st.integers(1, len(POINT.line()) - 1))
def test_half_a_last_line_is_said_cut_off_and_written_anew(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("store") / "r.jsonl"
    file = ResultsFile(path)
    file.append(point("b"))
    whole = path.read_bytes()
    with path.open("ab") as stream:
        stream.write(POINT.line().encode()[:-cut])
    stored = file.read()
    if cut == 1:  # all of it but the line break
        assert set(stored.points) == {"a", "b"} and not stored.notes
        whole += POINT.line().encode()
    else:
        assert set(stored.points) == {"b"} and len(stored.notes) == 1 and "half written" in stored.notes[0]
    file.append(point("c"))
    assert path.read_bytes() == whole + point("c").line().encode()
    assert file.read().notes == ()


def test_a_foreign_line_in_the_middle_is_left_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(point("a").line() + "what is this\n\n" + point("b").line())
    file = ResultsFile(path)
    file.append(point("c"))
    stored = file.read()
    assert set(stored.points) == {"a", "b", "c"}
    assert len(stored.notes) == 1 and "line 2 is left out" in stored.notes[0]
    assert "what is this" in path.read_text()


@pytest.mark.parametrize("written", [0, 7, None])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None) -> None:
    path = tmp_path / "r.jsonl"
    file = ResultsFile(path)
    file.append(point("a"))
    before, write = path.read_bytes(), os.write

    def full(descriptor: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:written])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(QuantGolfError, match=r"No space left on device.*what is finished"):
        file.append(point("b"))
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuantGolfError, match="No such file"):
        ResultsFile(tmp_path / "none" / "r.jsonl").append(point("a"))
    with pytest.raises(QuantGolfError, match="Is a directory"):
        ResultsFile(tmp_path).read()


def test_many_write_at_once(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "r.jsonl")
    writers = [
        threading.Thread(target=lambda n=n: [file.append(point(f"{n}-{i}")) for i in range(20)]) for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(file.read().points) == 80 and file.read().notes == ()


def test_a_claim_is_held_by_one(tmp_path: Path) -> None:
    first, second = Claim(tmp_path / "claims", "k"), Claim(tmp_path / "claims", "k")
    assert first.take() and not second.take()
    first.drop()
    assert second.take()
    second.drop()
