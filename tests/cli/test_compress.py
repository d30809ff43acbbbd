"""What `compress` lets ask for, and what it and `inspect` say of the file: bytes by kind, held-out text, the guard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import open_checkpoint, read_demo

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def source(tiny_path: Path) -> list[object]:
    return [tiny_path, "--model", tiny_path.parent / "card.json"]


@pytest.fixture
def text(prose: Path) -> list[object]:
    return ["--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 64]


def test_one_slope_is_the_default_and_both_tables_say_where_the_bytes_went(
    run: Run, ran: Callable[..., Any], source: list[object], text: list[object], tmp_path: Path
) -> None:
    code = tmp_path / "train.py"
    code.write_text("x" * 1000)
    learn = [*text, "--tokens", 2048, "--held-out", 1024]
    report = ran("compress", *source, *learn, "--max-bytes", "18kB", "--code", code, "--out", "a.qg")
    size = (tmp_path / "a.qg").stat().st_size
    assert report["bytes"] == size and 18_000 - 256 <= size + 1000 <= 18_000
    kinds = report["kinds"]
    assert list(kinds) == ["levels", "exponents", "small tensors", "header", "checksum", "code"]
    assert sum(kinds.values()) == size + 1000 and kinds["code"] == 1000 and kinds["checksum"] == 8
    assert report["side_share"] == pytest.approx(1 - kinds["levels"] / size)
    assert report["guard"]["chosen"] == "slope" and report["guard"]["uniform_kl"] > report["guard"]["kl"]
    assert report["held_out"]["tokens"] == 1023 and report["held_out"]["kl"] == report["guard"]["kl"]
    assert report["calibration"]["tokens"] == 2048

    seen = ran("inspect", "a.qg")
    assert seen["kinds"] == {kind: count for kind, count in kinds.items() if kind != "code"}
    assert seen["side_share"] == report["side_share"]
    assert {t["bits"] for t in seen["tensors"].values()} == {"levels", None}
    leveled = {name: t for name, t in seen["tensors"].items() if t["bits"] == "levels"}
    assert set(leveled) == set(report["weights"])
    for key, kind in (("code_bytes", "levels"), ("step_bytes", "exponents"), ("small_bytes", "small tensors")):
        assert sum(t[key] for t in seen["tensors"].values()) == pytest.approx(kinds[kind])
    table = run("inspect", "a.qg")[1]
    assert "side data: " in table and "levels" in table.split("side data: ")[1] and "checksum" in table
    assert ["emb.weight", "1024×32", "levels"] in [line.split()[:3] for line in table.splitlines()]

    out = run("compress", *source, *learn, "--max-bytes", "18kB", "--out", "b.qg")[1]
    assert f"side data: {out.split('side data: ')[1].split('%')[0]}% of the file" in out
    assert "guard: slope is kept: KL " in out and "on 1,023 tokens of held-out text: KL " in out
    assert "0 of them and of the text behind them unknown pieces" in out


def test_bits_per_parameter_are_a_limit(ran: Callable[..., Any], source: list[object], text: list[object]) -> None:
    parameters = open_checkpoint(*source[::2]).parameters  # type: ignore[arg-type]
    learn = [*text, "--tokens", 1024, "--no-guard"]
    report = ran("compress", *source, *learn, "--bpw", "2.75", "--out", "a.qg")
    limit = int(2.75 * parameters / 8)
    assert report["max_bytes"] == limit and limit - 256 <= report["bytes"] <= limit
    assert report["guard"] is report["held_out"] is None and not report["notes"]
    same = ran("compress", *source, *learn, "--max-bytes", limit, "--out", "b.qg")
    assert Path("a.qg").read_bytes() == Path("b.qg").read_bytes() and same["bytes"] == report["bytes"]
    found = ran("compress", *source, *learn[:-1], "--bpw", "2.75", "--dry-run")
    assert found["max_bytes"] == found["file_bytes"] == limit


def test_promises_are_measured_as_eval_measures(
    run: Run, ran: Callable[..., Any], source: list[object], text: list[object], tmp_path: Path
) -> None:
    """From statistics, with the same text beside them, the held-out part is the one behind what they have seen."""
    ran("calibrate", *source, *text, "--tokens", 2048, "--out", "stats")
    learn = ["--stats", "stats", *text[:-2], "--held-out", 1024]
    report = ran("compress", *source, *learn, "--max-kl", "0.1", "--out", "a.qg")
    assert 0.05 < report["held_out"]["kl"] <= 0.1 and report["max_kl"] == 0.1 and report["max_bytes"] is None
    assert report["guard"]["uniform_bytes"] is None or report["guard"]["uniform_bytes"] <= report["bytes"]
    anew = ran("compress", *source, *text, "--tokens", 2048, "--held-out", 1024, "--max-kl", "0.1", "--out", "b.qg")
    assert Path("a.qg").read_bytes() == Path("b.qg").read_bytes()
    assert {key: anew[key] for key in ("held_out", "guard")} == {key: report[key] for key in ("held_out", "guard")}
    out = run("compress", *source, *learn, "--max-dbpb", "0.1", "--solver", "rtn", "--out", "c.qg")[1]
    assert "; promised: --max-dbpb 0.1" in out
    status, _, err = run("compress", *source, "--stats", "stats", "--length", 64, "--bpw", 3, "--out", "d.qg")
    assert status == 2 and "--length has no effect with --stats" in err
    status, _, err = run("compress", *source, *learn, "--length", 64, "--bpw", 3, "--out", "d.qg")
    assert status == 2 and "--length has no effect with --stats" in err


def test_widths_by_hand_take_a_solver_that_has_some(
    run: Run, ran: Callable[..., Any], source: list[object], text: list[object]
) -> None:
    learn = [*text, "--tokens", 1024]
    report = ran("compress", *source, *learn, "--bits", 3, "--out", "a.qg")
    assert report["notes"] == ["--bits gives fixed widths: --solver gptq is taken, not slope, which has none"]
    assert list(report["kinds"]) == ["codes", "steps", "small tensors", "header", "checksum"]
    chosen = ran("compress", *source, *learn, "--bits", 3, "--solver", "gptq", "--out", "b.qg")
    assert chosen["notes"] == [] and Path("a.qg").read_bytes() == Path("b.qg").read_bytes()
    assert "note: --bits gives fixed widths" in run("compress", *source, *learn, "--bits", 3, "--out", "c.qg")[1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "nothing is asked for"),
        (["--max-bytes", "9kB", "--bpw", 3], "--max-bytes and --bpw are given, expected one way to ask"),
        (["--bpw", 3, "--max-kl", 0.1, "--max-dbpb", 0.1], "--bpw and --max-kl and --max-dbpb are given"),
        (["--bpw", 0], "--bpw is 0.0, expected a number above 0"),
        (["--bpw", "nan"], "--bpw is nan"),
        (["--max-kl", -1], "--max-kl is -1.0"),
        (["--bits", 3, "--max-kl", 0.1], "--max-kl searches widths and --bits gives them"),
        (["--bits", 3, "--guard"], "the guard compares what a solver chose"),
        (["--bits", 3, "--solver", "slope"], "--solver slope has no widths"),
        (["--bits", 3, "--states", 4], "--solver is gptq; leave one out"),
        (["--max-kl", 0.1, "--dry-run"], "--dry-run predicts no loss on text"),
        (["--max-kl", 0.1, "--stats", "stats"], "--max-kl is kept on held-out text: statistics alone"),
        (["--bpw", 3, "--guard", "--stats", "stats"], "--guard compares on held-out text: statistics alone"),
        (["--bpw", 3, "--guard", "--data", "short.txt"], "calibration text has 50 tokens, expected at least 260"),
        (["--max-dbpb", 0.1, "--data", "short.txt"], "calibration text has 50 tokens, expected at least 260"),
        (["--max-kl", 0.1, "--data", "self", "--tokens", 300], "text that the model wrote itself has no bytes"),
        (["--max-kl", 1e-12], "--max-kl 1e-12 cannot be kept: the best file measures"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(
    run: Run, source: list[object], text: list[object], tmp_path: Path, asked: list[object], message: str
) -> None:
    (tmp_path / "short.txt").write_text("a few words " * 8)
    if "stats" in asked:
        run("calibrate", *source, *text, "--tokens", 512, "--out", "stats")
        text = []
    elif "--data" in asked:
        text = [*text[:2], *text[4:]]
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run("compress", *source, *text, *asked, "--out", "a.qg")
    left = [path for path in sorted(tmp_path.rglob("*")) if "a.qg.work" not in path.parts]
    assert status == 2 and not out and left == before
    assert (tmp_path / "a.qg.work").exists() == ("are kept in a.qg.work for the next try" in err)
    assert err.splitlines()[-1].startswith("quantgolf: ") and message in err.splitlines()[-1]
    assert err.count("quantgolf: ") == 1 and "Traceback" not in err
