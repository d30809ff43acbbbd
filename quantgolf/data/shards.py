"""Token shards as Parameter Golf and modded-nanogpt write them: a header of 256 int32, then uint16 tokens.

The text is gone, so the bytes of a document are counted from the tokenizer's pieces or read from a sidecar: a second
shard with the bytes of every token. All shards of a call are one stream, in which documents may run from one into the
next, and only as much of them is read as is asked for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quantgolf.data.corpus import Corpus, bos_of
from quantgolf.data.tokenizer import Tokenizer
from quantgolf.errors import QuantGolfError

SUFFIX = ".bin"
MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024


def read_shards(
    paths: Sequence[Path], byte_counts: Sequence[Path], tokenizer: Tokenizer, *, bos: bool, max_tokens: int | None
) -> Corpus:
    """Reads shards, in the order given.

    Args:
        paths: .bin shards.
        byte_counts: a sidecar for each, or none: then the tokenizer's pieces are counted, see `PieceBytes`.
        tokenizer: the one the shards were written with.
        bos: whether a BOS begins every document; without, all shards are one document. Tokens before the first BOS
            are a document that began in a shard not given: its first token is context only and has no bytes.
        max_tokens: read no more than that, and cut the last document there, which its bytes allow.

    Raises:
        QuantGolfError: a header that its file does not keep, a token the tokenizer does not have, no BOS at all where
            every document should begin with one, or sidecars that do not belong to the shards.
    """
    first = bos_of(tokenizer) if bos else None
    if byte_counts and len(byte_counts) != len(paths):
        raise QuantGolfError(
            f"--byte-counts names {len(byte_counts)} files for {len(paths)} shards, expected one for each, in order"
        )
    streams, counts, left = [], [], max_tokens
    for index, path in enumerate(paths):
        if left is not None and left <= 0:
            break
        shard = _mapped(path, "shard")
        if byte_counts:
            sidecar = _mapped(byte_counts[index], "byte counts")
            if len(sidecar) != len(shard):
                raise QuantGolfError(
                    f"byte counts {byte_counts[index]}: {len(sidecar):,} of them for the {len(shard):,} tokens of "
                    f"{path}, expected one a token; give the sidecar that was written with the shard"
                )
            counts.append(sidecar[:left].astype(np.int64))
        streams.append(_known(shard[:left].astype(np.int64), tokenizer, path))
        left = None if left is None else left - len(streams[-1])
    tokens = np.concatenate(streams)
    each = np.concatenate(counts) if byte_counts else tokenizer.piece_bytes().count(tokens)
    document = _documents(tokens, each, first, paths)
    return Corpus(
        tokens=torch.from_numpy(tokens),
        document=torch.from_numpy(document),
        bytes=np.bincount(document, each).astype(np.int64),
        bos=first,
        vocab_size=tokenizer.size,
        unknown=0 if tokenizer.unknown is None else int((tokens == tokenizer.unknown).sum()),
        uncounted=0,
        counted="byte sidecar" if byte_counts else "tokenizer pieces",
    )


def _documents(
    tokens: NDArray[np.int64], each: NDArray[np.int64], bos: int | None, paths: Sequence[Path]
) -> NDArray[np.int64]:
    """Which document each token belongs to. Takes the bytes from a first token that is only context."""
    if bos is None:
        return np.zeros(len(tokens), dtype=np.int64)
    begins = tokens == bos
    if not begins.any():
        raise QuantGolfError(
            f"shard {paths[0]}: no BOS (token {bos}) among {len(tokens):,} tokens, expected one before every document; "
            "give the tokenizer it was written with, or pass --no-bos"
        )
    charged = np.flatnonzero(begins & (each != 0))
    if len(charged):
        raise QuantGolfError(
            f"byte counts: {each[charged[0]]} bytes for the BOS at token {charged[0]:,}, expected 0: a BOS is no text"
        )
    if not begins[0]:
        begins[0] = True
        each[0] = 0
    found: NDArray[np.int64] = np.cumsum(begins, dtype=np.int64) - 1
    return found


def _mapped(path: Path, what: str) -> NDArray[np.uint16]:
    """The values of a shard, uint16 [T], still on disk."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_BYTES // 4)
    except OSError as error:
        raise QuantGolfError(f"{what} {path}: {error.strerror}, expected a golf shard (.bin)") from error
    if len(header) < HEADER_BYTES // 4:
        raise QuantGolfError(f"{what} {path}: {size:,} bytes, expected a golf shard with a header of {HEADER_BYTES:,}")
    magic, version, count = (int(value) for value in header[:3])
    if magic != MAGIC or version != VERSION:
        raise QuantGolfError(
            f"{what} {path}: magic {magic} and version {version}, expected a golf shard with {MAGIC} and {VERSION}"
        )
    if count < 1 or size != HEADER_BYTES + 2 * count:
        raise QuantGolfError(
            f"{what} {path}: its header counts {count:,} tokens and the file has {size:,} bytes, expected at least one "
            f"token and {HEADER_BYTES:,} + 2 bytes a token; copy it again"
        )
    values: NDArray[np.uint16] = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    return values


def _known(tokens: NDArray[np.int64], tokenizer: Tokenizer, path: Path) -> NDArray[np.int64]:
    foreign = np.flatnonzero(tokens >= tokenizer.size)
    if len(foreign):
        raise QuantGolfError(
            f"shard {path}: token {int(tokens[foreign[0]]):,} at position {foreign[0]:,}, and the tokenizer has "
            f"{tokenizer.size:,} pieces; give the tokenizer the shard was written with"
        )
    return tokens
