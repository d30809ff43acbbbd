"""Options that several verbs share, and what they name: checkpoints, texts, tokenizers, or the built-in demo.

The word `demo` stands for the model quantgolf ships wherever a checkpoint is asked for; its card, its
tokenizer and its text then need no option.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from quantgolf.checkpoint import Checkpoint, open_checkpoint, read_demo
from quantgolf.data import Corpus, Tokenizer, corpus_from_texts, read_corpus, stdlib
from quantgolf.errors import QuantGolfError

DEMO = "demo"
DEMO_TEXT_BYTES = 200_000


class Documents(StrEnum):
    """What a document is in a text file."""

    lines = "lines"
    paragraphs = "paragraphs"
    files = "files"


class Solver(StrEnum):
    """How codes are chosen."""

    rtn = "rtn"
    gptq_lite = "gptq_lite"
    gptq = "gptq"


class Part(StrEnum):
    """Which of the demo's held-out texts."""

    calibration = "calibration"
    validation = "validation"


CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CKPT", help="A .safetensors, .pt or .pth file, or the word demo.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="card.json of the reference family, or path/to/script.py:factory (is executed)."),
]
TokenizerOption = Annotated[Path | None, typer.Option("--tokenizer", help="SentencePiece model of the text.")]
DataOption = Annotated[
    list[Path] | None, typer.Option("--data", help="UTF-8 text file, again for more; or the word demo.")
]
DocumentsOption = Annotated[Documents, typer.Option("--documents", help="What a document is in the text.")]
BosOption = Annotated[bool, typer.Option("--bos/--no-bos", help="Whether the model was trained with BOS before each.")]
LengthOption = Annotated[int, typer.Option("--length", min=1, help="Tokens the model sees at once.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, …")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything drawn at random.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def open_source(checkpoint: str, model: str | None) -> Checkpoint:
    """The checkpoint an argument names, with its module."""
    if checkpoint == DEMO:
        demo = read_demo()
        return open_checkpoint(demo.checkpoint, model or demo.card_path)
    if model is None:
        raise QuantGolfError(
            f"checkpoint {checkpoint}: --model is missing, expected its card.json or path/to/script.py:factory"
        )
    return open_checkpoint(checkpoint, model)


def open_text(
    source: str | None,
    data: list[Path] | None,
    tokenizer: Path | None,
    documents: Documents,
    bos: bool,
    max_tokens: int | None,
    part: Part,
) -> Corpus:
    """The text that --data names: files, or the word demo, which is also meant where `source` is and --data absent."""
    if data == [Path(DEMO)] or (data is None and source == DEMO):
        return corpus_from_texts(demo_texts().parts[part], Tokenizer.load(read_demo().tokenizer), max_tokens=max_tokens)
    if data is None:
        raise QuantGolfError("--data is missing, expected a UTF-8 text file, or the word demo for the built-in model's")
    if tokenizer is None:
        if source != DEMO:
            raise QuantGolfError("--tokenizer is missing, expected the SentencePiece model the text is read with")
        tokenizer = read_demo().tokenizer
    return read_corpus(data, Tokenizer.load(tokenizer), documents.value, bos=bos, max_tokens=max_tokens)


def open_device(name: str) -> torch.device:
    """The device of that name, tried out."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # torch says so in either way
        raise QuantGolfError(
            f"device {name!r} cannot be used here, expected cpu, or cuda where there is a GPU that torch sees"
        ) from error
    return device


@dataclass(frozen=True)
class DemoTexts:
    """The demo's held-out texts that this Python carries unchanged, and how many it does not."""

    parts: dict[Part, list[str]]
    skipped: int


def demo_texts() -> DemoTexts:
    """Reads the demo's text from this Python.

    Raises:
        QuantGolfError: this Python carries too little of it unchanged.
    """
    demo, texts = read_demo(), stdlib.read_stdlib()
    parts: dict[Part, list[str]] = {}
    skipped = 0
    for part in Part:
        parts[part], missing = stdlib.select(demo.card["files"][part.value], texts)
        skipped += len(missing)
    matching = sum(len(text.encode()) for some in parts.values() for text in some)
    if matching < DEMO_TEXT_BYTES or not all(parts.values()):
        raise QuantGolfError(
            f"this Python carries {matching:,} bytes of the demo's text unchanged, expected at least "
            f"{DEMO_TEXT_BYTES:,}: run the demo with a CPython 3.11 to 3.13 that has its standard library's sources, "
            "or use `quantgolf compress demo --data TEXT`"
        )
    return DemoTexts(parts, skipped)
