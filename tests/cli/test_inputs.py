"""The options that name a text: as a user types them, and as programs call what is behind them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from quantgolf.checkpoint import Checkpoint, read_demo
from quantgolf.cli.inputs import Context, Documents, OwnText, Part, TextOptions, open_text, reads_text
from quantgolf.data import open_tokenizer
from quantgolf.errors import QuantGolfError

Eval = Callable[..., dict[str, Any]]


@pytest.fixture
def measure(run: Callable[..., tuple[int, str, str]], tiny_path: Path) -> Eval:
    def call(*arguments: object) -> dict[str, Any]:
        model = ("--model", tiny_path.parent / "card.json")
        status, out, err = run("eval", tiny_path, *model, *arguments, "--length", 32, "--json")
        assert status == 0, err
        document: dict[str, Any] = json.loads(out)
        return document

    return call


TOKENIZER = ("--tokenizer", read_demo().tokenizer)


def test_one_text_in_three_formats_is_one_number(measure: Eval, tmp_path: Path) -> None:
    """Text, JSON lines and a shard of the same documents; the line break is left out of the text's bytes."""
    texts = ["The first document", "and then, a second one", "é"]
    plain, lines, shard = (tmp_path / name for name in ("a.txt", "a.jsonl", "a.bin"))
    plain.write_text("\n".join(texts), encoding="utf-8")
    lines.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    tokenizer = open_tokenizer(read_demo().tokenizer)
    stream = [token for text in texts for token in (1, *tokenizer.encode(text))]
    shard.write_bytes(
        struct.pack("<256i", 20240520, 1, len(stream), *[0] * 253) + struct.pack(f"<{len(stream)}H", *stream)
    )
    sidecar = tmp_path / "a_bytes.bin"
    sizes = [2 * (token != 1) for token in stream]
    sidecar.write_bytes(
        struct.pack("<256i", 20240520, 1, len(sizes), *[0] * 253) + struct.pack(f"<{len(sizes)}H", *sizes)
    )
    for context in ("dense", "isolated"):
        common = (*TOKENIZER, "--context", context)
        by_text = measure("--data", plain, *common)
        by_line = measure("--data", lines, "--text-field", "body", *common)
        by_shard = measure("--data", shard, *common)
        by_sidecar = measure("--data", shard, "--byte-counts", sidecar, *common)
        counted = [m["bytes_counted_from"] for m in (by_text, by_line, by_shard, by_sidecar)]
        assert counted == ["utf-8 text", "utf-8 text", "tokenizer pieces", "byte sidecar"]
        assert {m["context"] for m in (by_text, by_line, by_shard)} == {context}
        assert by_text["scored_bytes"] == by_line["scored_bytes"] + 2 == by_shard["scored_bytes"] + 2
        assert by_line["bpb"] == by_shard["bpb"]
        nats = {m["nats_per_token"] for m in (by_text, by_line, by_shard, by_sidecar)}
        assert len(nats) == 1
        assert by_sidecar["scored_bytes"] == sum(sizes)
    assert by_shard["scored_tokens"] == len(stream) - 3
    assert measure("--data", shard, *TOKENIZER)["scored_tokens"] == len(stream) - 1


def test_tables_say_how_it_was_measured(run: Any, tiny_path: Path, prose: Path) -> None:
    model = ("--model", tiny_path.parent / "card.json", *TOKENIZER, "--data", prose, "--tokens", 500)
    status, out, _ = run("eval", tiny_path, *model, "--context", "isolated")
    assert status == 0 and "isolated" in out and "bytes counted from utf-8 text" in out
    status, _, err = run("eval", tiny_path, *model, "--context", "wide")
    assert status == 2 and "wide" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "self", *TOKENIZER], "--data self is a text to calibrate on"),
        (["--data", "{tmp}/a.txt", "--tokenizer", "bytes"], "pass --no-bos"),
        (["--data", "{tmp}/a.txt", "--tokenizer", "bytes", "--no-bos"], "256 pieces and the model 1,024 logits"),
        (["--data", "{tmp}/a.txt", "--tokenizer", "{tmp}"], "a folder without tokenizer.json"),
        (["--data", "{tmp}/a.bin", *TOKENIZER], "expected a golf shard"),
        (["--data", "{tmp}/a.jsonl", *TOKENIZER], "line 1 has no text in field 'text'"),
        (
            ["--data", "{tmp}/a.txt", "--byte-counts", "{tmp}/a.bin", *TOKENIZER],
            "--byte-counts is given without a shard",
        ),
        (["--data", "{tmp}/a.txt", "--data", "{tmp}/a.bin", *TOKENIZER], "1 of 2 files are shards"),
    ],
)
def test_bad_texts_get_one_line(
    run: Any, tiny_path: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "a.jsonl").write_text('{"body": "some words"}')
    (tmp_path / "a.bin").write_bytes(b"")
    given = [str(a).replace("{tmp}", str(tmp_path)) for a in arguments]
    status, out, err = run("eval", tiny_path, "--model", tiny_path.parent / "card.json", *given)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("quantgolf: ") and message in err


def test_verbs_take_their_text_as_one() -> None:
    seen: list[tuple[str, TextOptions, int]] = []

    @reads_text
    def verb(name: Annotated[str, typer.Argument()], text: TextOptions, tokens: int = 7) -> None:
        """What it does."""
        seen.append((name, text, tokens))

    app = typer.Typer()
    app.command()(verb)
    runner = CliRunner()
    assert runner.invoke(app, ["first"]).exit_code == 0
    typed = (
        "second --data a --data b --no-bos --context isolated --documents files --text-field body "
        "--byte-counts c --length 9 --tokens 3 --tokenizer d"
    )
    assert runner.invoke(app, typed.split()).exit_code == 0
    assert runner.invoke(app, ["third", "--length", "0"]).exit_code == 2
    assert runner.invoke(app, []).exit_code == 2
    whole = TextOptions(
        data=[Path("a"), Path("b")], tokenizer=Path("d"), documents=Documents.files, text_field="body",
        byte_counts=[Path("c")], bos=False, length=9, context=Context.isolated,
    )  # fmt: skip
    assert seen == [("first", TextOptions(), 7), ("second", whole, 3)]
    help_ = runner.invoke(app, ["--help"]).output
    assert "What it does." in help_ and "--byte-counts" in help_ and "--text " not in help_


def test_the_model_writes_its_own_text(tiny: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    own = OwnText(tiny.module, seed=1, progress=lambda done, total: seen.append((done, total)))
    options = TextOptions(data=[Path("self")], tokenizer=read_demo().tokenizer, length=16)
    text = options.open(None, 40, Part.calibration, own)
    assert len(text.tokens) == 3 * 17 and text.bos == 1 and text.counted == "none: self-generated"
    assert seen[-1] == (48, 48)
    again = open_text(
        "demo",
        [Path("self")],
        None,
        Documents.lines,
        True,
        40,
        Part.calibration,
        length=16,
        own=OwnText(tiny.module, 1),
    )
    assert torch.equal(text.tokens, again.tokens)
    without = TextOptions(data=[Path("self")], tokenizer=read_demo().tokenizer, length=16, bos=False)
    assert without.open(None, 40, Part.calibration, own).bos is None
    with pytest.raises(QuantGolfError, match="--tokenizer is missing, expected it for --data self"):
        TextOptions(data=[Path("self")]).open(None, 40, Part.calibration, own)
    with pytest.raises(QuantGolfError, match="has no BOS piece"):
        TextOptions(data=[Path("self")], tokenizer=Path("bytes")).open(None, 40, Part.calibration, own)
    with pytest.raises(QuantGolfError, match="--data self is a text to calibrate on"):
        options.open("demo", 40, Part.calibration)


def test_the_demo_brings_text_and_tokenizer() -> None:
    text = TextOptions().open("demo", 500, Part.validation)
    assert text.bos == 1 and text.vocab_size == 1024
    plain = TextOptions(bos=False).open("demo", 500, Part.validation)
    assert plain.bos is None and plain.tokens[0] == text.tokens[1]
    raw = TextOptions(data=[Path("demo")], tokenizer=Path("bytes"), bos=False).open(None, 500, Part.validation)
    assert raw.vocab_size == 256 and raw.bytes[0] == text.bytes[0]
    with pytest.raises(QuantGolfError, match="--data is missing"):
        TextOptions().open(None, 500, Part.validation)
    with pytest.raises(QuantGolfError, match="--tokenizer is missing"):
        TextOptions(data=[Path("a.txt")]).open(None, 500, Part.validation)
