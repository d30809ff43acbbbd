"""Statistics that the disk has changed are refused, and a kill, a full disk or a link costs none that were there."""

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import quantgolf.calibrate.store as store
from quantgolf.atomic import SUFFIX
from quantgolf.calibrate.store import INDEX, Origin, Writer, read_calibration, refuse_taken, write_calibration
from quantgolf.errors import QuantGolfError
from quantgolf.types import Block, Calibration, ParameterReport, WeightStats, WeightUse

TENSORS = "statistics-00000.safetensors"
ORIGIN = Origin("model-of-these", "text-of-these", {"tokens": 48, "seed": 0})
SIZES = {"a": (3, 4), "b": (2, 5), "c": (4, 4)}


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Of three matrices, with any numbers."""
    drawn, stats = torch.Generator().manual_seed(3), {}
    for name, (rows, columns) in SIZES.items():
        use = WeightUse(
            "linear", torch.rand(rows, generator=drawn), torch.rand(columns, columns, generator=drawn), 48,
            torch.rand(rows, rows, generator=drawn) if name == "a" else None,
        )  # fmt: skip
        stats[name] = WeightStats(name, (use,), 48)
    reports = [ParameterReport(name, size, "captured", ("linear ×1",), 48, "") for name, size in SIZES.items()]
    blocks = {name: Block(name, 1, 0, rows) for name, (rows, _) in SIZES.items()}
    return Calibration(stats, blocks, tuple(reports), 48, "sampled", frozenset("a"))


def assert_equal(found: Calibration, expected: Calibration) -> None:
    assert replace(found, stats={}) == replace(expected, stats={})
    for name in SIZES:
        (use,), (twin,) = found.stats[name].uses, expected.stats[name].uses
        assert torch.equal(use.row, twin.row) and torch.equal(use.column, twin.column)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def zeroed(data: bytes) -> bytes:
    """The head of a safetensors file, and lost pages behind it."""
    head = 8 + int.from_bytes(data[:8], "little")
    return data[:head] + bytes(len(data) - head)


@pytest.mark.parametrize(
    "change",
    [lambda data: flipped(data, 8 * (len(data) // 2)), lambda data: flipped(data, 8 * 40), zeroed,
     lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"\0"],
)  # fmt: skip
def test_files_that_the_disk_has_changed_are_refused_before_use(
    folder: Path, calibration: Calibration, change: Callable[[bytes], bytes]
) -> None:
    """The second of two, whose numbers may be any; a file that is cut is said in one line without a check as well."""
    shutil.rmtree(folder)
    writer, names = Writer(folder), list(calibration.stats)
    for part in (names[:2], names[2:]):
        writer.add({name: calibration.stats[name] for name in part})
    writer.finish(calibration, ORIGIN)
    read_calibration(folder)
    file = folder / "statistics-00001.safetensors"
    whole = file.read_bytes()
    file.write_bytes(change(whole))
    with pytest.raises(QuantGolfError) as caught:
        read_calibration(folder)
    assert str(caught.value) == (
        f"statistics {folder}: {file.name} has changed since it was written, expected the digest that is kept of it; "
        "calibrate again"
    )
    found, _ = read_calibration(folder, check=False)
    if len(file.read_bytes()) < len(whole):
        with pytest.raises(QuantGolfError, match=f"{file.name} cannot be read"):
            found.stats[names[2]]
    file.write_bytes(whole)
    assert_equal(read_calibration(folder)[0], calibration)


def test_no_flipped_bit_of_an_index_is_believed(folder: Path) -> None:
    """A count of visits or an edge of a block is as good as any other; but \\u00d7 is the same as \\u00D7."""
    whole = (folder / INDEX).read_bytes()
    believed = []
    for bit in range(0, 8 * len(whole), 7):
        (folder / INDEX).write_bytes(flipped(whole, bit))
        with suppress(QuantGolfError):
            read_calibration(folder)
            believed.append(bit)
    assert [bit for bit in believed if json.loads(flipped(whole, bit)) != json.loads(whole)] == []
    assert len(believed) <= whole.count(b"u00d7")


def test_digests_are_of_whole_files_and_others_can_take_them(folder: Path) -> None:
    digests = json.loads((folder / INDEX).read_text())["digests"]
    assert digests.keys() == {TENSORS, INDEX}
    assert digests[TENSORS] == hashlib.blake2b((folder / TENSORS).read_bytes(), digest_size=16).hexdigest()


def test_folders_of_earlier_versions_without_digests_are_read(folder: Path, calibration: Calibration) -> None:
    index = json.loads((folder / INDEX).read_text())
    assert index["version"] == 2
    del index["digests"]
    (folder / INDEX).write_text(json.dumps(index))
    found, origin = read_calibration(folder)
    assert_equal(found, calibration)
    assert origin == ORIGIN


def test_settings_that_json_writes_otherwise_are_read(tmp_path: Path, calibration: Calibration) -> None:
    odd = Origin("m", "t", {"tuple": (1, 2), "é": float("nan"), "numbers": {2: 1e-300, 10: 0.1}})
    write_calibration(tmp_path / "stats", calibration, odd)
    assert read_calibration(tmp_path / "stats")[1].settings["tuple"] == [1, 2]


def test_all_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(old: Path, new: Path) -> None:
        done.append(f"{old.name} is {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    writer = Writer(tmp_path / "stats")
    writer.add(calibration.stats)
    writer.finish(calibration, ORIGIN)
    beside = writer.beside.name
    assert done == [TENSORS, INDEX, beside, f"{beside} is stats", tmp_path.name]


class Killed(BaseException):
    """Nothing of the process runs after it."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_statistics_are_replaced_loses_neither(
    folder: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """Before the first rename, between the two, and while the old ones are removed."""
    rename, dead, left = os.rename, False, renames

    def renamed(old: Path, new: Path) -> None:
        nonlocal left, dead
        dead = dead or left == 0
        if dead:
            raise Killed
        left -= 1
        rename(old, new)

    def removed(path: Path, **_: Any) -> None:
        nonlocal dead
        if not dead:
            dead = True
            (path / TENSORS).unlink()
        raise Killed

    other = replace(ORIGIN, text="other")
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "rename", renamed)
        patch.setattr(store.shutil, "rmtree", removed)
        with pytest.raises(Killed):
            write_calibration(folder, calibration, other, overwrite=True)
    assert dead
    left_over = list(folder.parent.glob(f".*{SUFFIX}"))
    assert len(left_over) == (2 if renames == 1 else 1)
    if renames == 1:
        assert not folder.exists() and {read_calibration(each)[1].text for each in left_over} == {
            "other", ORIGIN.text,
        }  # fmt: skip
    else:
        assert_equal(read_calibration(folder)[0], calibration)
        assert read_calibration(folder)[1] == (other if renames == 2 else ORIGIN)
    gc.collect()  # lets go of what the process held, as its death does
    refuse_taken(folder, overwrite=True)
    write_calibration(folder, calibration, replace(ORIGIN, text="again"), overwrite=True)
    assert read_calibration(folder)[1].text == "again" and list(folder.parent.iterdir()) == [folder]


def test_old_statistics_have_their_name_again_where_the_new_ones_cannot_have_it(
    folder: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, list[str]()

    def once(old: Path, new: Path) -> None:
        calls.append(old.name)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(store.os, "rename", once)
    with pytest.raises(QuantGolfError, match="stats: Input/output error"):
        write_calibration(folder, calibration, replace(ORIGIN, text="other"), overwrite=True)
    assert read_calibration(folder)[1] == ORIGIN and list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("taken", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, calibration: Calibration, taken: bool) -> None:
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    link.symlink_to("disk/real")
    if taken:
        write_calibration(real, calibration, ORIGIN)
        with pytest.raises(QuantGolfError, match="link: exists already"):
            write_calibration(link, calibration, ORIGIN)
    other = replace(ORIGIN, text="other")
    write_calibration(link, calibration, other, overwrite=taken)
    assert os.readlink(link) == "disk/real" and not real.is_symlink()
    assert read_calibration(link)[1] == read_calibration(real)[1] == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert list(real.parent.iterdir()) == [real]


def test_links_that_lead_nowhere_are_told_before_long_work(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("back")
    (tmp_path / "back").symlink_to("loop")
    (tmp_path / "lost").symlink_to("no/such/folder")
    for overwrite in (False, True):
        with pytest.raises(QuantGolfError, match="loop: is a link that leads to itself, expected a folder"):
            refuse_taken(tmp_path / "loop", overwrite)
        with pytest.raises(QuantGolfError, match="expected a folder to write to; choose another"):
            Writer(tmp_path / "lost", overwrite)
