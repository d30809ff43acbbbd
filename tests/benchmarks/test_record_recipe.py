"""The comparison with the record recipe, end to end on a model that is small enough, and its ratio."""

import json
from pathlib import Path

import brotli
import numpy as np
import pytest
import record_recipe
import typer
from recipe import coders
from record_recipe import compared, ratio
from typer.testing import CliRunner

from quantgolf.checkpoint import read_demo
from quantgolf.errors import QuantGolfError
from quantgolf.types import EvalResult

APP = typer.Typer(pretty_exceptions_enable=False)
APP.command()(record_recipe.main)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brotli that saves less and no ZPAQ."""
    monkeypatch.setitem(coders.CODERS, "brotli", (lambda raw: brotli.compress(raw, quality=5), brotli.decompress))
    monkeypatch.setattr("recipe.streams.present", lambda wanted=coders.NAMES: ("none", "brotli"))


def result(*kl: float) -> EvalResult:
    ones = np.ones(len(kl), dtype=np.int64)
    return EvalResult(np.ones(len(kl)), ones, ones, np.array(kl), 0)


def test_the_ratio_is_of_sums_and_its_interval_is_paired() -> None:
    found = ratio(result(1, 2, 3), result(4, 8, 12), seed=0)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)  # drawn for both alike, or it would spread
    wide = ratio(result(1, 5, 3), result(5, 5, 5), seed=0)
    assert wide.value == pytest.approx(0.6) and 0.2 <= wide.low < 0.6 < wide.high <= 1
    assert np.isnan(ratio(result(1), result(2), seed=0).low)


def test_the_better_recipe_is_what_is_compared_with() -> None:
    row = compared({"slope": result(1, 1), "a": result(4, 4), "b": result(2, 2)}, "slope", ["a", "b"], "ratio", 0)
    assert row["ratio"] == 0.5 and row["ratio_against"] == "b"


def run(tiny_path: Path, prose: Path, *options: str) -> list[dict[str, object]]:
    out = prose.with_name("rows.jsonl")
    text = ["--tokenizer", str(read_demo().tokenizer), "--data", str(prose), "--calibration", str(prose)]
    model = ["--model", str(tiny_path.parent / "card.json"), "--length", "64"]
    size = ["--tokens", "700", "--calibration-tokens", "512", "--tune-steps", "0"]
    found = CliRunner().invoke(APP, [str(tiny_path), *model, *text, *size, "--out", str(out), *options])
    if found.exception is not None:
        raise found.exception
    assert "bits/byte" in found.output
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def test_every_method_at_every_limit(tiny_path: Path, prose: Path) -> None:
    rows = run(tiny_path, prose, "--max-bytes", "20kB", "--bpw", "2.2", "--wide")
    names = ["int6/int7", "int5/int6", "int7/int8", "slope"]
    assert [row["method"] for row in rows] == 2 * names
    for row in rows:
        assert row["limit"] * 0.98 <= row["bytes"] <= row["limit"]  # type: ignore[operator]
        assert row["kl_low"] <= row["kl"] <= row["kl_high"]  # type: ignore[operator]
        assert row["seconds"] and row["versions"] and row["documents"] and row["parameters"]
    best = min(rows[:2], key=lambda row: row["kl"])  # type: ignore[arg-type,return-value]
    assert rows[3]["ratio"] == pytest.approx(rows[3]["kl"] / best["kl"])  # type: ignore[operator]
    assert rows[3]["ratio_against"] == best["method"]
    assert rows[3]["bar"] == 0.42 and rows[7]["bar"] == 0.45


def test_one_side_alone(tiny_path: Path, prose: Path) -> None:
    rows = run(tiny_path, prose, "--max-bytes", "20kB", "--only", "ours")
    assert [row["method"] for row in rows] == ["slope"] and "ratio" not in rows[0]


def test_without_a_limit_nothing_is_run(tiny_path: Path, prose: Path) -> None:
    with pytest.raises(QuantGolfError, match="no limit is given"):
        run(tiny_path, prose)
