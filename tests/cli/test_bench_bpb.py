"""`quantgolf bench bpb` as a user types it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import read_demo
from quantgolf.sweep.point import FrontierPoint

Run = Callable[..., tuple[int, str, str]]

METHOD = """
import io, zlib
import torch

class Coarse:
    def compress(self, state_dict, max_bytes, batches):
        assert batches[0][0].dtype == torch.int64
        kept = {}
        for name, weight in state_dict.items():
            scale = weight.float().abs().max() / 15
            kept[name] = ((weight.float() / scale).round().to(torch.int8), scale)
        file = io.BytesIO()
        torch.save(kept, file)
        return zlib.compress(file.getvalue(), 9)

    def decompress(self, data):
        kept = torch.load(io.BytesIO(zlib.decompress(data)))
        return {name: codes * scale for name, (codes, scale) in kept.items()}

def compress(state_dict):
    return ""

def decompress(data):
    return {}
"""


@pytest.fixture
def options(tiny_path: Path, prose: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "mine.py").write_text(METHOD, encoding="utf-8")
    return [
        tiny_path, "--model", tiny_path.parent / "card.json", "--tokenizer", read_demo().tokenizer, "--data", prose,
        "--calibration", prose, "--length", 64, "--tokens", 1500, "--calibration-tokens", 1024,
    ]  # fmt: skip


def test_ours_are_measured_in_the_bytes_that_theirs_took(
    run: Run, ran: Callable[..., Any], options: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "points.jsonl"
    out.write_text('{"half', encoding="utf-8")  # as a killed run leaves it
    asked = ["--method", "mine.py:Coarse", "--ours", "gptq,rtn", "--out", out, "--resamples", 50, "--seed", 3]
    found = ran("bench", "BPB", *options, *asked, "--max-bytes", "60kB", "--max-bytes", "9kB")
    assert found["bootstrap"] == {"seed": 3, "resamples": 50}
    done, failed = found["comparisons"]
    theirs, ours = done["theirs"], done["ours"]
    assert theirs["status"] == "done" and theirs["limit"] == 60_000 and theirs["options"]["script"] == "mine.py"
    assert [each["method"] for each in ours] == ["gptq", "rtn"]
    assert all(each["bytes"] <= each["limit"] == theirs["bytes"] for each in ours)
    assert len({each["float_bpb"] for each in (theirs, *ours)}) == 1
    for each in ours:
        between = done["differences"][each["method"]]
        assert between["bpb"]["value"] == pytest.approx(theirs["bpb"] - each["bpb"], abs=1e-6)
        assert between["kl"]["value"] == pytest.approx(theirs["kl"]["value"] - each["kl"]["value"], abs=1e-6)
        assert between["kl"]["low"] <= between["kl"]["value"] <= between["kl"]["high"]
    assert failed["theirs"]["status"] == "failed" and failed["ours"] == []
    assert failed["theirs"]["error"].endswith("expected at most 9,000")
    points = [FrontierPoint.read(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [each.method for each in points] == ["Coarse", "gptq", "rtn", "Coarse"]
    assert len({each.key for each in points}) == 4 and points[0].documents is not None

    status, printed, err = run("bench", "bpb", *options, "--method", "mine.py", "--ours", "none")
    assert status == 2 and "no method gave a file that could be measured: mine: compress() returned str" in err
    assert "failed" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "mine.py:Coarse"], "--max-bytes is missing, expected a limit because Coarse asks for one"),
        (["--method", "mine.py", "--max-bytes", "9kB", "--max-bytes", "8kB"], "2 limits for mine, whose compress does"),
        (["--method", "mine.py", "--ours", "best"], "--ours is 'best', expected of rtn, gptq_lite, gptq, slope with"),
        (["--method", "other.py"], "method other.py: no such script"),
        (["--method", "mine.py", "--out", "no/points.jsonl"], "output no/points.jsonl: no such folder"),
        (["--method", "mine.py", "--out", "."], "output .: no such folder, or one itself, expected a file"),
        (["--method", "mine.py", "--method", "mine.py"], "method mine is the name of another one or of ours"),
        (["--method", "mine.py", "--max-bytes", "much"], "size 'much' is not understood"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    run: Run, options: list[object], arguments: list[object], said: str
) -> None:
    status, _, err = run("bench", "bpb", *options, *arguments)
    assert status == 2 and said in " ".join(err.split())


def test_calibration_is_asked_for_where_it_is_needed(run: Run, options: list[object]) -> None:
    without = [each for each in options if each != "--calibration"]
    del without[7]
    status, _, err = run("bench", "bpb", *without, "--method", "mine.py:Coarse", "--max-bytes", "60kB")
    assert status == 2 and "--calibration is missing" in err


def test_help_says_that_code_is_executed(run: Run) -> None:
    status, out, _ = run("bench", "bpb", "--help")
    assert status == 0 and "executed" in out
    assert "BPB " not in run("bench", "--help")[1].split("Commands")[1]
