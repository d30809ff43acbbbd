"""`quantgolf plot` as a user types it: which files come out, what is said, and how it says no."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.sweep.point import FrontierPoint, Measured, Tensor

Run = Callable[..., tuple[int, str, str]]


def point(method: str, size: int, kl: float, **changed: Any) -> FrontierPoint:
    tensors = tuple(
        Tensor(f"blocks.{layer}.up.weight", "mlp.up", layer, 1000, 3.0, size / 3, kl / 9) for layer in range(2)
    )
    values: dict[str, Any] = {
        "key": f"{method}-{size}", "model": "demo", "fingerprint": "f", "parameters": 500_000, "method": method,
        "options": {"solver": method}, "text": {"fingerprint": "t"}, "bytes": size, "bpb": 1 + kl, "float_bpb": 1.0,
        "delta_bpb": Measured(kl, 0.9 * kl, 1.1 * kl), "kl": Measured(kl, 0.9 * kl, 1.1 * kl), "tensors": tensors,
        "kinds": {"levels": size - 100, "header": 100},
    }  # fmt: skip
    return FrontierPoint(**{**values, **changed})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.jsonl"
    points = [point("slope", 100_000, 0.1), point("slope", 200_000, 0.02), point("gptq", 100_000, 0.2)]
    path.write_text("".join(each.line() for each in points))
    return path


def test_a_folder_gets_all_pictures_and_the_page(run: Run, results: Path, tmp_path: Path) -> None:
    with results.open("a") as stream:
        stream.write(point("gptq", 1, 1.0).line()[:50])
    status, out, err = run("plot", results, "--out", "pictures")
    assert (status, err) == (0, "")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    pictures = {
        f"{name}{end}" for name in ("frontier", "bytes", "depth", "worth") for end in (".svg", ".png", "-dark.png")
    }
    assert names == {*pictures, "report.html"}
    assert "3 points: pictures/frontier.svg" in out and "line 4 is left out" in out
    first = tmp_path / "pictures" / "frontier.png"
    assert run("plot", results, "--out", first.with_name("again.png"))[0] == 0
    assert first.read_bytes() == first.with_name("again.png").read_bytes()
    assert run("plot", results, "--out", first)[0] == 0


def test_the_file_s_name_says_what_is_drawn(ran: Callable[..., Any], results: Path, tmp_path: Path) -> None:
    starts = {"a.png": b"\x89PNG", "b.svg": b"<svg", "c.pdf": b"%PDF", "d.html": b"<!doctype html>"}
    for name, start in starts.items():
        document = ran("plot", results, "--out", name)
        assert document["files"] == [name] and document["points"] == 3 and document["failed"] == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    ran("plot", results, "--out", "bytes.svg")
    assert "mlp.up\n" in (tmp_path / "bytes.svg").read_text()
    ran("plot", results, "--out", "dark.svg", "--theme", "dark")
    dark, auto = (tmp_path / "dark.svg").read_text(), (tmp_path / "b.svg").read_text()
    assert "#14181d" in dark and "@media" not in dark and "prefers-color-scheme:dark" in auto


def test_several_files_and_what_they_lack(ran: Callable[..., Any], results: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    failed = FrontierPoint("k", "demo", "f", 500_000, "peer", {"a": 1}, {"fingerprint": "t"}, "failed", "no CUDA")
    other.write_text(point("peer", 90_000, 0.3, fingerprint="g", tensors=(), kinds={}).line() + failed.line())
    document = ran("plot", results, other, "--out", "both", "--theme", "light")
    assert document["points"] == 4 and document["failed"] == 1 and len(document["panels"]) == 2
    assert "no CUDA" in (tmp_path / "both" / "report.html").read_text()
    assert not (tmp_path / "both" / "frontier-dark.png").exists()
    alone = tmp_path / "alone.jsonl"
    alone.write_text(point("peer", 90_000, 0.3, tensors=(), kinds={}).line())
    assert ran("plot", alone, "--out", "few", "--theme", "light")["not_drawn"] == ["bytes", "depth", "worth"]


def test_bad_input_gets_one_line_and_touches_nothing(run: Run, results: Path, tmp_path: Path) -> None:
    failed = FrontierPoint("k", "demo", "f", 1, "peer", {"a": 1}, {"fingerprint": "t"}, "failed", "no\nCUDA")
    files = {
        "empty": "",
        "prose": "once upon a time\n",
        "failed": failed.line(),
        "foreign": json.dumps({"kl": 1}) + "\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    kept = tmp_path / "kept.svg"
    kept.write_text("precious")
    for arguments, said in (
        (["empty"], "no point in it (it is empty)"),
        (["prose"], "not a line of JSON"),
        (["failed"], "all 1 points failed, expected a measured one; the first says: no CUDA"),
        (["foreign"], "without `schema`"),
        (["none"], "No such file"),
        ([results, "prose"], "prose"),
    ):
        status, out, err = run("plot", *arguments, "--out", kept)
        assert status == 2 and out == "" and err.count("\n") == 1 and said in err, err
    assert kept.read_text() == "precious"
    bare = tmp_path / "bare.jsonl"
    bare.write_text(point("peer", 90_000, 0.3, tensors=(), kinds={}).line())
    status, _, err = run("plot", bare, "--out", "worth.svg")
    assert status == 2 and "no picture worth" in err and not (tmp_path / "worth.svg").exists()
    for out_name, said in (("a.jsonl", ".jsonl is no picture"), ("empty/x", "output folder"), ("no/a.svg", "output")):
        status, _, err = run("plot", results, "--out", out_name)
        assert status == 2 and said in err and err.count("\n") == 1, err
    assert json.loads(results.read_text().splitlines()[0])["method"] == "slope"
