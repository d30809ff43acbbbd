"""`quantgolf eval` as a user types it: agreement, worst document, a second file, intervals, precision, shards."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantgolf.checkpoint import read_demo
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.evaluate import difference, kl_difference, top1_difference
from quantgolf.types import EvalResult

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def options(tiny_path: Path, prose: Path) -> list[object]:
    return [
        "--model", tiny_path.parent / "card.json", "--tokenizer", read_demo().tokenizer, "--data", prose,
        "--length", 64, "--tokens", 1500,
    ]  # fmt: skip


@pytest.fixture
def files(ran: Callable[..., Any], tiny_path: Path, options: list[object], tmp_path: Path) -> list[Path]:
    """Two files of the tiny model, of about 6 and 3 bits."""
    found = []
    for bits in (6, 3):
        found.append(tmp_path / f"{bits}.qg")
        ran(
            "compress",
            tiny_path,
            *options,
            "--bits",
            bits,
            "--solver",
            "rtn",
            "--no-guard",
            "--out",
            found[-1],
        )
    return found


def read(documents: dict[str, Any]) -> EvalResult:
    nats, size, tokens, kl, agree = (np.array(documents[k]) for k in ("nats", "bytes", "tokens", "kl", "agree"))
    return EvalResult(nats, size, tokens, kl, 0, agree)


def test_two_files_are_compared_on_the_same_tokens(
    run: Run, ran: Callable[..., Any], files: list[Path], options: list[object], tiny_path: Path
) -> None:
    asked = [*options, "--reference", tiny_path, "--against", files[1], "--resamples", 200, "--seed", 4]
    found = ran("eval", files[0], *asked, "--per-document")
    one, other = read(found["documents"]), read(found["against"]["documents"])
    assert found["bootstrap"] == {"seed": 4, "resamples": 200, "interval": "95%, paired over documents"}
    for key, how in (("bpb", difference), ("kl", kl_difference), ("top1", top1_difference)):
        exact = how(one, other, seed=4, resamples=200)
        assert found["against"][f"{key}_difference"] == {"value": exact.value, "low": exact.low, "high": exact.high}
    assert found["top1"]["value"] == one.top1 and found["against"]["top1"]["value"] == other.top1
    assert one.top1 is not None and other.top1 is not None and 1 > one.top1 > other.top1
    worst = found["worst_document"]
    assert worst["index"] == one.worst_document and worst["kl_bpb"] == one.worst > found["kl_bpb"]["value"]
    assert worst["bytes"] == one.bytes[worst["index"]]
    alone = ran("eval", files[1], *options, "--reference", tiny_path, "--resamples", 200, "--seed", 4)
    assert {key: found["against"][key] for key in ("bpb", "kl_bpb", "delta_bpb", "top1", "worst_document")} == {
        key: alone[key] for key in ("bpb", "kl_bpb", "delta_bpb", "top1", "worst_document")
    }
    status, out, _ = run("eval", files[0], *asked)
    assert status == 0
    for said in ("top-1 agreement", "worst document", "BPB minus that", "KL minus that", "200 resamples, seed 4"):
        assert said in out

    plain = ran("eval", files[0], *options, "--against", files[1])
    assert "kl_difference" not in plain["against"] and "bootstrap" not in plain
    assert plain["against"]["bpb_difference"]["value"] == pytest.approx(plain["bpb"] - plain["against"]["bpb"])


def test_what_runs_in_which_precision_is_said(ran: Callable[..., Any], tiny_path: Path, options: list[object]) -> None:
    full = ran("eval", tiny_path, *options)
    half = ran("eval", tiny_path, *options, "--dtype", "bf16", "--batch-tokens", 100)
    assert full["precision"] == "fp32; log-probabilities in fp32, summed in fp64"
    assert half["precision"].startswith("matrix products in bf16 (autocast)")
    assert half["bpb"] != full["bpb"] and half["bpb"] == pytest.approx(full["bpb"], rel=1e-2)
    assert (full["length"], full["stride"]) == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stride", 65], "stride is 65, expected 1 to the window's length 64"),
        (["--dtype", "fp16"], "'fp16' is not one of"),
        (["--resamples", 0], "'--resamples'"),
        (["--batch-tokens", 0], "'--batch-tokens'"),
    ],
)
def test_bad_settings_are_refused(
    run: Run, tiny_path: Path, options: list[object], arguments: list[object], said: str
) -> None:
    status, _, err = run("eval", tiny_path, *options, *arguments)
    assert status == 2 and said in " ".join(err.replace("│", " ").split())


def test_text_and_its_shard_agree(
    ran: Callable[..., Any], tiny_path: Path, options: list[object], prose: Path, tokenizer: Tokenizer
) -> None:
    """Same tokens, same nats; of the bytes only line breaks are missing, which no token stands for."""
    whole = ran("eval", tiny_path, *options[:-2])
    text = read_corpus(prose, tokenizer)
    header = struct.pack("<256i", 20240520, 1, len(text.tokens), *[0] * 253)
    path = prose.parent / "val.bin"
    path.write_bytes(header + text.tokens.numpy().astype("<u2").tobytes())
    shard = ran("eval", tiny_path, *options[:4], "--data", path, "--length", 64)
    assert shard["bytes_counted_from"] == "tokenizer pieces" and shard["unknown_pieces"] == 0
    assert shard["scored_bytes"] == whole["scored_bytes"] - 400
    assert shard["bpb"] * shard["scored_bytes"] == pytest.approx(whole["bpb"] * whole["scored_bytes"], rel=1e-9)
