"""`quantgolf generate`, and `quantgolf eval` straight from packed weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf.blob import pack, write_blob
from quantgolf.checkpoint import Checkpoint, read_demo
from quantgolf.cli.generate import text_of
from quantgolf.cli.plain import plain
from quantgolf.compress import calibrate, compress
from quantgolf.data import open_tokenizer, read_corpus
from quantgolf.data.tokenizer import ByteTokenizer
from quantgolf.encode import Entry, encode_model
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import write_on

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tiny: Checkpoint, prose: Path, tmp_path: Path) -> Path:
    text = read_corpus(prose, read_demo().tokenizer, max_tokens=1100)
    path = tmp_path / "a.qg"
    compress(tiny, calibrate(tiny, text, tokens=512, length=32), rules=[("*", 4)]).write(path)
    return path


def test_the_same_text_packed_and_not(run: Run, ran: Callable[..., Any], file: Path) -> None:
    options = [file, "--tokenizer", "demo", "--prompt", "import os", "--tokens", 12, "--length", 8, "--seed", 3]
    found = [ran("generate", *options, *more) for more in ([], ["--float"], ["--packed"])]
    assert found[0]["text"].startswith("import os") and len(found[0]["tokens"]) == 12 and found[0]["seconds"] > 0
    assert found[0]["tokens"] == found[1]["tokens"] == found[2]["tokens"]
    assert ran("generate", *options[:-1], 4)["tokens"] != found[0]["tokens"]
    status, out, _ = run("generate", *options)
    assert status == 0 and out.removesuffix("\n") == plain(found[0]["text"], breaks=True)
    assert not found[0]["text"].replace("\n", "").isprintable()  # a model may write what a terminal would obey


def test_the_demo_needs_no_tokenizer(ran: Callable[..., Any]) -> None:
    options = ["generate", "demo", "--prompt", "import", "--tokens", 8, "--temperature", 0]
    assert ran(*options)["tokens"] == ran(*options, "--seed", 9)["tokens"]


def test_bad_input(run: Run, file: Path, tiny_path: Path) -> None:
    card = ["--model", tiny_path.parent / "card.json"]
    for options, message in (
        ([file], "--tokenizer is missing"),
        ([file, "--tokenizer", "bytes"], "no BOS piece, expected one; pass --no-bos"),
        ([file, "--tokenizer", "demo", "--no-bos"], "the prompt has no tokens"),
        ([tiny_path, *card, "--tokenizer", "demo", "--packed"], "is a checkpoint, expected a compressed file"),
        ([file, "--tokenizer", "demo", "--device", "abacus"], "device 'abacus' cannot be used here"),
    ):
        status, _, err = run("generate", *options)
        assert status == 2 and message in " ".join(err.split()), err


def test_writing_on_checks_its_settings(tiny: Checkpoint) -> None:
    def call(tokens: list[int] | None = None, count: int = 2, **options: Any) -> list[int]:
        return write_on(tiny.module, [1, 2] if tokens is None else tokens, count, **({"vocab_size": 1024} | options))

    assert len(call(vocab_size=1000)) == 2 and max(call([1], 40, vocab_size=10)) < 10
    for options, message in (
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"count": 0}, "0 tokens are asked for"),
        ({"tokens": []}, "the prompt is 0 tokens"),
        ({"tokens": [1024]}, "below 1,024 each"),
        ({"vocab_size": 1025}, "the tokenizer has 1,025 pieces and the model 1,024 logits"),
    ):
        with pytest.raises(QuantGolfError, match=message):
            call(**options)
    with torch.no_grad():
        tiny.module.get_parameter("blocks.0.attn_scale").fill_(float("nan"))
    with pytest.raises(QuantGolfError, match="not all finite"):
        call()


def test_drawing_follows_the_chances(tiny: Checkpoint) -> None:
    """At a temperature so low that only the likeliest is left, and only from the window's tokens."""
    likely = write_on(tiny.module, [3, 1, 4], 5, vocab_size=1024, temperature=0)
    assert write_on(tiny.module, [3, 1, 4], 5, vocab_size=1024, temperature=1e-4, seed=8) == likely
    short = write_on(tiny.module, [7, 7, 4], 5, vocab_size=1024, temperature=0, length=1)
    assert short == write_on(tiny.module, [4], 5, vocab_size=1024, temperature=0, length=1)


def test_tokens_become_text() -> None:
    assert text_of(ByteTokenizer.plain(), list("na\u00efve".encode())) == "na\u00efve"
    assert text_of(ByteTokenizer(260, None, None, 4), [4 + 104, 4 + 105, 1, 4 + 255]) == "hi\ufffd"
    demo = open_tokenizer(read_demo().tokenizer)
    assert text_of(demo, demo.encode("def f(x):\n    return x")) == "def f(x):\n    return x"


def test_evaluation_straight_from_packed_weights(
    run: Run, ran: Callable[..., Any], file: Path, prose: Path, tiny_path: Path
) -> None:
    text = ["--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 64, "--tokens", 2000]
    dense, packed = ran("eval", file, *text), ran("eval", file, *text, "--packed")
    assert packed["bpb"] == pytest.approx(dense["bpb"], rel=1e-6) and "memory" not in dense
    held = packed["memory"]
    assert held["packed_bpw"] > held["file_bpw"] > 3 and held["packed_bytes"] > held["float_bytes"] > 0
    status, out, _ = run("eval", file, *text, "--packed")
    assert status == 0 and "packed bits per weight, and the file's" in out
    card = ["--model", tiny_path.parent / "card.json"]
    status, _, err = run("eval", tiny_path, *card, *text, "--packed")
    assert status == 2 and "is a checkpoint, expected a compressed file with --packed" in " ".join(err.split())


def test_a_file_of_nothing_packed(ran: Callable[..., Any], tiny: Checkpoint, prose: Path, tmp_path: Path) -> None:
    """A file may keep everything as it is; packed or not is then the same."""
    coded = encode_model([Entry(name, tensor) for name, tensor in tiny.tensors.items()])
    write_blob(tmp_path / "b.qg", pack(coded, tiny.description))
    text = ["--tokenizer", read_demo().tokenizer, "--data", prose, "--length", 64, "--tokens", 500, "--packed"]
    held = ran("eval", tmp_path / "b.qg", *text)["memory"]
    assert held["packed_bytes"] == 0 and held["packed_bpw"] is None
