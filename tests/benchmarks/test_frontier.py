"""The comparison with other projects: what passes to a peer's process and back, pairing, and the page; no peer is
installed here, and the one that quantizes nothing stands for them."""

import json
import lzma
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import comparison_page
import frontier
import numpy as np
import pytest
import torch
from frontier_points import SLOPE, append, friendliest, paired, read
from peers import job, protocol, uncompressed
from safetensors.torch import load_file
from typer.testing import CliRunner

from quantgolf.checkpoint import read_demo
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import Against, Documents, FrontierPoint, Measured

TENSORS = {"emb": torch.randn(8, 4), "head": torch.randn(4, 4), "gain": torch.ones(4)}


def lay(folder: Path, *variants: str) -> None:
    protocol.write_job(folder, TENSORS, ["emb", "head"], ["emb"], {"head": torch.eye(4)}, list(variants))


def test_a_peer_runs_in_its_own_process_and_its_files_are_weighed(tmp_path: Path) -> None:
    lay(tmp_path, "fp16")
    (answer,) = job.ask("uncompressed", Path(sys.executable), tmp_path)
    assert answer.error == "" and answer.versions["torch"] == torch.__version__
    assert set(answer.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(answer.tensors[name], tensor.half().float())
    file = tmp_path / "fp16" / protocol.FILES / "model.safetensors"
    assert answer.bytes == file.stat().st_size
    assert answer.xz_bytes == len(lzma.compress(file.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


def test_a_variant_that_fails_says_why(tmp_path: Path) -> None:
    lay(tmp_path, "fp16")
    (tmp_path / protocol.WEIGHTS).write_bytes(b"broken")
    (answer,) = job.ask("uncompressed", Path(sys.executable), tmp_path)
    assert answer.error.startswith("quantize: ") and "\n" not in answer.error and not answer.tensors


def test_a_process_that_ends_early_says_its_last_words(tmp_path: Path) -> None:
    lay(tmp_path, "fp16")
    with pytest.raises(QuantGolfError, match=r"no_such_peer ended with 1: .*no_such_peer"):
        list(job.ask("no_such_peer", Path(sys.executable), tmp_path))
    with pytest.raises(QuantGolfError, match="environments"):
        list(job.ask("uncompressed", tmp_path / "no" / "python", tmp_path))
    (tmp_path / job.LOG).write_text("a\nKilled\n\n", "utf-8")
    assert job.answer_of(tmp_path, "fp16").error == "its process ended: Killed"


def test_a_variant_sees_what_it_is_to_see(tmp_path: Path) -> None:
    lay(tmp_path, "x")
    blind = protocol.read_weights(tmp_path, protocol.Variant("x", embedding=False))
    assert set(blind.matrices) == {"head"} and set(blind.rest) == {"emb", "gain"} and not blind.moments
    assert {tensor.dtype for tensor in blind.rest.values()} == {torch.float16}
    seeing = protocol.read_weights(tmp_path, protocol.Variant("x", calibrated=True))
    assert set(seeing.matrices) == {"emb", "head"} and set(seeing.moments) == {"head"}
    assert seeing.embeddings == {"emb"}


def test_inputs_have_the_moments_they_are_made_from() -> None:
    x = torch.randn(50, 6, dtype=torch.float64)
    x[:, 2] = 0  # a dead column
    moments = (x.T @ x / 50).float()
    given = protocol.as_inputs(moments)
    assert given.shape == (6, 6)
    assert torch.allclose(given.T @ given / len(given), moments, atol=1e-5)


def test_every_peer_names_its_variants_once_and_its_pins() -> None:
    assert len(frontier.PEERS) >= 8
    for name in frontier.PEERS:
        peer: Any = __import__(f"peers.{name}", fromlist=["VARIANTS"])
        names = [variant.name for variant in peer.VARIANTS]
        assert peer.TITLE and peer.PACKAGES and len(set(names)) == len(names)
        assert not any("/" in each for each in names)  # they are folders
        pins = (frontier.REQUIREMENTS / f"{name}.txt").read_text("utf-8").splitlines()
        assert all("==" in pin and "/" not in pin for pin in pins)
        known = {pin.partition("==")[0].replace("_", "-").lower() for pin in pins}
        assert {"torch", "safetensors"} | {p.replace("_", "-").lower() for p in peer.PACKAGES} <= known


def point(key: str, method: str, kl: float, size: int = 100, **further: Any) -> FrontierPoint:
    documents = Documents((10, 30), (5, 15), (kl, 3 * kl), (10 * kl * math.log(2), 30 * kl * math.log(2)))
    common: dict[str, Any] = {
        "fingerprint": "f", "parameters": 400, "options": {"variant": key},
        "text": {"fingerprint": "t", "tokens": 20, "bytes": 40, "documents": 2, "length": 8, "context": "dense"},
        "float_bpb": 1.0, "bpb": 1.0 + kl, "kl": Measured(kl, 0.9 * kl, 1.1 * kl), "delta_bpb": Measured(kl),
        "top1": 0.5, "documents": documents, "machine": "a machine", "versions": {"torch": "2"},
    }  # fmt: skip
    return FrontierPoint(key=key, model="m", method=method, bytes=size, **(common | further))


def test_a_file_is_paired_with_our_largest_that_is_no_larger() -> None:
    ours = [point("small", SLOPE, 0.4, 60), point("fits", SLOPE, 0.2, 90),
            point("large", SLOPE, 0.1, 96)]  # fmt: skip
    theirs = point("theirs", "HQQ", 0.5, 100, xz_bytes=95)
    found = paired(theirs, [*ours, theirs], 0).against
    assert found is not None and found.key == "fits"
    assert found.kl.value == pytest.approx(0.3) and found.kl.low == pytest.approx(0.3)
    for size in (10, 1000):  # ours are all larger, or far smaller
        assert paired(replace(theirs, xz_bytes=size, bytes=size), ours, 0).against is None
    elsewhere = replace(theirs, text={**theirs.text, "fingerprint": "another"})
    assert paired(elsewhere, ours, 0).against is None
    assert paired(ours[0], ours, 0).against is None


def test_publishing_keeps_the_last_measured_of_each_key_and_no_documents(tmp_path: Path) -> None:
    lines, out = tmp_path / "points.jsonl", tmp_path / "out.jsonl"
    failed = replace(point("a", "HQQ", 0.5), status="failed", error="interrupted")
    for each in (point("a", "HQQ", 0.9), point("ours", SLOPE, 0.2, 99), point("a", "HQQ", 0.5), failed):
        append(lines, each)
    frontier.publish([lines], out)
    found = {each.key: each for each in read(out)}
    assert set(found) == {"a", "ours"} and all(each.documents is None for each in found.values())
    against = found["a"].against
    assert against is not None and against.kl.value == pytest.approx(0.3)


def test_the_page_counts_wins_and_losses_and_names_what_failed() -> None:
    won = replace(point("won", "HQQ", 0.5), against=Against("o", Measured(0.3, 0.2, 0.4), Measured(0.3)))
    even = replace(point("even", "MLX", 0.5), against=Against("o", Measured(0.1, -0.1, 0.4), Measured(0.1)))
    lost = replace(point("lost", "llama.cpp", 0.2), against=Against("o", Measured(-0.1, -0.2, -0.05), Measured(-0.1)))
    failed = replace(point("bad", "torchao", 0.1), status="failed", error="no kernel")
    text = comparison_page.page([won, even, lost, failed, point("o", SLOPE, 0.2)])
    assert "Of 3 files of 3 other projects, one slope loses less in 2 at the same bytes" in text
    assert "in 1 of them by more than the 95% interval. It loses more than: llama.cpp lost." in text
    assert "- m, torchao bad: no kernel" in text and "torch 2" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 4 and len({line.count("|") for line in table}) == 1
    assert "+0.30000 (+0.20000 to +0.40000)" in text and "-0.10000" in text


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantGolfError, match="no points"):
        comparison_page.main(tmp_path / "none.jsonl", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_the_committed_page_is_that_of_the_committed_points() -> None:
    root = Path(frontier.__file__).parents[1]
    points = read(root / "benchmarks" / "results" / "frontier.jsonl")
    assert (root / "docs" / "comparison.md").read_text("utf-8") == comparison_page.page(points)


def test_peers_and_ours_on_a_small_model(tiny_path: Path, prose: Path) -> None:
    points = prose.with_name("points.jsonl")
    text = ["--model", str(tiny_path.parent / "card.json"), "--tokenizer", str(read_demo().tokenizer),
            "--data", str(prose), "--calibration", str(prose), "--length", "64", "--tokens", "700",
            "--calibration-tokens", "512", "--points", str(points), "--name", "tiny"]  # fmt: skip

    def run(*arguments: str) -> None:
        found = CliRunner().invoke(frontier.APP, [*arguments, *text])
        if found.exception is not None:
            raise found.exception

    for _ in range(2):  # what was measured is not measured again
        run("peers", str(tiny_path), "--peer", f"uncompressed={sys.executable}")
        run("ours", str(tiny_path))
    lines = [json.loads(line) for line in points.read_text("utf-8").splitlines()]
    assert [line["method"] for line in lines] == ["safetensors", "slope"]
    theirs, own = read(points)
    assert theirs.kl is not None and theirs.kl.value < 1e-3
    assert own.bytes is not None and own.bytes <= friendliest(theirs)
    assert theirs.documents is not None and np.sum(theirs.documents.bytes) == theirs.text["bytes"]


def test_a_peer_is_named_with_its_python(tiny_path: Path, prose: Path) -> None:
    arguments = ["peers", str(tiny_path), "--model", str(tiny_path.parent / "card.json"), "--tokenizer",
                 str(read_demo().tokenizer), "--data", str(prose), "--calibration", str(prose), "--length", "64",
                 "--tokens", "700", "--calibration-tokens", "512", "--points", str(prose.with_name("p.jsonl")),
                 "--peer", "no_such_peer=python"]  # fmt: skip
    found = CliRunner().invoke(frontier.APP, arguments)
    assert isinstance(found.exception, QuantGolfError) and "expected NAME=PYTHON" in str(found.exception)


def test_weights_are_read_as_they_were_laid(tmp_path: Path) -> None:
    lay(tmp_path, "fp16")
    stored = load_file(tmp_path / protocol.WEIGHTS)
    assert all(torch.equal(stored[name], tensor) for name, tensor in TENSORS.items())
    assert uncompressed.VARIANTS[0].name == "fp16"
