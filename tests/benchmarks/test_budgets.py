"""What budgets are drawn, what counts as kept, and that a byte which only fills room is found."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from quantgolf.blob import pack, parse
from quantgolf.calibrate.store import Origin, write_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import Compressed, calibrate, compress
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.encode import decode_stream, matrix_shape, places
from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import restore
from quantgolf.types import CodedModel


def script(name: str) -> Any:
    """A benchmark as a module; the folder is no package."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


budgets = script("budgets")


def test_budgets_cover_the_range_and_follow_the_seed() -> None:
    drawn = budgets.budgets(2_000_000, 200, 1.5, 6.0, seed=0)
    assert len(set(drawn)) == 200 and 375_000 <= min(drawn) < 385_000 and 1_490_000 < max(drawn) <= 1_500_000
    assert budgets.budgets(2_000_000, 200, 1.5, 6.0, seed=0) == drawn
    assert budgets.budgets(2_000_000, 200, 1.5, 6.0, seed=1) != drawn
    for count, low, high in ((0, 1.5, 6.0), (1, 0.0, 6.0), (1, 3.0, 2.0)):
        with pytest.raises(QuantGolfError, match="expected at least one and 0 < low <= high"):
            budgets.budgets(1000, count, low, high, seed=0)


@pytest.mark.parametrize(
    ("limit", "size", "canonical", "kept"),
    [
        (1_000_000, 1_000_000, True, True),
        (1_000_000, 1_000_001, True, False),
        (1_000_000, 999_744, True, True),
        (1_000_000, 999_743, True, False),
        (10_000_000, 9_998_000, True, True),
        (10_000_000, 9_997_999, True, False),
        (1_000_000, 1_000_000, False, False),
    ],
)
def test_a_promise_is_kept_or_not(limit: int, size: int, canonical: bool, kept: bool) -> None:
    assert budgets.Outcome(3.0, limit, size, 1.0, canonical).kept is kept


def test_files_encode_anew_to_themselves_and_padded_ones_do_not(
    tiny: Checkpoint, prose: Path, tokenizer: Tokenizer
) -> None:
    result = file_of(tiny, prose, tokenizer)
    assert budgets.encoded_anew(result.data) == result.data
    header, coded = parse(result.data)
    data = pack(with_plain_exponents(coded), header.model)
    assert len(data) > len(result.data)
    weights = restore(parse(data)[1])
    assert all(torch.equal(weights[name], tensor) for name, tensor in restore(coded).items())
    assert budgets.encoded_anew(data) == result.data


def test_files_of_fixed_widths_are_refused(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=512, length=64)
    data = compress(tiny, calibration, rules=[("*", 4)], solver="rtn").data
    with pytest.raises(QuantGolfError, match="compress it with --solver slope"):
        budgets.encoded_anew(data)


def test_the_script_from_statistics_to_json(
    tiny: Checkpoint, tiny_path: Path, prose: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=512, length=64)
    write_calibration(tmp_path / "stats", calibration, Origin(tiny.fingerprint, "", {}))
    app = typer.Typer()
    app.command()(budgets.main)
    options = ["--model", str(tiny_path.parent), "--stats", str(tmp_path / "stats"), "--count", "2", "--low", "2.5"]
    options += ["--high", "4", "--seed", "3", "--out", str(tmp_path / "out.jsonl")]
    ran = CliRunner().invoke(app, [str(tiny_path), *options], catch_exceptions=False)
    assert ran.exit_code == 0 and "0 over (0 allowed)" in ran.output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["limit"] for row in rows] == budgets.budgets(tiny.parameters, 2, 2.5, 4.0, seed=3)
    for row in rows:
        assert 0 <= row["slack"] == row["limit"] - row["bytes"] <= row["allowed"] == 256 and row["canonical"]


def test_the_script_ends_with_1_where_a_budget_is_not_kept(
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny: Checkpoint,
    prose: Path,
    tokenizer: Tokenizer,
) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=512, length=64)
    write_calibration(tmp_path / "stats", calibration, Origin(tiny.fingerprint, "", {}))
    monkeypatch.setattr(budgets, "attempts", lambda *_: iter([budgets.Outcome(3.0, 9_000, 8_000, 1.0, True)]))
    app = typer.Typer()
    app.command()(budgets.main)
    options = ["--model", str(tiny_path.parent), "--stats", str(tmp_path / "stats"), "--count", "1"]
    ran = CliRunner().invoke(app, [str(tiny_path), *options], catch_exceptions=False)
    assert ran.exit_code == 1 and "most left unused: 1,000 bytes of 9,000 (256 allowed)" in ran.output


def file_of(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> Compressed:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=512, length=64)
    return compress(tiny, calibration, max_bytes=14_000, solver="slope")


def with_plain_exponents(coded: CodedModel) -> CodedModel:
    """The same model with the exponents of rows left uncoded, which a reader takes as well."""
    blocks = [(t, place) for t in coded.tensors for b, place in zip(t.blocks, places(t), strict=True) if b.levels]
    cursor = Cursor(coded.exponents, "the stream of exponents")
    for _ in range(3 * len(blocks)):
        cursor.varint()
    begin = cursor.at
    rows = decode_stream(cursor.take(cursor.varint()), sum(matrix_shape(t.shape, place)[0] for t, place in blocks))
    plain = b"\0" + rows.tobytes()
    return replace(coded, exponents=coded.exponents[:begin] + varint(len(plain)) + plain + cursor.rest())
