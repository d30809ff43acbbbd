"""A run that ends before its time leaves what is finished, and typed again it goes on and gives the same bytes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.atomic import fill
from quantgolf.checkpoint import read_demo
from quantgolf.compress.shelf import Shelf
from quantgolf.sweep.store import Claim

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(tiny_path: Path, prose: Path) -> list[object]:
    """All of the command but what is asked for and --out."""
    text = ["--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 64, "--tokens", 1024, "--no-guard"]
    return ["compress", tiny_path, "--model", tiny_path.parent / "card.json", *text, "--tune-steps", 0]


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has Ctrl-C come when so many matrices are kept; 0 for never."""
    keep = Shelf.keep

    def at(count: int) -> None:
        left = count

        def kept(self: Shelf, *what: Any) -> None:
            nonlocal left
            keep(self, *what)
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(Shelf, "keep", kept)

    return at


@pytest.mark.parametrize("asked", [["--max-bytes", "18kB"], ["--max-bytes", "18kB", "--solver", "gptq"],
                                   ["--bits", "*=4", "--group-size", 16, "--asymmetric", "--scales", "log"],
                                   ["--max-bytes", "18kB", "--offload"]])  # fmt: skip
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    run: Run, ran: Callable[..., Any], typed: list[object], stops: Callable[[int], None], tmp_path: Path,
    asked: list[object],
) -> None:  # fmt: skip
    whole = ran(*typed, *asked, "--out", "whole.qg")
    assert not any("before" in note for note in whole["notes"])
    for count in (1, 5):  # of the second stop the first matrices are found already
        stops(count)
        status, out, err = run(*typed, *asked, "--out", "a.qg")
        assert status == 130 and not out
        assert "are kept in a.qg.work. To go on: quantgolf compress" in err and "statistics and " in err
        assert not (tmp_path / "a.qg").exists()
    stops(0)
    resumed = ran(*typed, *asked, "--out", "a.qg")
    assert (tmp_path / "a.qg").read_bytes() == (tmp_path / "whole.qg").read_bytes()
    notes = [note for note in resumed["notes"] if "before" in note]
    assert notes[0].startswith("statistics are those") and "solved matrices are those of a run before" in notes[1]
    assert not [name for name in os.listdir(tmp_path) if "work" in name or "tmp" in name]
    told = {name: value for name, value in whole.items() if name not in ("file", "notes", "verified")}
    assert {name: resumed[name] for name in told} == told


def test_other_settings_do_not_take_what_is_there(
    run: Run, ran: Callable[..., Any], typed: list[object], stops: Callable[[int], None], tmp_path: Path
) -> None:
    stops(3)
    assert run(*typed, "--max-bytes", "18kB", "--out", "a.qg")[0] == 130
    stops(0)
    other = [*typed[: typed.index("--tokens") + 1], 512, *typed[typed.index("--tokens") + 2 :], "--max-bytes", "18kB"]
    assert not any("before" in note for note in ran(*other, "--out", "a.qg")["notes"])
    ran(*other, "--out", "b.qg", "--no-resume")
    assert (tmp_path / "a.qg").read_bytes() == (tmp_path / "b.qg").read_bytes()


def test_a_file_that_cannot_be_written_leaves_all_of_the_work(
    run: Run, ran: Callable[..., Any], typed: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(beside: Path, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr("quantgolf.compress.result.fill", broken)
        status, _, err = run(*typed, "--bits", "*=4", "--out", "a.qg")
    assert status == 2 and not (tmp_path / "a.qg").exists()
    assert "are kept in a.qg.work for the next try" in err and "Input/output error" in err
    found = ran(*typed, "--bits", "*=4", "--out", "a.qg")
    assert [note for note in found["notes"] if "run before" in note][1].split()[0] == str(len(found["weights"]))


@pytest.mark.parametrize("enough", [True, False])
def test_a_full_disk_gets_the_room_of_what_was_kept(
    run: Run, ran: Callable[..., Any], typed: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    enough: bool,
) -> None:  # fmt: skip
    def first(beside: Path, data: bytes) -> None:
        if not enough or any((tmp_path / "a.qg.work" / "solved").glob("*")):
            full(beside, data)
        fill(beside, data)

    monkeypatch.setattr("quantgolf.compress.result.fill", first)
    status, out, err = run(*typed, "--bits", "*=4", "--out", "a.qg")
    assert not (tmp_path / "a.qg.work" / "solved").exists()
    if enough:
        assert status == 0 and "not kept for another run" in out + err
        assert os.listdir(tmp_path).count("a.qg") == 1 and not (tmp_path / "a.qg.work").exists()
    else:
        assert status == 2 and "room for it" in err and "statistics are kept in a.qg.work" in err


@pytest.mark.parametrize("what", ["threads", "versions"])
def test_statistics_of_other_threads_and_versions_are_not_taken(
    run: Run, ran: Callable[..., Any], typed: list[object], stops: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch, what: str,
) -> None:  # fmt: skip
    stops(3)
    assert run(*typed, "--max-bytes", "18kB", "--out", "a.qg")[0] == 130
    stops(0)
    if what == "threads":
        monkeypatch.setattr("quantgolf.cli.work.torch.get_num_threads", lambda: 77)
    else:
        monkeypatch.setattr("quantgolf.cli.work.versions", lambda: ["another"])
    found = ran(*typed, "--max-bytes", "18kB", "--out", "a.qg")
    assert not any("statistics are those of a run before" in note for note in found["notes"])


def test_a_stop_while_the_folder_is_removed_leaves_none(
    run: Run, typed: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, times = shutil.rmtree, iter([True])

    def stopped(path: Path, *more: Any, **how: Any) -> None:
        if (Path(path) / "solved").exists() and next(times, False):
            raise KeyboardInterrupt
        remove(path, *more, **how)

    monkeypatch.setattr("quantgolf.cli.work.shutil.rmtree", stopped)
    status, _, err = run(*typed, "--bits", "*=4", "--out", "a.qg")
    assert status == 130 and err.splitlines()[-1] == "quantgolf: stopped by Ctrl-C"
    assert (tmp_path / "a.qg").exists()
    assert not [name for name in os.listdir(tmp_path) if "work" in name or "tmp" in name]


def test_without_resuming_nothing_is_kept_and_what_was_is_told_of(
    run: Run, ran: Callable[..., Any], typed: list[object], stops: Callable[[int], None], tmp_path: Path
) -> None:
    stops(3)
    assert run(*typed, "--max-bytes", "18kB", "--out", "a.qg")[0] == 130
    stops(0)
    found = ran(*typed, "--max-bytes", "18kB", "--out", "a.qg", "--no-resume", "--offload")
    assert any("a.qg.work of a run before stays as it is" in note for note in found["notes"])
    assert (tmp_path / "a.qg.work" / "statistics").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("index", [True, False])
def test_what_the_disk_has_changed_is_solved_again(
    run: Run, ran: Callable[..., Any], typed: list[object], stops: Callable[[int], None], tmp_path: Path, index: bool
) -> None:
    stops(4)
    assert run(*typed, "--max-bytes", "18kB", "--out", "a.qg")[0] == 130
    stops(0)
    for path in (tmp_path / "a.qg.work" / "solved").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    kept = tmp_path / "a.qg.work" / "statistics"
    damaged = kept / ("statistics.json" if index else "statistics-00000.safetensors")
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-9] + bytes([data[-9] ^ 2]) + data[-8:])
    found = ran(*typed, "--max-bytes", "18kB", "--out", "a.qg")
    assert not any("solved matrices" in note for note in found["notes"])
    assert any("had changed on the disk: solved again" in note for note in found["notes"])
    assert any(note.startswith("calibrated again: ") for note in found["notes"])
    ran(*typed, "--max-bytes", "18kB", "--out", "b.qg", "--no-resume")
    assert (tmp_path / "a.qg").read_bytes() == (tmp_path / "b.qg").read_bytes()


def test_a_disk_without_room_for_it_only_costs_the_resuming(
    ran: Callable[..., Any], typed: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantgolf.compress.shelf.fill", full)
    found = ran(*typed, "--max-bytes", "18kB", "--out", "a.qg")
    assert any("not kept for another run" in note and "room for it" in note for note in found["notes"])
    assert not [name for name in os.listdir(tmp_path) if "work" in name or "tmp" in name]


def full(beside: Path, data: bytes) -> None:
    raise OSError(28, "No space left on device")


def test_folders_of_others_and_runs_at_work_are_refused(run: Run, typed: list[object], tmp_path: Path) -> None:
    (tmp_path / "a.qg.work").mkdir()
    (tmp_path / "a.qg.work" / "thesis.tex").write_text("all of it")
    status, _, err = run(*typed, "--max-bytes", "18kB", "--out", "a.qg")
    assert status == 2 and "holds thesis.tex" in err and "--no-resume" in err
    assert (tmp_path / "a.qg.work" / "thesis.tex").read_text() == "all of it"
    claim = Claim(tmp_path / "b.qg.work", "run")
    assert claim.take()
    status, _, err = run(*typed, "--max-bytes", "18kB", "--out", "b.qg")
    assert status == 2 and "another run works on b.qg" in err
    claim.drop()


def test_without_locks_nothing_is_kept_and_the_line_says_how(
    run: Run, typed: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlocked(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("quantgolf.atomic.fcntl.flock", unlocked)
    status, _, err = run(*typed, "--bits", "*=4", "--out", "a.qg")
    assert status == 2 and "has no locks" in err and err.rstrip().endswith("or pass --no-resume")
    assert run(*typed, "--bits", "*=4", "--out", "a.qg", "--no-resume")[0] == 0
