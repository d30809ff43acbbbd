"""`quantgolf diff` as it is typed: files and checkpoints, what is in one alone, and how far apart the rest is."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantgolf.blob import pack, write_blob
from quantgolf.encode import Entry, Quantized, encode_codes, encode_model
from quantgolf.runtime.compare import Side, compare, open_side
from quantgolf.types import Block

Run = Callable[..., tuple[int, str, str]]
Diff = Callable[..., tuple[int, Any]]
STEP = 0.25


@pytest.fixture
def diff(run: Run) -> Diff:
    """Exit code and JSON."""

    def call(*arguments: object) -> tuple[int, Any]:
        status, out, err = run("diff", *arguments, "--json")
        assert status in (0, 1), err
        return status, json.loads(out)

    return call


def matrix(name: str, codes: Tensor, bits: int = 4, dtype: torch.dtype = torch.float16, **more: Any) -> Entry:
    """A tensor of codes with steps of a quarter."""
    part = Quantized(Block(name, 1, 0, len(codes)), torch.full((len(codes),), STEP).half(), bits, encode_codes(codes))
    return Entry(name, torch.zeros(codes.shape, dtype=dtype), (part,), **more)


def file(path: Path, *entries: Entry, model: dict[str, Any] | None = None) -> Path:
    write_blob(path, pack(encode_model(entries), model))
    return path


CODES = (torch.arange(24).reshape(6, 4) % 7 - 3).char()
NORM = Entry("norm", torch.tensor([1.0, 2.0]))


def test_files_of_equal_weights_are_the_same_however_stored(diff: Diff, run: Run, tmp_path: Path) -> None:
    a = file(tmp_path / "a.qg", matrix("w", CODES, aliases=("tied",)), NORM)
    b = file(tmp_path / "b.qg", matrix("w", CODES, bits=6, aliases=("tied",)), NORM)
    status, found = diff(a, b)
    assert status == 0 and found["same"] and found["verdicts"] == {"equal": 2} and found["max_abs"] == 0
    assert [found["tensors"]["w"][side]["storage"] for side in "ab"] == ["4 bits", "6 bits"]
    status, out, _ = run("diff", a, b)
    assert status == 0 and "the same: 2 tensors, 2 equal" in out and "4 bits" not in out
    status, out, _ = run("diff", a, b, "--all")
    assert status == 0 and "4 bits of F16" in out and "6×4" in out


def test_how_far_two_files_are_apart(diff: Diff, run: Run, tmp_path: Path) -> None:
    other = CODES.clone()
    other[2, 3] += 1
    other[4, 0] -= 2
    a, b = file(tmp_path / "a.qg", matrix("w", other), NORM), file(tmp_path / "b.qg", matrix("w", CODES), NORM)
    status, found = diff(a, b)
    row = found["tensors"]["w"]
    size = np.linalg.norm(CODES.numpy().astype(float)) * STEP
    assert status == 1 and not found["same"] and row["verdict"] == "differs"
    assert row["max_abs"] == 2 * STEP and row["relative_error"] == pytest.approx(np.sqrt(5) * STEP / size)
    assert found["relative_error"] == pytest.approx(np.sqrt(5) * STEP / np.hypot(size, np.sqrt(5)))
    assert found["tensors"]["norm"]["verdict"] == "equal"
    sizes = [side["bytes"] for row in found["tensors"].values() for side in (row["a"],)]
    assert sum(sizes) == pytest.approx(found["a"]["bytes"]) and sum(sizes) < a.stat().st_size
    status, out, _ = run("diff", a, b)
    assert status == 1 and "different: 2 tensors, 1 differ, 1 equal" in out and "all" in out
    assert diff(b, a)[1]["tensors"]["w"]["max_abs"] == 2 * STEP


def test_a_file_and_the_checkpoint_that_decompress_writes_are_the_same(diff: Diff, run: Run, tmp_path: Path) -> None:
    a = file(tmp_path / "a.qg", matrix("w", CODES, aliases=("tied",)), NORM, matrix("v", CODES, dtype=torch.bfloat16))
    back = tmp_path / "back.safetensors"
    assert run("decompress", a, "--out", back)[0] == 0
    for arguments in ((a, back), (back, a)):
        status, found = diff(*arguments)
        assert status == 0 and found["verdicts"] == {"equal": 4}
    save_file({"w": CODES.half() * STEP, "norm": torch.tensor([1.0, 2.5]), "v": CODES.bfloat16() * STEP}, back)
    status, found = diff(a, back)
    assert status == 1 and found["notes"] == [f"tied is another name of w in {a}, and missing in {back}"]
    assert found["tensors"]["norm"]["max_abs"] == 0.5 and found["tensors"]["w"]["b"]["storage"] == "F16"


def test_names_shapes_dtypes_ties_and_descriptions(diff: Diff, run: Run, tmp_path: Path) -> None:
    a = file(tmp_path / "a.qg", matrix("w", CODES, aliases=("tied",)), NORM, Entry("mine", torch.ones(2)),
             Entry("scalar", torch.tensor(1.0)), model={"family": "one"})  # fmt: skip
    b = file(tmp_path / "b.qg", Entry("yours", torch.ones(5)), Entry("norm", torch.ones(3)),
             Entry("scalar", torch.tensor(1.0).half()), matrix("tied", CODES), matrix("w", CODES),
             model={"family": "two"})  # fmt: skip
    status, found = diff(a, b)
    verdicts = {name: row["verdict"] for name, row in found["tensors"].items()}
    assert status == 1 and verdicts == {
        "w": "equal", "norm": "shape", "mine": "only in A", "scalar": "dtype", "yours": "only in B", "tied": "equal"
    }  # fmt: skip
    assert found["same_model"] is False and found["ties"] == [f"tied is w in {a}, and a tensor of its own in {b}"]
    status, out, _ = run("diff", a, b)
    assert status == 1 and "they describe other modules" in out and "2 / 3" in out and "only in B" in out


def test_tensors_without_rows(diff: Diff, tmp_path: Path) -> None:
    empty = [Entry("w", torch.empty(0, 5)), Entry("v", torch.empty(0, 2, 3)), NORM]
    a, b = file(tmp_path / "a.qg", *empty), file(tmp_path / "b.qg", *empty)
    status, found = diff(a, b)
    assert status == 0 and found["verdicts"] == {"equal": 3}


def test_a_long_row_is_compared_in_parts(diff: Diff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[int] = []

    def seen(one: Tensor) -> Tensor:
        parts.append(one.numel())
        return bits(one)

    bits = sys.modules["quantgolf.runtime.compare"]._bits
    monkeypatch.setattr("quantgolf.runtime.compare._bits", seen)
    monkeypatch.setattr(sys.modules["quantgolf.runtime.digest"], "AT_ONCE", 10)
    values = torch.rand(3, 25)
    values[1, 24] = values[0, 3] = 0.0
    other = values.clone()
    other[1, 24], other[0, 3] = 3.0, 4.0
    save_file({"w": values, "v": values.flatten().clone()}, tmp_path / "a.safetensors")
    save_file({"w": other, "v": other.flatten().clone()}, tmp_path / "b.safetensors")
    status, found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for row in found["tensors"].values():
        assert row["max_abs"] == 4 and row["relative_error"] == pytest.approx(5 / float(other.double().norm()))
    assert status == 1 and max(parts) <= 10 and sum(parts) == 4 * 75


def test_infinities_and_nan(diff: Diff, run: Run, tmp_path: Path) -> None:
    inf, nan = torch.inf, torch.nan
    values = {"a": torch.tensor([1.0, inf, nan]), "b": torch.tensor([1.0, inf, 2.0]), "c": torch.zeros(2)}
    save_file(values, tmp_path / "a.safetensors")
    save_file({**values, "b": torch.tensor([1.0, -inf, 2.0]), "c": torch.ones(2)}, tmp_path / "b.safetensors")
    status, found = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    rows = {name: (row["verdict"], row["max_abs"]) for name, row in found["tensors"].items()}
    assert status == 1 and rows == {"a": ("equal", 0), "b": ("differs", "inf"), "c": ("differs", 1)}
    assert found["tensors"]["c"]["relative_error"] == 1
    assert diff(tmp_path / "b.safetensors", tmp_path / "a.safetensors")[1]["tensors"]["c"]["relative_error"] is None
    assert "infinite" in run("diff", tmp_path / "b.safetensors", tmp_path / "a.safetensors")[1]


def test_other_orders_cost_no_more_than_what_came_too_early(tmp_path: Path) -> None:
    """Of two files in the same order never more than one tensor of each is held."""
    names = [f"w{i}" for i in range(6)]
    entries = {name: matrix(name, CODES) for name in names}
    held: list[int] = []

    def most(a: Side, b: Side) -> int:
        held.clear()
        for row in compare(a, b):
            assert row.verdict == "equal"
            held.append(len(a._early) + len(b._early))
        return max(held)

    one = file(tmp_path / "a.qg", *entries.values())
    other = file(tmp_path / "b.qg", *reversed(entries.values()))
    assert most(open_side(one), open_side(one)) == 0
    assert most(open_side(one), open_side(other)) == 5


def test_checkpoints_with_their_module(diff: Diff, tiny_path: Path, tmp_path: Path) -> None:
    """Their names are the module's then, and what it ties is known."""
    card = tiny_path.parent / "card.json"
    state = load_file(tiny_path)
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    status, found = diff(tiny_path, tmp_path / "wrapped.safetensors")
    assert status == 1 and set(found["verdicts"]) == {"only in A", "only in B"}
    assert diff(tiny_path, tmp_path / "wrapped.safetensors", "--model", card)[0] == 0


def test_bad_input_is_one_line(run: Run, tmp_path: Path) -> None:
    a = file(tmp_path / "a.qg", NORM)
    status, _, err = run("diff", a, tmp_path / "none")
    assert status == 2 and "no such file" in err
    cut = tmp_path / "cut.qg"
    cut.write_bytes(a.read_bytes()[:-1])
    status, _, err = run("diff", cut, a)
    assert status == 2 and "is truncated" in err
    status, _, err = run("diff", a, a, "--max-decoded-bytes", "1")
    assert status == 2 and "expected at most 1;" in err
