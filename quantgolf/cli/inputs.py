"""Options that several verbs share, and what they name: checkpoints, texts, tokenizers, or the built-in demo.

The word `demo` stands for the model quantgolf ships wherever a checkpoint is asked for; its card, its
tokenizer and its text then need no option.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from torch import nn

from quantgolf.checkpoint import Checkpoint, open_checkpoint, read_demo
from quantgolf.cli import show
from quantgolf.data import Corpus, Tokenizer, corpus_from_texts, open_tokenizer, read_corpus, sample_corpus, stdlib
from quantgolf.errors import QuantGolfError

DEMO, SELF = "demo", "self"
DEMO_TEXT_BYTES = 200_000
# Most tokens of a text of `--data self`, since a text of L costs L²/2: the default 32,768 tokens took the demo model
# 183 s of one core in texts of 128; in texts of 512, by the rate of its forward pass, they would take 14 minutes.
OWN_LENGTH = 128


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
    slope = "slope"


class Part(StrEnum):
    """Which of the demo's held-out texts."""

    calibration = "calibration"
    validation = "validation"


class Context(StrEnum):
    """What the model sees before a token: the text before it, or what its document has of that."""

    dense = "dense"
    isolated = "isolated"


def tell_executed(value: str | list[str] | None) -> str | list[str] | None:
    """Says which scripts an option names will be executed; what it is given, it gives back."""
    for each in [value] if isinstance(value, str) else value or []:
        script = each.rpartition(":")[0] or each
        if script.endswith(".py") and os.environ.get("RANK", "0") == "0":
            show.console(True).print(f"note: {script} is executed", markup=False, soft_wrap=True)
    return value


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="A .safetensors, .pt or .pth file, an index of shards, a folder, a .gguf file, or the word demo.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        callback=tell_executed,
        help="card.json of the reference family, path/to/script.py:factory (is executed), or hf:PATH, which is meant "
        "where CKPT is a Hugging Face folder or a .gguf file.",
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", help="SentencePiece .model, tokenizer.json or its folder, .gguf; or the word bytes or demo."
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="UTF-8 text, .jsonl or golf .bin shard, again for more; or the word demo; or self, to calibrate on text "
        f"that the model writes itself, in texts of at most {OWN_LENGTH} tokens.",
    ),
]
DocumentsOption = Annotated[Documents, typer.Option("--documents", help="What a document is in plain text.")]
TextFieldOption = Annotated[str, typer.Option("--text-field", help="Where a line of .jsonl has its text.")]
ByteCountsOption = Annotated[
    list[Path] | None,
    typer.Option("--byte-counts", help="Sidecar with the bytes of every token of a shard, one for each shard."),
]
BosOption = Annotated[bool, typer.Option("--bos/--no-bos", help="Whether the model was trained with BOS before each.")]
LengthOption = Annotated[int, typer.Option("--length", min=1, help="Tokens the model sees at once.")]
ContextOption = Annotated[
    Context, typer.Option("--context", help="Whether the model reads on into the next document, or each by itself.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, …")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything drawn at random.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def open_source(checkpoint: str, model: str | None) -> Checkpoint:
    """The checkpoint an argument names, with its module."""
    if checkpoint == DEMO:
        demo = read_demo()
        return open_checkpoint(demo.checkpoint, model or demo.card_path)
    return open_checkpoint(checkpoint, model)


@dataclass(frozen=True)
class TextOptions:
    """The options that name a text and how it is read; a verb decorated with `reads_text` takes one as `text`."""

    data: DataOption = None
    tokenizer: TokenizerOption = None
    documents: DocumentsOption = Documents.lines
    text_field: TextFieldOption = "text"
    byte_counts: ByteCountsOption = None
    bos: BosOption = True
    length: LengthOption = 512
    context: ContextOption = Context.dense

    def open(self, source: str | None, max_tokens: int | None, part: Part, own: "OwnText | None" = None) -> Corpus:
        """The text; see `open_text`."""
        return open_text(
            source, self.data, self.tokenizer, self.documents, self.bos, max_tokens, part,
            text_field=self.text_field, byte_counts=self.byte_counts, length=self.length, own=own,
        )  # fmt: skip


@dataclass(frozen=True)
class OwnText:
    """The model that writes the text of `--data self`, the seed it draws with, and who hears of its progress."""

    module: nn.Module
    seed: int = 0
    progress: Callable[[int, int], None] | None = None


def reads_text(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb the options of `TextOptions` in place of its parameter `text`."""
    signature = inspect.signature(verb)
    kinds = get_type_hints(TextOptions, include_extras=True)
    hints = get_type_hints(verb, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "text":
            options = [(field.name, kinds[field.name], field.default) for field in fields(TextOptions)]
        else:
            options = [(parameter.name, hints[parameter.name], parameter.default)]
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, kind, default in options
        ]

    @wraps(verb)
    def wrapped(**given: Any) -> None:
        text = TextOptions(**{name: given.pop(name) for name in kinds if name in given})
        verb(text=text, **given)

    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def open_text(
    source: str | None,
    data: list[Path] | None,
    tokenizer: Path | None,
    documents: Documents,
    bos: bool,
    max_tokens: int | None,
    part: Part,
    *,
    text_field: str = "text",
    byte_counts: list[Path] | None = None,
    length: int = 512,
    own: OwnText | None = None,
) -> Corpus:
    """The text that --data names: files, or the word demo, which is also meant where `source` is and --data absent; or
    the word self, where `own` is the model to write `max_tokens` of it, in texts of `length` but at most
    `OWN_LENGTH`, so that dense windows run over several."""
    chosen = None if tokenizer is None else named_tokenizer(tokenizer)
    if chosen is None and (source == DEMO or data == [Path(DEMO)]):
        chosen = named_tokenizer(Path(DEMO))
    if data == [Path(SELF)]:
        return _own_text(own, chosen, bos, max_tokens, length)
    if data is None and source != DEMO:
        raise QuantGolfError(
            "--data is missing, expected a text, .jsonl or .bin file, or the word demo for the built-in model's text"
        )
    if chosen is None:
        raise QuantGolfError("--tokenizer is missing, expected the tokenizer the text is read with")
    if data is None or data == [Path(DEMO)]:
        return corpus_from_texts(demo_texts().parts[part], chosen, bos=bos, max_tokens=max_tokens)
    return read_corpus(
        data, chosen, documents.value, bos=bos, max_tokens=max_tokens, text_field=text_field,
        byte_counts=byte_counts or (),
    )  # fmt: skip


def _own_text(
    own: OwnText | None, tokenizer: Tokenizer | None, bos: bool, max_tokens: int | None, length: int
) -> Corpus:
    if own is None or max_tokens is None:
        raise QuantGolfError("--data self is a text to calibrate on, expected a file or the word demo to measure on")
    if tokenizer is None:
        raise QuantGolfError("--tokenizer is missing, expected it for --data self too: its vocabulary and its BOS")
    if bos and tokenizer.bos is None:
        raise QuantGolfError("the tokenizer has no BOS piece, expected one; pass --no-bos")
    return sample_corpus(
        own.module, vocab_size=tokenizer.size, bos=tokenizer.bos if bos else None, tokens=max_tokens,
        length=min(length, OWN_LENGTH), seed=own.seed, progress=own.progress,
    )  # fmt: skip


def named_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer at a path, or what the words demo and bytes name."""
    return open_tokenizer(read_demo().tokenizer if path == Path(DEMO) else path)


def open_device(name: str) -> torch.device:
    """The device of that name, tried out; of several processes each gets a GPU of its own."""
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
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
