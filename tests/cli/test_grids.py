"""Grids and codecs as `compress` takes, shows and refuses them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import read_demo
from quantgolf.cli.grids import Asked, CodecOf, ScalesOf, parse_sizes
from quantgolf.cli.inputs import Solver
from quantgolf.errors import QuantGolfError
from quantgolf.solve.grid import Grid

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def given(tiny_path: Path, prose: Path) -> list[object]:
    learn = ["--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 64, "--tokens", 1024]
    return [tiny_path, "--model", tiny_path.parent / "card.json", *learn]


def test_reports_say_which_groups_were_chosen(run: Run, ran: Callable[..., Any], given: list[object]) -> None:
    asked = ["--max-bytes", "30kB", "--solver", "gptq", "--group-size", "8,row", "--scales", "log", "--no-guard"]
    report = ran("compress", *given, *asked, "--out", "a.qg")
    sizes = {w["group_size"] for w in report["weights"].values()}
    assert sizes <= {8, "row"} and Path("a.qg").stat().st_size == report["bytes"] <= 30_000
    table = run("compress", *given, *asked, "--out", "b.qg")[1]
    assert "columns a scale" in table and Path("a.qg").read_bytes() == Path("b.qg").read_bytes()
    found = ran("compress", *given, *asked, "--dry-run")
    assert found["file_bytes"] == pytest.approx(report["bytes"], rel=0.03)
    plain = run("compress", *given, "--bits", 4, "--out", "c.qg")[1]
    assert "columns a scale" not in plain


def test_widths_by_hand_take_grids_and_codecs(ran: Callable[..., Any], given: list[object]) -> None:
    report = ran(
        "compress", *given, "--bits", 4, "--group-size", 10, "--asymmetric", "--codec", "zstd", "--out", "a.qg"
    )
    assert {w["group_size"] for w in report["weights"].values()} == {10}
    assert report["kinds"]["zeros"] > 0
    plain = ran("compress", *given, "--bits", 4, "--symmetric", "--codec", "auto", "--scales", "fp16", "--out", "b.qg")
    same = ran("compress", *given, "--bits", 4, "--out", "c.qg")
    assert Path("b.qg").read_bytes() == Path("c.qg").read_bytes()
    assert plain["bytes"] == same["bytes"] < report["bytes"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--bpw", 3, "--group-size", 32], "--group-size is for codes of fixed widths, and --solver slope has none"),
        (["--bpw", 3, "--asymmetric"], "--asymmetric/--symmetric is for codes of fixed widths"),
        (["--bpw", 3, "--scales", "log"], "--scales is for codes of fixed widths"),
        (["--bpw", 3, "--codec", "zstd"], "leave it out, or add --solver gptq"),
        (["--bpw", 3, "--solver", "slope", "--codec", "rans"], "--codec is for codes of fixed widths"),
        (["--bits", 3, "--group-size", "0"], "--group-size: '0' in '0', expected a number of columns from 1 on"),
        (["--bits", 3, "--group-size", "8,,row"], "--group-size: '' in '8,,row'"),
        (["--bits", 3, "--group-size", "8,row"], "give one size, or --max-bytes"),
        (["--bpw", 3, "--solver", "rtn", "--group-size", "8,8"], "'8,8' names a size twice"),
        (["--bpw", 1, "--solver", "rtn", "--group-size", "8"], "with 2 bits everywhere and scales of 8 columns"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused_in_one_line(
    run: Run, given: list[object], tmp_path: Path, asked: list[object], message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run("compress", *given, *asked, "--out", "a.qg")
    assert status in (2, 3) and not out and sorted(tmp_path.rglob("*")) == before
    assert message in err.splitlines()[-1] and err.count("quantgolf: ") == 1 and "Traceback" not in err


def test_sizes_are_spelled_as_numbers_and_row() -> None:
    assert parse_sizes("row") == (None,) and parse_sizes(" 32, 128,row") == (32, 128, None)
    for wrong in ("", "-1", "1.5", "rows", "٣", "1e3"):
        with pytest.raises(QuantGolfError, match="expected a number of columns from 1 on, 'row', or several"):
            parse_sizes(wrong)
    asked = Asked.of(Solver.gptq, False, True, "64", True, ScalesOf.log, None)
    assert asked == Asked(Grid(64, False, "log"), None, CodecOf.auto)
    assert Asked.of(Solver.slope, False, True, None, None, None, None) == Asked(Grid(), None, CodecOf.auto)
    assert Asked.of(Solver.rtn, True, True, "8,row", None, None, None).group_sizes == (8, None)
