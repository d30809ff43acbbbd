"""One stream of tokens out of many documents, and the raw bytes each document answers for.

Bits per byte divide by bytes, so every byte is accounted for: a document's own, line breaks included, or those
that lie between documents and belong to nobody, which are reported.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.data.tokenizer import Tokenizer
from quantgolf.errors import QuantGolfError

Counted = Literal["utf-8 text", "tokenizer pieces", "byte sidecar", "none: self-generated"]


@dataclass(frozen=True)
class Corpus:
    """Tokenised text.

    Attributes:
        tokens: int64 [T], documents one after another, each behind its BOS where there is one; uint16 where they are
            of shards, which are large (`stack` gives int64).
        document: int32 [T], which document a token belongs to, never falling.
        bytes: int64 [D], raw bytes of each document, its own line break included.
        bos: id of the BOS; None where the stream has none.
        vocab_size: pieces of the tokenizer.
        unknown: tokens that are the tokenizer's unknown piece.
        uncounted: bytes of blank lines between documents.
        counted: where `bytes` are from: the text itself, the tokenizer's pieces or a sidecar file beside a shard. Text
            that a model wrote has no bytes of its own; one a token stands in for them.
    """

    tokens: Tensor
    document: Tensor
    bytes: NDArray[np.int64]
    bos: int | None
    vocab_size: int
    unknown: int
    uncounted: int
    counted: Counted

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, int64 [D], its BOS included."""
        # Searched and not counted, and for numbers of its own kind, because either would copy all of them.
        document = self.document.numpy()
        return np.diff(np.searchsorted(document, np.arange(len(self.bytes) + 1, dtype=document.dtype)))


def corpus_from_texts(
    texts: Iterable[str], tokenizer: Tokenizer, *, bos: bool = True, max_tokens: int | None = None
) -> Corpus:
    """Texts in memory, each one document; otherwise as `read_corpus`.

    Raises:
        QuantGolfError: no text that is not blank, one with half a surrogate pair in it, or a tokenizer without the
            BOS asked for.
    """
    corpus = gather(((text, 0) for text in texts), tokenizer, bos, max_tokens)
    if not len(corpus.bytes):
        raise QuantGolfError("texts: 0 documents, expected at least one text that is not blank")
    return corpus


def gather(pieces: Iterable[tuple[str, int]], tokenizer: Tokenizer, bos: bool, max_tokens: int | None) -> Corpus:
    """A corpus of texts, each with the number of its bytes that are not tokenised; it may have 0 documents."""
    first = [bos_of(tokenizer)] if bos else []
    streams: list[NDArray[np.int64]] = []
    sizes: list[int] = []
    unknown = uncounted = total = 0
    for text, line_break in pieces:
        size = utf8_bytes(text) + line_break
        encoded = [] if not text.strip() else tokenizer.encode(text)
        if not encoded:
            uncounted += size
            continue
        streams.append(np.array([*first, *encoded], dtype=np.int64))
        sizes.append(size)
        unknown += 0 if tokenizer.unknown is None else encoded.count(tokenizer.unknown)
        total += len(streams[-1])
        if max_tokens is not None and total >= max_tokens:
            break
    tokens = np.concatenate(streams) if streams else np.empty(0, dtype=np.int64)
    document = np.repeat(np.arange(len(streams), dtype=np.int32), [len(stream) for stream in streams])
    return Corpus(
        tokens=torch.from_numpy(tokens),
        document=torch.from_numpy(document),
        bytes=np.array(sizes, dtype=np.int64),
        bos=tokenizer.bos if bos else None,
        vocab_size=tokenizer.size,
        unknown=unknown,
        uncounted=uncounted,
        counted="utf-8 text",
    )


def bos_of(tokenizer: Tokenizer) -> int:
    """The tokenizer's BOS.

    Raises:
        QuantGolfError: it has none.
    """
    if tokenizer.bos is None:
        raise QuantGolfError("the tokenizer has no BOS piece, expected one; pass --no-bos (bos=False)")
    return tokenizer.bos


def utf8_bytes(text: str) -> int:
    """Bytes of a text.

    Raises:
        QuantGolfError: half a surrogate pair in it, which UTF-8 cannot spell.
    """
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise QuantGolfError(
            f"texts: character {error.start:,} is half a surrogate pair, expected text that UTF-8 can spell"
        ) from error
