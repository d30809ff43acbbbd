"""`quantgolf export-decoder` as an entrant types it: the decoder is counted, and restores what was compressed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quantgolf.blob import read_blob
from quantgolf.checkpoint import read_demo
from quantgolf.encode import DTYPES
from quantgolf.runtime import restore

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("solver", ["slope", "gptq"])
def test_the_whole_way(run: Run, tiny_path: Path, prose: Path, solver: str) -> None:
    status, out, _ = run("export-decoder", "--json")
    counted = json.loads(out)["bytes"]
    assert status == 0 and Path("decoder.py").stat().st_size == counted < 4096

    limit = counted + 15_000
    status, out, _ = run(
        "compress", tiny_path, "--model", tiny_path.parent / "card.json", "--tokenizer", read_demo().tokenizer,
        "--data", prose, "--length", 64, "--tokens", 2048, "--solver", solver, "--max-bytes", limit,
        "--code", "decoder.py", "--out", "a.qg", "--json",
    )  # fmt: skip
    report = json.loads(out)
    assert status == 0 and report["code_bytes"] == counted
    assert limit - 1000 < Path("a.qg").stat().st_size + counted <= limit

    subprocess.run([sys.executable, "decoder.py", "a.qg", "out.pt"], check=True)
    found = torch.load("out.pt", weights_only=True)
    _, coded = read_blob("a.qg")
    expected = restore(coded)
    assert list(found) == list(expected)
    for entry in coded.tensors:
        tensor = found[entry.name]
        assert tensor.dtype == DTYPES[entry.dtype] and torch.equal(tensor, expected[entry.name].to(tensor.dtype))

    if solver == "gptq":
        return
    status, out, _ = run("export-decoder", "--for", "a.qg", "--out", "small.py", "--json")
    document = json.loads(out)
    assert status == 0 and document["seconds"] > 0 and document["for"] == "a.qg"
    assert document["bytes"] == Path("small.py").stat().st_size < counted


def test_what_it_says_and_refuses(run: Run) -> None:
    status, out, _ = run("export-decoder")
    assert status == 0 and out.startswith("decoder.py: 2,") and out.rstrip().endswith("bytes of code")
    written = Path("decoder.py").read_bytes()

    status, _, err = run("export-decoder", "--readable")
    assert status == 2 and "exists already" in err and "--overwrite" in err
    assert Path("decoder.py").read_bytes() == written
    assert run("export-decoder", "--readable", "--overwrite")[0] == 0
    assert b"def load(source" in Path("decoder.py").read_bytes()

    status, _, err = run("export-decoder", "--readable", "--ascii", "--out", "b.py")
    assert status == 2 and "expected one of them" in err
    status, _, err = run("export-decoder", "--for", "missing.qg", "--out", "b.py")
    assert status == 2 and "missing.qg" in err and not Path("b.py").exists()
    assert run("export-decoder", "--ascii", "--out", "b.py")[0] == 0 and Path("b.py").read_bytes().isascii()
