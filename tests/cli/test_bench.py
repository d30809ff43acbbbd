"""`quantgolf bench` as a user types it: without a GPU one line and exit 2, what can be done there, and its tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf.bench import model
from quantgolf.bench.machine import conditions
from quantgolf.checkpoint import read_demo
from quantgolf.cli import bench_tables, show
from quantgolf.models.golf import GolfConfig

Run = Callable[..., tuple[int, str, str]]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@without_gpu
@pytest.mark.parametrize("arguments, what", [
    (["kernels"], "bench kernels without --static"), (["decode"], "bench decode"),
    (["eval", "FILE", "--device", "cuda"], "cuda"),
])  # fmt: skip
def test_without_a_gpu_one_line_says_so(run: Run, arguments: list[str], what: str) -> None:
    status, out, err = run("bench", *arguments)
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and what in err


@pytest.mark.parametrize("arguments, said", [
    (["kernels", "--bits", "9"], "width 9 is not known"), (["kernels", "--bits", "4,"], "--bits is '4,'"),
    (["kernels", "--m", "0"], "--m is '0'"), (["kernels", "--shape", "8y8"], "shape '8y8' is not understood"),
    (["kernels", "--kind", "odd"], "kind odd is not known"), (["kernels", "--caches", "cold"], "--caches is cold"),
    (["kernels", "--static", "--m", "512"], "no rows below"), (["decode", "--form", "1"], "form '1' is not known"),
    (["decode", "--what", "sleep"], "--what is sleep"),
])  # fmt: skip
def test_what_is_not_understood_is_said_before_a_gpu_is_looked_for(run: Run, arguments: list[str], said: str) -> None:
    status, _, err = run("bench", *arguments)
    assert status == 2 and said in err


def test_lines_are_added_to_no_other_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("by hand")
    status, _, err = run("bench", "kernels", "--static", "--out", "diary.txt")
    assert status == 2 and "expected lines of JSON to add one to" in err
    assert (tmp_path / "diary.txt").read_text() == "by hand"


def test_static_mode_compiles_and_says_that_it_predicts(run: Run, tmp_path: Path) -> None:
    out_path = tmp_path / "static.jsonl"
    asked = ["bench", "kernels", "--static", "--bits", "8", "--shape", "512x256", "--m", "1", "--out", out_path]
    status, out, err = run(*asked)
    assert status == 0, err
    assert "PREDICTION" in out and "not a measurement" in out and "512×256" in out
    (line,) = map(json.loads, out_path.read_text().splitlines())
    assert line["what"] == "prediction, not a measurement" and line["spilled"] == 0
    assert line["registers"] > 0 and line["versions"]["torch"] == torch.__version__
    status, out, _ = run(*asked[:-2], "--json")
    assert status == 0 and json.loads(out)["rows"][0]["loop"] == line["loop"]


def test_evaluation_is_timed_packed_and_float(run: Run, prose: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.qg"
    config = GolfConfig(vocab_size=1024, dim=64, layers=1, heads=2, kv_heads=1, mlp_mult=2)
    file.write_bytes(model.random_file(config, "6"))
    asked = ["bench", "eval", file, "--data", prose, "--tokenizer", read_demo().tokenizer, "--tokens", 600,
             "--length", 64, "--repeats", 1, "--out", "lines.jsonl"]  # fmt: skip
    status, out, err = run(*asked, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["packed_bpb"] == pytest.approx(found["float_bpb"], rel=1e-4) and 600 <= found["tokens"] < 700
    assert found["packed_bytes"] < 0.5 * found["float_bytes"]
    assert found["speed"] == pytest.approx(found["float_seconds"] / found["packed_seconds"])
    assert json.loads((tmp_path / "lines.jsonl").read_text()) == found
    status, out, _ = run(*asked)
    assert status == 0 and "of the speed in" in " ".join(out.split()) and "packed" in out


def row(**more: Any) -> dict[str, Any]:
    return {
        "op": "product", "kind": "steps", "bits": 4, "m": 1, "n": 8192, "k": 8192, "state": "flushed", "us": 10.0,
        "gbps": 3300.0, "roofline_us": 8.0, "of_roofline": 0.8, "dense_us": 29.0, "gain": 2.9, "goal": 3.0,
        "error": 2e-3, **conditions(None), **more,
    }  # fmt: skip


def printed(table: Any, capsys: pytest.CaptureFixture[str]) -> str:
    show.console(False).print(table)
    return capsys.readouterr().out


def test_the_table_has_the_goal_beside_the_gain(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(), row(gain=3.1), row(bits=7, goal=None), row(op="unpack", dense_us=None, gain=None, goal=None)]
    lines = [line for line in printed(bench_tables.kernels_table(rows), capsys).splitlines() if "8192×8192" in line]
    assert "2.90 3.00 under" in " ".join(lines[0].split())
    assert "3.10 3.00 2.0e-03" in " ".join(lines[1].split())
    assert "3.00" not in lines[2] and "unpack" in lines[3]
    assert bench_tables.unmet(rows) == 1


def test_the_table_of_models_has_both_goals(capsys: pytest.CaptureFixture[str]) -> None:
    one = {
        "name": "model eval", "form": "slope", "tokens_per_second": 90.0, "dense_tokens_per_second": 100.0, "gain": 0.9,
        "goal": 0.95, "bytes": 600, "dense_bytes": 1000, "of_dense_bytes": 0.6, "bytes_goal": 0.5, **conditions(None),
    }  # fmt: skip
    text = " ".join(printed(bench_tables.model_table([one]), capsys).split())
    assert "0.90 0.95 under" in text and "0.60 0.50 over" in text
    assert bench_tables.unmet([one]) == 2
    assert bench_tables.unmet([one | {"gain": 1.0, "of_dense_bytes": 0.4}]) == 0
