"""One stream of tokens out of many documents, and the raw bytes each document answers for.

Bits per byte divide by bytes, so every byte is accounted for: a document's own, line breaks included, or those
that lie between documents and belong to nobody, which are reported.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.data.tokenizer import Tokenizer
from quantgolf.errors import QuantGolfError

Documents = Literal["lines", "paragraphs", "files"]
LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Corpus:
    """Tokenised text.

    Attributes:
        tokens: int64 [T], documents one after another, each behind its BOS where there is one.
        document: int64 [T], which document a token belongs to.
        bytes: int64 [D], raw UTF-8 bytes of each document, its own line break included.
        bos: id of the BOS; None where the stream has none.
        vocab_size: pieces of the tokenizer.
        unknown: tokens that are the tokenizer's unknown piece.
        uncounted: bytes of blank lines between documents.
    """

    tokens: Tensor
    document: Tensor
    bytes: NDArray[np.int64]
    bos: int | None
    vocab_size: int
    unknown: int
    uncounted: int


def read_corpus(
    paths: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer | str | Path,
    documents: Documents = "lines",
    *,
    bos: bool = True,
    max_tokens: int | None = None,
) -> Corpus:
    """Reads text files.

    Args:
        paths: UTF-8 text files.
        tokenizer: a SentencePiece model or its file.
        documents: "lines": every line that is not blank, its line break counted but not tokenised, as Parameter
            Golf does; "paragraphs": what lies between blank lines, line breaks inside are tokenised; "files":
            whole files, everything is tokenised.
        bos: whether each document begins with the tokenizer's BOS; take what the model was trained with.
        max_tokens: stop with the document that reaches so many.

    Raises:
        QuantGolfError: unreadable, not UTF-8, or without any document; a tokenizer without the BOS asked for.
    """
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    pieces = (piece for path in paths for piece in _split(_read(Path(path)), documents))
    corpus = _gather(pieces, tokenizer, bos, max_tokens)
    if not len(corpus.bytes):
        raise QuantGolfError(
            f"text {', '.join(map(str, paths)) or '(no file)'}: 0 documents in it, expected text that is not blank"
        )
    return corpus


def corpus_from_texts(
    texts: Iterable[str], tokenizer: Tokenizer, *, bos: bool = True, max_tokens: int | None = None
) -> Corpus:
    """Texts in memory, each one document; otherwise as `read_corpus`.

    Raises:
        QuantGolfError: no text that is not empty, or a tokenizer without the BOS asked for.
    """
    corpus = _gather(((text, 0) for text in texts), tokenizer, bos, max_tokens)
    if not len(corpus.bytes):
        raise QuantGolfError("texts: 0 documents, expected at least one text that is not empty")
    return corpus


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise QuantGolfError(f"text {path}: {error.strerror}, expected a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        raise QuantGolfError(
            f"text {path}: byte {error.start:,} is not UTF-8, expected UTF-8 text; convert it first"
        ) from error


def _split(text: str, documents: Documents) -> Iterator[tuple[str, int]]:
    """Documents and the blank lines between them, each with the bytes of its line break that is not tokenised."""
    if documents == "files":
        yield text, 0
    elif documents == "lines":
        yield from map(_without_break, LINE.findall(text))
    elif documents == "paragraphs":
        for blank, lines in groupby(LINE.findall(text), key=lambda line: not line.strip()):
            whole = "".join(lines)
            yield (whole, 0) if blank else _without_break(whole)
    else:
        raise QuantGolfError(f"documents is {documents!r}, expected 'lines', 'paragraphs' or 'files'")


def _without_break(text: str) -> tuple[str, int]:
    """A text without the line break it ends in, and the bytes of that."""
    bare = text.removesuffix("\n")
    bare = bare if bare == text else bare.removesuffix("\r")
    return bare, len(text) - len(bare)


def _gather(pieces: Iterable[tuple[str, int]], tokenizer: Tokenizer, bos: bool, max_tokens: int | None) -> Corpus:
    if bos and tokenizer.bos is None:
        raise QuantGolfError("the tokenizer has no BOS piece, expected one; pass --no-bos (bos=False)")
    first = [tokenizer.bos] if bos else []
    streams: list[NDArray[np.int64]] = []
    sizes: list[int] = []
    uncounted = total = 0
    for text, line_break in pieces:
        size = len(text.encode("utf-8")) + line_break
        encoded = [] if not text.strip() else tokenizer.encode(text)
        if not encoded:
            uncounted += size
            continue
        streams.append(np.array([*first, *encoded], dtype=np.int64))
        sizes.append(size)
        total += len(streams[-1])
        if max_tokens is not None and total >= max_tokens:
            break
    tokens = np.concatenate(streams) if streams else np.empty(0, dtype=np.int64)
    document = np.repeat(np.arange(len(streams)), [len(stream) for stream in streams])
    return Corpus(
        tokens=torch.from_numpy(tokens),
        document=torch.from_numpy(document),
        bytes=np.array(sizes, dtype=np.int64),
        bos=tokenizer.bos if bos else None,
        vocab_size=tokenizer.size,
        unknown=int((tokens == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0,
        uncounted=uncounted,
    )
