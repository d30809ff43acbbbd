"""`sweep` and `compress --plan` as a user types them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import read_demo
from quantgolf.cli import frontier_table
from quantgolf.cli.sweep import checkpoint_name, divided, finish, shard_of
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.sweep import FrontierPoint, Measured, Outcome

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def start(tiny_path: Path, prose: Path) -> list[object]:
    model = [tiny_path, "--model", tiny_path.parent / "card.json"]
    return [*model, "--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 64]


def test_the_picked_point_becomes_the_file_that_was_measured(
    run: Run, ran: Callable[..., Any], start: list[object], tmp_path: Path
) -> None:
    typed = ["sweep", *start, "--tokens", 512, "--eval-tokens", 512, "--jobs", 1, "--out", "r.jsonl"]
    grid = ["--solver", "rtn,gptq", "--max-bytes", "5kB,20kB", "--bits", "3", "--codec", "rans"]
    found = ran(*typed, *grid, "--pick", "point.json", "--pick-within", "19kB")
    assert found["made"] == 6 and [p.get("status", "done") for p in found["points"]] == ["failed", "done", "done"] * 2
    picked = json.loads((tmp_path / "point.json").read_text())
    assert picked["bytes"] <= 19_000 and picked["options"] == {"solver": "gptq", "bits": "3", "codec": "rans"}
    made = ran("compress", *start, "--plan", "point.json", "--out", "a.qg")
    assert made["bytes"] == picked["bytes"] == (tmp_path / "a.qg").stat().st_size
    assert any(f"the file that point {picked['key']} measured, byte for byte" in note for note in made["notes"])
    key = next(p["key"] for p in found["points"] if p.get("limit") == 20_000)
    stats = ["--stats", "r.jsonl.work/statistics"]
    again = ran("compress", *start[:3], "--plan", "r.jsonl", "--point", key[:8], *stats, "--out", "b.qg")
    assert again["bytes"] <= 20_000 and any("byte for byte" in note for note in again["notes"])

    status, out, _ = run(*typed, *grid)  # finished points are not made again, and two failed ones do not fail it
    assert status == 0 and "4 points, 0 of them made now; 2 failed, --retry does them again" in out
    assert "5,000 bytes cannot be met" in out and " yes " in out
    other = ran("compress", *start, "--plan", "point.json", "--tokens", 256, "--out", "c.qg")
    assert any("not the same bytes: other calibration (text, tokens)" in note for note in other["notes"])
    for more, message in (
        (["--plan", "point.json", "--damp", 0.1, "--out", "d.qg"], "--damp is decided by --plan"),
        (["--plan", "point.json", "--code", start[2], "--out", "d.qg"], "expected the 0 that the plan counts"),
        (["--plan", "point.json"], "--out is missing"),
        (["--point", "ab", "--max-bytes", "20kB", "--out", "d.qg"], "--point names a point of --plan"),
    ):
        status, _, err = run("compress", *start, *more)
        assert status == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "d.qg").exists()
    status, _, err = run(*typed, "--solver", "gptq", "--max-bytes", "5kB")
    assert status == 3 and "none of 1 points could be made" in err
    status, _, err = run(*typed[:-2], "--length", 32, "--out", "r.jsonl", *grid)
    assert status == 2 and "with other windows (length 64 and not 32" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "the grid is empty"),
        (["--max-bytes", "9MB:8MB:1MB"], "is empty"),
        (["--max-bytes", "1MB", "--group-size", "32"], "--group-size means nothing to --solver slope"),
        (["--max-bytes", "1MB", "--shard", "3/2"], "shard 3/2"),
        (["--max-bytes", "1MB", "--shard", "half"], "expected i/n"),
        (["--max-bytes", "1MB", "--pick-within", "1MB"], "--pick-within is for --pick"),
        (["--max-bytes", "1MB", "--around", "p.json"], "--around is where --search begins"),
        (["--max-bytes", "1MB", "--search", "all"], "expected random:N or local:N"),
        (["--max-bytes", "1MB", "--search", "local:0"], "expected random:N or local:N"),
        (["--max-bytes", "1MB", "--search", "local:3", "--sensitivity"], "expected one of them"),
        (["--bits", "4", "--sensitivity", "--by", "layer"], "expected matrix or role"),
        (["--bits", "4", "--sensitivity", "--high", "9"], "high is 9"),
        (["--grid", "none.yaml"], "No such file"),
        (["--bits", "4", "--memory", "1MB"], "give --memory"),
    ],
)
def test_bad_input_is_one_line(run: Run, start: list[object], more: list[object], message: str, tmp_path: Path) -> None:
    status, _, err = run("sweep", *start, "--tokens", 256, "--eval-tokens", 256, "--out", "r.jsonl", *more)
    last = err.strip().splitlines()[-1]
    assert status == 2 and message in last and last.startswith("quantgolf: ") and not (tmp_path / "r.jsonl").exists()


def test_an_out_that_cannot_be(run: Run, start: list[object]) -> None:
    assert "--out is missing" in run("sweep", *start, "--bits", "4")[2]
    assert "expected one that exists" in run("sweep", *start, "--bits", "4", "--out", "none/r.jsonl")[2]


def test_shards_of_ranks_divide_shards() -> None:
    assert shard_of("2/8") == (2, 8)
    parts = [set(range(24)[at - 1 :: of]) for at, of in (divided((2, 3), rank, 4) for rank in range(4))]
    assert set.union(*parts) == set(range(24)[1::3]) and sum(map(len, parts)) == 8
    with pytest.raises(QuantGolfError, match="expected i/n"):
        shard_of("2")


def test_a_checkpoint_is_called_by_its_file_or_its_folder(tmp_path: Path) -> None:
    assert checkpoint_name("demo") == "demo" and checkpoint_name("runs/golf.safetensors") == "golf"
    assert checkpoint_name(str(tmp_path / "smol" / "model.safetensors")) == "smol"


def test_a_scan_says_what_each_byte_saves() -> None:
    base = FrontierPoint("a", "m", "f", 9, "gptq", {"bits": "3"}, {"tokens": 9}, bytes=1000, bpb=1.0, kl=Measured(0.3))
    raised = FrontierPoint(
        "b", "m", "f", 9, "gptq", {"bits": "3", "raised": "emb=8"}, {"tokens": 9}, bytes=1100, bpb=1.0, kl=Measured(0.1)
    )
    outcome = Outcome((base, raised))
    assert frontier_table.saved(raised, outcome) == pytest.approx(0.002) and frontier_table.saved(base, outcome) is None
    assert frontier_table.fronts(outcome) == {"a", "b"}


@pytest.mark.parametrize(
    ("finals", "hint"), [([False], "the same command does"), ([True], "--retry does"), ([False, True], "--retry does")]
)
def test_where_nothing_could_be_made_it_says_what_tries_again(finals: list[bool], hint: str, tmp_path: Path) -> None:
    common = ("m", "f", 9, "gptq", {"bits": "3"}, {"tokens": 9}, "failed", "statistics cannot be read")
    failed = tuple(FrontierPoint(f"{at}", *common, final=final) for at, final in enumerate(finals))
    with pytest.raises(QuantGolfError) as caught:
        finish(Outcome(failed), tmp_path / "r.jsonl", None, None, False, False)
    line = f"none of {len(finals)} points could be made; the first: statistics cannot be read; {hint} them again"
    assert str(caught.value) == line and not isinstance(caught.value, BudgetError)
    short = tuple(replace(point, nearest=9, final=True) for point in failed)
    with pytest.raises(BudgetError) as missed:  # trying again makes no limit larger
        finish(Outcome(short), tmp_path / "r.jsonl", None, None, False, False)
    assert "again" not in str(missed.value) and missed.value.nearest == 9
