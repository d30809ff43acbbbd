"""Bytes of one text as every tokenizer accounts for them: counted from the text, and again from its pieces as a shard.

    python benchmarks/tokenizer_bytes.py --data demo --data val.txt --tokenizer golf.model --tokenizer tokenizer.json

Bits per byte compare across tokenizers only where the bytes are the same. Of text they are the text's own, whatever
reads it; of shards they are what the pieces say, which is less where a piece is unknown, where line breaks were not
tokenised and where the tokenizer rewrites what it reads. This counts both, and takes the difference apart.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.data import Corpus, Tokenizer, corpus_from_texts, open_tokenizer, read_corpus
from quantgolf.data.documents import read_documents
from quantgolf.data.shards import HEADER_BYTES, MAGIC, VERSION
from quantgolf.errors import QuantGolfError


@dataclass(frozen=True)
class Accounts:
    """Bytes of a text by a tokenizer.

    Attributes:
        text: its name; `documents` how it was taken apart.
        tokenizer: its name, `pieces` its size.
        tokens: with BOS where it has one.
        text_bytes: counted from the text; `uncounted` those of blank lines between documents.
        piece_bytes: counted from the pieces of a shard of the same tokens; None where pieces do not tell.
        line_breaks: bytes of the text that no token stands for, since its documents are lines.
        unknown: unknown pieces, which stand for no bytes.
        elsewhere: text_bytes - line_breaks - piece_bytes: what unknown pieces swallow, and what normalisation changes.
        why: why pieces do not tell; empty where they do.
    """

    text: str
    documents: str
    tokenizer: str
    pieces: int
    tokens: int
    text_bytes: int
    uncounted: int
    piece_bytes: int | None
    line_breaks: int
    unknown: int
    elsewhere: int | None
    why: str = ""


def accounts(text: str, name: str, tokenizer: Tokenizer, corpus: Corpus, documents: str, line_breaks: int) -> Accounts:
    """Counts the bytes of a text's tokens as a shard, beside those of the text."""
    whole, found, why = int(corpus.bytes.sum()), None, ""
    try:
        found = shard_bytes(corpus, tokenizer)
    except QuantGolfError as error:
        why = str(error)
    return Accounts(
        text, documents, name, tokenizer.size, len(corpus.tokens), whole, corpus.uncounted, found, line_breaks,
        corpus.unknown, None if found is None else whole - line_breaks - found, why,
    )  # fmt: skip


def shard_bytes(corpus: Corpus, tokenizer: Tokenizer) -> int:
    """Bytes of the corpus' tokens, written to a golf shard and read back.

    Raises:
        QuantGolfError: tokens that do not fit into uint16, or pieces that do not tell their bytes.
    """
    if tokenizer.size > 2**16:
        raise QuantGolfError(f"{tokenizer.size:,} pieces do not fit into a shard's uint16")
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(corpus.tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.bin"
        path.write_bytes(header.tobytes() + corpus.tokens.numpy().astype("<u2").tobytes())
        return int(read_corpus(path, tokenizer, bos=corpus.bos is not None).bytes.sum())


def main(
    data: Annotated[list[Path], typer.Option("--data", help="UTF-8 text, again for more; or the word demo.")],
    tokenizer: Annotated[
        list[str] | None, typer.Option("--tokenizer", help="As `eval` takes it, beside demo and bytes; again for more.")
    ] = None,
    documents: inputs.DocumentsOption = Documents.lines,
    out: Annotated[Path | None, typer.Option("--out", help="JSON lines to append to.")] = None,
    json_output: inputs.JsonOption = False,
) -> None:
    """Count a text's bytes with several tokenizers."""
    opened = {name: named(name) for name in dict.fromkeys([inputs.DEMO, "bytes", *(tokenizer or [])])}
    rows = []
    for path in data:
        for name, each in opened.items():
            bos = each.bos is not None
            if path == Path(inputs.DEMO):
                corpus = corpus_from_texts(inputs.demo_texts().parts[Part.validation], each, bos=bos)
                how, breaks = "files", 0
            else:
                corpus, how = read_corpus(path, each, documents.value, bos=bos), documents.value
                breaks = untokenised(path, each, corpus, how)
            rows.append(accounts(path.name, Path(name).name, each, corpus, how, breaks))
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    if out is not None:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(lines)
    if json_output:
        print(lines, end="")
    else:
        show.console(False).print(table(rows))


def named(name: str) -> Tokenizer:
    """The tokenizer of a path, or of the words demo and bytes."""
    return inputs.named_tokenizer(Path(name)) if name == inputs.DEMO else open_tokenizer(name)


def untokenised(path: Path, tokenizer: Tokenizer, corpus: Corpus, documents: str) -> int:
    """Bytes of line breaks that are counted and not tokenised."""
    kept = 0
    for text, line_break in read_documents(path, documents, "text"):  # type: ignore[arg-type]
        kept += line_break if text.strip() and tokenizer.encode(text) else 0
    return kept


def table(rows: list[Accounts]) -> Table:
    """The accounts as a table."""
    columns = (
        "text", "tokenizer", "tokens", "bytes of text", "blank lines", "by pieces", "line breaks", "unknown pieces",
        "elsewhere",
    )  # fmt: skip
    return show.table(
        None, columns,
        [
            (
                f"{row.text} ({row.documents})", row.tokenizer, f"{row.tokens:,}", f"{row.text_bytes:,}",
                f"{row.uncounted:,}", row.why if row.piece_bytes is None else f"{row.piece_bytes:,}",
                f"{row.line_breaks:,}", f"{row.unknown:,}", "" if row.elsewhere is None else f"{row.elsewhere:,}",
            )
            for row in rows
        ],
        words=2,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
