"""The table of a file whose tensors hold several matrices: one row a block, and its error by the matrix's name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from quantgolf.blob import pack, write_blob
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inspect, main
from quantgolf.cli.inspect import rows_of, weighted_errors
from quantgolf.encode import Entry, Quantized, encode_codes, encode_model
from quantgolf.errors import QuantGolfError
from quantgolf.types import Block, Calibration, CodedModel, Groups, WeightStats, WeightUse

Run = Callable[..., tuple[int, str, str]]
ORIGINAL = torch.arange(18).reshape(3, 2, 3).float()
BLOCKS = {"bank.0": Block("bank", 2, 0, 2, transposed=True), "bank.2": Block("bank", 2, 4, 6)}


def coded() -> CodedModel:
    """Slices of a bank: the first all ones and transposed, the second kept, the third all twos."""
    first = Quantized(BLOCKS["bank.0"], torch.ones(3).half(), 3, encode_codes(torch.ones(3, 2, dtype=torch.int8)))
    third = Quantized(BLOCKS["bank.2"], torch.full((2,), 2).half(), 5, encode_codes(torch.ones(2, 3, dtype=torch.int8)))
    return encode_model([Entry("bank", ORIGINAL, (first, third), ("tied",)), Entry("scale", torch.ones(4))])


def test_a_cut_tensor_has_a_row_for_each_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["quantgolf", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code
        return capsys.readouterr().out

    path = tmp_path / "a.qg"
    write_blob(path, pack(coded(), None))
    document = json.loads(run("inspect", path, "--json"))
    rows = document["tensors"]
    assert {name: (r["shape"], r["transposed"], r["bits"], r["stored"]) for name, r in rows.items()} == {
        "bank.0": ([3, 2], True, 3, None),
        "bank.1": ([2, 3], False, None, "F16"),
        "bank.2": ([2, 3], False, 5, None),
        "scale": ([4], False, None, "F16"),
    }
    assert all(r["parameter"] == "bank" and r["aliases"] == ["tied"] for name, r in rows.items() if name != "scale")
    kinds = ("code_bytes", "step_bytes", "zero_bytes", "small_bytes")
    spent = sum(row[kind] for row in rows.values() for kind in kinds)
    assert spent + document["overhead_bytes"] == pytest.approx(path.stat().st_size)
    assert {"bank.0", "bank.1", "bank.2", "scale"} <= set(run("inspect", path).split())

    back = tmp_path / "b.safetensors"
    run("decompress", path, "--out", back)
    tensors = load_file(back)
    assert list(tensors) == ["bank", "scale", "tied"] and torch.equal(tensors["bank"], tensors["tied"])
    assert tensors["bank"].tolist() == [[[1] * 3] * 2, ORIGINAL[1].tolist(), [[2] * 3] * 2]


def test_groups_have_columns_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["quantgolf", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code
        return capsys.readouterr().out

    parts = {
        "halves": Groups(torch.ones(6, 4).half(), None, 3),
        "logs": Groups(torch.full((6, 2), -50).short(), torch.ones(6, 2).char(), 6),
        "rows": torch.ones(6).half(),
    }
    codes = encode_codes(torch.ones(6, 12, dtype=torch.int8))
    entries = [
        Entry(name, torch.zeros(6, 12), (Quantized(Block(name, 1, 0, 6), steps, 4, codes),))
        for name, steps in parts.items()
    ]
    path = tmp_path / "a.qg"
    write_blob(path, pack(encode_model([*entries, Entry("kept", torch.ones(3))]), None))
    document = json.loads(run("inspect", path, "--json"))
    assert {name: row["groups"] for name, row in document["tensors"].items()} == {
        "halves": {"size": 3, "zeros": False, "scales": "fp16"},
        "logs": {"size": 6, "zeros": True, "scales": "log"},
        "rows": None,
        "kept": None,
    }
    kinds, rows = document["kinds"], document["tensors"]
    assert list(kinds) == ["codes", "steps", "scales", "zeros", "small tensors", "header", "checksum"]
    assert sum(kinds.values()) == document["bytes"] == path.stat().st_size
    assert kinds["zeros"] == rows["logs"]["zero_bytes"] > 0 == rows["halves"]["zero_bytes"]
    steps = [rows[name]["step_bytes"] for name in parts]
    assert steps[0] == pytest.approx(2 * steps[1]) == pytest.approx(4 * steps[2])
    assert kinds["scales"] == round(steps[0] + steps[1])
    shown = run("inspect", path)
    assert "3, fp16 scales" in shown and "6, log scales and zeros" in shown and "groups" in shown
    assert document["side_share"] > 0.5


def test_errors_are_those_of_the_matrices() -> None:
    """With H and G of ones on the diagonal the loss is half the squared error."""
    stats = {
        name: WeightStats(name, (WeightUse("linear", torch.ones(n), torch.eye(k), 1),), tokens=1)
        for name, n, k in (("bank.0", 3, 2), ("bank.2", 2, 3))
    }
    calibration = Calibration(stats, BLOCKS, (), 1, "sampled")
    source = Checkpoint(nn.Identity(), {"bank": ORIGINAL}, {}, None)
    assert weighted_errors(coded(), source, calibration) == {
        ("bank", "bank.0"): 0.5 * sum((value - 1) ** 2 for value in range(6)),
        ("bank", "bank.2"): 0.5 * sum((value - 2) ** 2 for value in range(12, 18)),
    }
    other = Checkpoint(nn.Identity(), {"bank": torch.zeros(3, 3, 3)}, {}, None)
    with pytest.raises(QuantGolfError, match=r"bank \[3, 2, 3\], expected \[3, 3, 3\]"):
        weighted_errors(coded(), other, calibration)


def test_no_two_rows_have_one_name(ran: Callable[..., Any], run: Run, tmp_path: Path) -> None:
    """Blocks that are called as tensors are, whichever comes first; errors are of those that they were measured of."""
    ones = encode_codes(torch.ones(2, 3, dtype=torch.int8))
    blocks = tuple(Quantized(Block("w", 2, start, start + 2), torch.ones(2).half(), 3, ones) for start in (0, 2))
    entries = [
        Entry("w.0", torch.ones(4)),
        Entry("w", torch.ones(2, 2, 3), blocks),
        Entry("w.1", torch.ones(5)),
        Entry("w.1'", torch.ones(6)),
    ]
    coded = encode_model(entries)
    write_blob(tmp_path / "a.qg", pack(coded, None))
    rows = ran("inspect", "a.qg")["tensors"]
    assert {name: (row["parameter"], row["shape"]) for name, row in rows.items()} == {
        "w.0": ("w.0", [4]),
        "w.0'": ("w", [2, 3]),
        "w.1''": ("w", [2, 3]),
        "w.1": ("w.1", [5]),
        "w.1'": ("w.1'", [6]),
    }
    assert set(rows) <= set(run("inspect", "a.qg")[1].split())
    found = rows_of(coded, 1000, {("w", "w.0"): 3.0, ("w.1", "w.1"): 4.0})
    assert {name: row["loss"] for name, row in found.items() if row["loss"]} == {"w.0'": 3.0, "w.1": 4.0}


def test_of_very_many_rows_the_first_are_printed(
    ran: Callable[..., Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect.MOST_ROWS == 1000
    monkeypatch.setattr(inspect, "MOST_ROWS", 3)
    names = [f"t{i}" for i in range(5)]
    for count in (3, 5):
        entries = [Entry(name, torch.ones(2)) for name in names[:count]]
        write_blob(tmp_path / "a.qg", pack(encode_model(entries), None), overwrite=True)
        _, out, _ = run("inspect", "a.qg")
        assert [name for name in names if name in out.split()] == names[:3]
        assert ("and 2 more rows; --all prints them" in out) == (count == 5) and (" more rows" in out) == (count == 5)
    assert "more rows" not in run("inspect", "a.qg", "--all")[1] and "t4" in run("inspect", "a.qg", "--all")[1]
    assert list(ran("inspect", "a.qg")["tensors"]) == names


def test_limits_are_read(run: Run, tmp_path: Path) -> None:
    write_blob(tmp_path / "a.qg", pack(encode_model([Entry("a", torch.ones(1000))]), None))
    assert run("inspect", "a.qg", "--max-decoded-bytes", 4000)[0] == 0
    status, _, err = run("inspect", "a.qg", "--max-decoded-bytes", 3999)
    assert status == 2 and "4,000 decoded bytes, expected at most 3,999" in err
    for option in (("--all",), ("--max-decoded-bytes", 1)):
        status, _, err = run("inspect", "demo", "--capture", *option)
        assert status == 2 and "expected no --reference, --stats, --all or --max-decoded-bytes" in err
