"""Whatever lies on disk is either read whole or refused in one line that lists all of it."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quantgolf.checkpoint import read_stored, write_state
from quantgolf.errors import QuantGolfError


def shards(folder: Path, index: dict[str, str] | str, **files: dict[str, int]) -> Path:
    """Shards `a.safetensors`, … with one-number tensors, and their index."""
    for name, tensors in files.items():
        save_file({key: torch.tensor([float(value)]) for key, value in tensors.items()}, folder / f"{name}.safetensors")
    text = index if isinstance(index, str) else json.dumps({"weight_map": index})
    path = folder / "model.safetensors.index.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files_load_without_their_pickle(tmp_path: Path, legacy: bool) -> None:
    good, code = tmp_path / "good.pt", tmp_path / "code.pt"
    state = OrderedDict(a=nn.Parameter(torch.ones(2)))
    torch.save(state, good, _use_new_zipfile_serialization=not legacy)
    tensor = read_stored(good).tensors["a"]
    assert tensor.tolist() == [1, 1] and not tensor.requires_grad
    torch.save({"a": nn.Linear(2, 2)}, code)
    with pytest.raises(QuantGolfError, match="weights_only=True"):
        read_stored(code)


def test_one_wrapped_state_dict_is_taken_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    state, random = {"a": torch.ones(2)}, torch.zeros(4, dtype=torch.uint8)
    torch.save({"model": state, "step": 3, "optimizer": {"state": {}}, "rng": random}, path)
    stored = read_stored(path)
    assert list(stored.tensors) == ["a"]
    assert stored.notes == ("took the tensors under 'model' and left out 'step', 'optimizer', 'rng'",)
    torch.save({"state_dict": state}, path)
    assert read_stored(path).notes == ("took the tensors under 'state_dict'",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}}, r"holds 'model' \(dict\), 'ema' \(dict\)"),
        ({"model": {"a": torch.ones(1)}, "scale": torch.ones(1)}, r"'scale' \(Tensor\), expected tensors alone"),
        ({"step": 3}, r"holds 'step' \(int\)"),
        ({}, "holds nothing"),
        ({1: torch.ones(1)}, r"holds 1 \(Tensor\)"),
        ([torch.ones(1)], "holds list"),
        ({"a": torch.ones(2, 2, device="meta")}, "a is on the meta device, without its numbers: save the model once"),
        ({"a": torch.ones(1).expand(2**20, 2**20)}, r"a of 4,398,046,511,104 bytes is expanded from 4: .*contiguous"),
        ({"a": torch.arange(3.0).as_strided((2, 2), (1, 1))}, "a of 16 bytes is expanded from 12"),
        ({"model": {"b": torch.ones(1), "a": torch.eye(2).to_sparse()}}, "pt: a is sparse"),
        ({"a": torch.eye(2).to_sparse()}, r"a is sparse or quantized: save it with \.to_dense\(\)"),
    ],
)
def test_torch_files_that_may_mean_several_things_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(QuantGolfError, match=message):
        read_stored(tmp_path / "c.pt")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_everything_that_is_no_plain_tensor_is_named(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    odd = {"n": nested, "good": torch.ones(2), "m": torch.ones(2, device="meta"), "e": torch.ones(1).expand(2)}
    torch.save(odd, tmp_path / "c.pt")
    with pytest.raises(
        QuantGolfError, match=r"c\.pt: n is nested: .*\.unbind\(\)\); m is on the meta .*; e of 8 bytes"
    ):
        read_stored(tmp_path / "c.pt")


def test_views_come_as_what_they_show(tmp_path: Path) -> None:
    """Parts of a storage, several names of one, and what torch has yet to negate or conjugate."""
    flat, imaginary = torch.arange(6.0), torch.tensor([1 + 2j])
    state = {
        "part": flat[2:4], "turned": flat.view(2, 3).T, "row": flat.view(1, 6).expand(1, 6), "again": flat,
        "negative": torch._neg_view(flat), "conjugate": imaginary.conj(),
    }  # fmt: skip
    torch.save(state, tmp_path / "c.pt")
    found = read_stored(tmp_path / "c.pt").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert found["negative"].numpy().tolist() == [-0.0, -1, -2, -3, -4, -5]
    assert found["conjugate"].numpy().tolist() == [1 - 2j]
    write_state(tmp_path / "o.safetensors", found)
    read = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["missing.safetensors", "text.safetensors", "empty.safetensors", "text.pt", "x.npz"])
def test_unreadable_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_text("" if name.startswith("empty") else "hello, this is not a checkpoint")
    with pytest.raises(QuantGolfError, match="checkpoint ") as caught:
        read_stored(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    index = shards(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a={"x": 1}, b={"y": 2, "unnamed": 3})
    for place in (index, tmp_path):
        tensors = read_stored(place).tensors
        assert {name: tensor.item() for name, tensor in tensors.items()} == {"x": 1, "y": 2, "unnamed": 3}
    torch.save({"z": torch.ones(1)}, tmp_path / "a.bin")
    other = tmp_path / "other.bin.index.json"
    other.write_text(json.dumps({"weight_map": {"z": "a.bin"}}))
    assert list(read_stored(other).tensors) == ["z"]


def test_everything_wrong_with_shards_comes_at_once(tmp_path: Path) -> None:
    index = shards(
        tmp_path,
        '{"weight_map": {"x": "a.safetensors", "x": "a.safetensors", "y": "b.safetensors", "z": "gone.safetensors", '
        '"w": "../w.safetensors", "v": "c.safetensors"}}',
        a={"x": 1, "both": 1},
        b={"both": 2},
    )
    (tmp_path / "c.safetensors").write_text("broken")
    with pytest.raises(QuantGolfError) as caught:
        read_stored(index)
    for part in (
        "x stands in the index twice",
        "y is not in b.safetensors, where the index has it",
        "both is in a.safetensors and in b.safetensors",
        "shard gone.safetensors is missing",
        "shard '../w.safetensors' does not lie beside its index",
        "c.safetensors: not a readable safetensors file",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_bad_indexes_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(QuantGolfError, match=r"checkpoint .*index\.json: (not readable JSON|no 'weight_map')"):
        read_stored(shards(tmp_path, text))


@pytest.mark.parametrize("shard", ["x" * 5000, "x\0y", "\ud800", "..", ""])
def test_shards_of_names_that_no_file_has_are_missing(tmp_path: Path, shard: str) -> None:
    with pytest.raises(QuantGolfError, match="is missing") as caught:
        read_stored(shards(tmp_path, {"w": shard}))
    assert len(str(caught.value)) < 1000


def test_a_folder_stands_for_its_only_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(QuantGolfError, match="the folder holds no checkpoint"):
        read_stored(tmp_path)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    save_file({"a": torch.ones(1)}, tmp_path / "final.safetensors")
    assert list(read_stored(tmp_path).tensors) == ["a"]
    save_file({"b": torch.ones(1)}, tmp_path / "best.safetensors")
    with pytest.raises(QuantGolfError, match=r"holds best\.safetensors; final\.safetensors, expected exactly one"):
        read_stored(tmp_path)
    save_file({"usual": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(read_stored(tmp_path).tensors) == ["usual"]


def test_writing_never_replaces_unasked_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    write_state(path, {"a": torch.ones(2)})
    with pytest.raises(QuantGolfError, match="exists already"):
        write_state(path, {"a": torch.zeros(2)})
    assert load_file(path)["a"].tolist() == [1, 1]
    write_state(path, {"a": torch.zeros(2)}, overwrite=True)
    with pytest.raises(QuantGolfError, match="expected a folder to write to"):
        write_state(tmp_path / "no" / "folder.safetensors", {"a": torch.ones(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]


def test_tensors_on_one_memory_are_written_under_all_their_names(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    write_state(tmp_path / "o.safetensors", {"a": flat, "b": flat, "c": flat.view(2, 3).T, "d": flat[2:]})
    read = load_file(tmp_path / "o.safetensors")
    assert read["a"].tolist() == read["b"].tolist() == flat.tolist()
    assert torch.equal(read["c"], flat.view(2, 3).T) and read["d"].tolist() == [2, 3, 4, 5]
