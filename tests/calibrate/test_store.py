"""Statistics in a folder are those in memory, lie there whole or not at all, and say so when they were damaged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import quantgolf.calibrate.store as store
from quantgolf.calibrate import collect
from quantgolf.calibrate.store import (
    INDEX,
    Origin,
    Writer,
    read_calibration,
    refuse_taken,
    text_digest,
    write_calibration,
)
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.types import Calibration

TENSORS = "statistics-00000.safetensors"
ORIGIN = Origin("model-of-these", "text-of-these", {"tokens": 48, "seed": 0})


def batches(seed: int = 7) -> list[tuple[Tensor, Tensor]]:
    stream = torch.randint(13, (4, 13), generator=torch.Generator().manual_seed(seed))
    return [(stream[:, :-1], stream[:, 1:])]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Of a model whose embedding is used in two ways, whose matrices are slices of banks, and with shared inputs."""
    model = Golf(GolfConfig(vocab_size=13, dim=16, layers=2, heads=2, kv_heads=1, mlp_mult=2, banks=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return collect(model, batches())


def assert_equal(found: Calibration, expected: Calibration) -> None:
    assert replace(found, stats={}) == replace(expected, stats={})
    assert list(found.stats) == list(expected.stats) and len(found.stats) == len(expected.stats)
    for name, stats in expected.stats.items():
        other = found.stats[name]
        assert (other.name, other.tokens, len(other.uses)) == (name, stats.tokens, len(stats.uses))
        for use, twin in zip(stats.uses, other.uses, strict=True):
            assert (use.kind, use.visits) == (twin.kind, twin.visits)
            assert torch.equal(use.row, twin.row) and torch.equal(use.column, twin.column)
            assert twin.row.dtype == twin.column.dtype == torch.float32
            assert (use.outputs is None) == (twin.outputs is None)
            assert use.outputs is None or (twin.outputs is not None and torch.equal(use.outputs, twin.outputs))


def test_what_is_read_is_what_was_written(folder: Path, calibration: Calibration) -> None:
    found, origin = read_calibration(folder)
    assert origin == ORIGIN
    assert_equal(found, calibration)
    assert {use.kind for use in found.stats["emb.weight"].uses} == {"linear", "lookup"}
    assert found.outputs == {name for name in found.stats if name != "emb.weight"}
    assert all(found.stats[name].outputs() is not None for name in found.outputs)
    assert "nothing" not in found.stats and found.stats.get("nothing") is None
    assert sorted(path.name for path in folder.iterdir()) == [TENSORS, INDEX]
    assert list(folder.parent.iterdir()) == [folder]


def test_equal_column_matrices_lie_there_once(folder: Path, calibration: Calibration) -> None:
    """q, k and v of a layer see the same input, and the two layers do not."""
    entries = json.loads((folder / INDEX).read_text())["matrices"]
    columns = {name: [tuple(use["column"]) for use in entry["uses"]] for name, entry in entries.items()}
    assert columns["qo_bank.0"] == columns["kv_bank.0"] == columns["kv_bank.2"] != columns["qo_bank.1"]
    assert columns["qo_bank.1"] == columns["kv_bank.1"] == columns["kv_bank.3"]
    uses = [use for stats in calibration.stats.values() for use in stats.uses]
    different: list[Tensor] = []
    for use in uses:
        if not any(use.column.equal(other) for other in different):
            different.append(use.column)
    stored = load_file(folder / TENSORS)
    products = sum(use.outputs is not None for use in uses)
    assert len(stored) == len(uses) + len(different) + products and len(different) == len(uses) - 4
    assert products == len(uses) - 2


def test_a_model_without_anything_captured_is_stored_too(tmp_path: Path, calibration: Calibration) -> None:
    nothing = replace(calibration, stats={}, blocks={}, outputs=frozenset())
    write_calibration(tmp_path / "stats", nothing, ORIGIN)
    assert_equal(read_calibration(tmp_path / "stats")[0], nothing)


def test_statistics_of_another_model_are_refused_by_name(folder: Path) -> None:
    read_calibration(folder, "model-of-these")
    with pytest.raises(QuantGolfError, match=r"stats: are of the model model-of-these, and the checkpoint is another"):
        read_calibration(folder, "another")


def test_groups_written_one_by_one_are_read_together(tmp_path: Path, calibration: Calibration) -> None:
    """In any order: what is read comes in the model's."""
    writer, names = Writer(tmp_path / "stats"), list(calibration.stats)
    for part in (names[5:], names[:2], names[2:5]):
        writer.add({name: calibration.stats[name] for name in part})
    assert_equal(writer.finish(calibration, ORIGIN), calibration)
    assert len(list((tmp_path / "stats").glob("*.safetensors"))) == 3


def test_interrupted_writers_leave_nothing(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path / "stats")
    writer.add(calibration.stats)
    assert not (tmp_path / "stats").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    for target, name in ((store, "save_file"), (store.json, "dumps"), (store.os, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            with pytest.raises(QuantGolfError, match=r"stats: No space left on device, expected a folder to write to"):
                write_calibration(tmp_path / "stats", calibration, ORIGIN)
        assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_once(folder: Path, calibration: Calibration) -> None:
    before = (folder / INDEX).read_bytes()
    for attempt in (
        lambda: refuse_taken(folder, overwrite=False),
        lambda: write_calibration(folder, calibration, ORIGIN),
    ):
        with pytest.raises(QuantGolfError, match="exists already, expected a new name"):
            attempt()
    assert (folder / INDEX).read_bytes() == before
    (folder / "statistics-00009.safetensors").write_text("of a longer run")
    refuse_taken(folder, overwrite=True)
    write_calibration(folder, calibration, replace(ORIGIN, text="other"), overwrite=True)
    assert read_calibration(folder)[1].text == "other"
    assert sorted(path.name for path in folder.iterdir()) == [TENSORS, INDEX]


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_what_is_not_statistics_is_never_replaced(tmp_path: Path, calibration: Calibration, kind: str) -> None:
    taken = tmp_path / "taken"
    if kind == "file":
        taken.write_text("precious")
    else:
        taken.mkdir()
    if kind == "folder":
        (taken / "thesis.tex").write_text("precious")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises(QuantGolfError, match="exists and holds no statistics"):
        write_calibration(taken, calibration, ORIGIN, overwrite=True)
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


def test_folders_that_cannot_be_written_are_told_before_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("no/such/folder", "file/stats"):
        with pytest.raises(QuantGolfError, match="expected a folder to write to; choose another"):
            Writer(tmp_path / name)


Damage = Callable[[Path], object]


def index_of(folder: Path) -> dict[str, Any]:
    """Without digests, as earlier versions wrote it, so that one may change it."""
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    index.pop("digests", None)
    return index


def index_with(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        index = index_of(folder)
        for key, value in changes.items():
            index = {k: v for k, v in index.items() if k != key} | ({} if value is None else {key: value})
        (folder / INDEX).write_text(json.dumps(index))

    return change


def inside(*path: Any, value: Any = None) -> Damage:
    """Changes one entry deep in the index; None takes it out."""

    def change(folder: Path) -> None:
        index = index_of(folder)
        at = index
        for key in path[:-1]:
            at = at[key]
        if value is None:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        (folder / INDEX).write_text(json.dumps(index))

    return change


def cut(name: str, share: float) -> Damage:
    def change(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / INDEX).unlink(), "cannot be read (No such file or directory)"),
        (cut(INDEX, 0.5), "is not what `quantgolf calibrate` writes"),
        (cut(INDEX, 0), "is not what `quantgolf calibrate` writes"),
        (lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe{}"), "is not what `quantgolf calibrate` writes"),
        (lambda folder: (folder / INDEX).write_text("[" * 100_000), "is not what `quantgolf calibrate` writes"),
        (lambda folder: (folder / INDEX).write_text("[1]"), "is not what `quantgolf calibrate` writes"),
        (lambda folder: (folder / INDEX).write_text("3"), "is not what `quantgolf calibrate` writes"),
        (index_with(version=1), "version 1, expected 2; calibrate again"),
        (index_with(version=None), "KeyError('version')"),
        *((index_with(**{key: None}), f"KeyError('{key}')") for key in ("origin", "blocks", "parameters", "matrices",
                                                                      "tokens", "labels")),
        (inside("origin", "model"), "missing 1 required positional argument: 'model'"),
        (inside("blocks", "emb.weight", "lead"), "missing 1 required positional argument: 'lead'"),
        (inside("blocks", "emb.weight"), "blocks that are not its matrices"),
        (inside("matrices", "emb.weight"), "blocks that are not its matrices"),
        (inside("matrices", value=[]), "is not what `quantgolf calibrate` writes"),
        (inside("parameters", 0, "uses"), "KeyError('uses')"),
        (inside("matrices", "emb.weight", "uses"), "KeyError('uses')"),
        (inside("matrices", "emb.weight", "uses", value=[]), "blocks that are not its matrices"),
        (inside("matrices", "emb.weight", "uses", 1, "row"), "KeyError('row')"),
        (inside("matrices", "emb.weight", "uses", 1, "row", value=[TENSORS, "no"]), f"{TENSORS} cannot be read"),
        (inside("matrices", "emb.weight", "uses", 1, "row", value=[TENSORS]), "is not what"),
        (inside("matrices", "emb.weight", "uses", 1, "row", value=[TENSORS, "emb.weight/1/column"]),
         "is [16, 16], expected [13]"),
        (inside("matrices", "emb.weight", "uses", 1, "column", value=[TENSORS, "down_bank.0/0/column"]),
         "is [32, 32], expected [16, 16]"),
        (inside("matrices", "up_bank.0", "uses", 0, "outputs"), "KeyError('outputs')"),
        (inside("matrices", "up_bank.0", "uses", 0, "outputs", value=[TENSORS]), "is not what"),
        (inside("matrices", "up_bank.0", "uses", 0, "outputs", value=[TENSORS, "no"]), f"{TENSORS} cannot be read"),
        (inside("matrices", "up_bank.0", "uses", 0, "outputs", value=[TENSORS, "qo_bank.0/0/outputs"]),
         "is [16, 16], expected [32, 32]"),
        (index_with(digest={}), "unknown digest"),
        (index_with(digests=3), "is not what"),
        (index_with(digests={}), "KeyError('statistics.json')"),
        (lambda folder: (folder / TENSORS).unlink(), f"{TENSORS} cannot be read"),
        (lambda folder: [(folder / TENSORS).unlink(), (folder / TENSORS).mkdir()], f"{TENSORS} cannot be read"),
        *((cut(TENSORS, share), f"{TENSORS} has changed since it was written") for share in (0.9, 0.001, 0)),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused_in_one_line(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(QuantGolfError) as caught:
        found, _ = read_calibration(folder)
        for name in found.stats:
            found.stats[name]
    text = str(caught.value)
    assert text.startswith(f"statistics {folder}: ") and message in text and "\n" not in text
    assert "calibrate" in text.rpartition(": ")[2]


def test_what_is_no_folder_of_statistics_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("missing", "file", "."):
        with pytest.raises(QuantGolfError, match="expected a folder that `quantgolf calibrate` wrote"):
            read_calibration(tmp_path / name)


def test_texts_are_told_apart() -> None:
    once = text_digest(batches())
    assert once == text_digest(batches()) != text_digest(batches(8))
    inputs, targets = batches()[0]
    assert text_digest([(inputs, targets + 1)]) != once
    assert text_digest([(inputs.reshape(2, 24), targets.reshape(2, 24))]) != once
    assert text_digest([(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]) != once
