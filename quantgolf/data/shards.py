"""Token shards as Parameter Golf and modded-nanogpt write them: a header of 256 int32, then uint16 tokens.

The text is gone, so the bytes of a document are counted from the tokenizer's pieces or read from a sidecar: a second
shard with the bytes of every token. All shards of a call are one stream, in which documents may run from one into the
next, and only as much of them is read as is asked for. Tokens stay uint16, those of a single shard on disk: a contest's
62M tokens are read part by part, whenever they are needed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quantgolf.data.corpus import Corpus, bos_of
from quantgolf.data.pieces import PieceBytes
from quantgolf.data.tokenizer import Tokenizer
from quantgolf.errors import QuantGolfError

SUFFIX = ".bin"
MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
AT_ONCE = 1 << 20  # tokens that are read and counted at once
Values = NDArray[np.uint16]


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
    shards: list[Values] = []
    sidecars: list[Values] = []
    left = max_tokens
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
            sidecars.append(sidecar[:left])
        shards.append(shard[:left])
        _refuse_foreign(shards[-1], tokenizer, path)
        left = None if left is None else left - len(shards[-1])
    tokens = _joined(shards)
    document = _documents(tokens, first, paths)
    counts = _joined(sidecars) if byte_counts else None
    return Corpus(
        tokens=torch.from_numpy(tokens),
        document=torch.from_numpy(document),
        bytes=_bytes(tokens, document, counts, None if byte_counts else tokenizer.piece_bytes(), first),
        bos=first,
        vocab_size=tokenizer.size,
        unknown=0 if tokenizer.unknown is None else sum(_count(shard, tokenizer.unknown) for shard in shards),
        uncounted=0,
        counted="byte sidecar" if byte_counts else "tokenizer pieces",
    )


def _joined(values: Sequence[Values]) -> Values:
    """One shard stays on disk; several are copied into memory, two bytes a token."""
    return values[0] if len(values) == 1 else np.concatenate(values)


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE))


def _count(tokens: Values, token: int) -> int:
    return sum(int(np.count_nonzero(tokens[part] == token)) for part in _parts(len(tokens)))


def _documents(tokens: Values, bos: int | None, paths: Sequence[Path]) -> NDArray[np.int32]:
    """Which document each token belongs to; tokens before the first BOS are one."""
    found = np.zeros(len(tokens), dtype=np.int32)
    if bos is None:
        return found
    begun = 0 if tokens[0] == bos else 1
    headless = begun
    for part in _parts(len(tokens)):
        np.cumsum(tokens[part] == bos, dtype=np.int32, out=found[part])
        found[part] += begun - 1
        begun = int(found[part][-1]) + 1
    if begun == headless:
        raise QuantGolfError(
            f"shard {paths[0]}: no BOS (token {bos}) among {len(tokens):,} tokens, expected one before every document; "
            "give the tokenizer it was written with, or pass --no-bos"
        )
    return found


def _bytes(
    tokens: Values, document: NDArray[np.int32], counts: Values | None, pieces: PieceBytes | None, bos: int | None
) -> NDArray[np.int64]:
    """Bytes of each document, from the sidecar's counts or the tokenizer's pieces. A document that began elsewhere has
    none for its first token."""
    total = np.zeros(int(document[-1]) + 1, dtype=np.int64)
    for part in _parts(len(tokens)):
        if counts is not None:
            each = counts[part].astype(np.int64)
        elif pieces is not None:
            before = min(1, part.start)  # the token before tells whether a leading space counts
            each = pieces.count(tokens[part.start - before : part.stop])[before:]
        charged = np.flatnonzero((tokens[part] == bos) & (each != 0))
        if bos is not None and len(charged):
            raise QuantGolfError(
                f"byte counts: {each[charged[0]]} bytes for the BOS at token {part.start + charged[0]:,}, expected 0: "
                "a BOS is no text"
            )
        if part.start == 0 and bos is not None and tokens[0] != bos:
            each[0] = 0
        first = int(document[part.start])
        found = np.bincount(document[part] - first, each)
        total[first : first + len(found)] += found.astype(np.int64)
    return total


def _mapped(path: Path, what: str) -> Values:
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
    # Copy on write, because torch takes no array that cannot be written; nothing is.
    values: Values = np.memmap(path, dtype="<u2", mode="c", offset=HEADER_BYTES, shape=(count,))
    return values.astype(np.uint16, copy=False)


def _refuse_foreign(tokens: Values, tokenizer: Tokenizer, path: Path) -> None:
    for part in _parts(len(tokens)):
        foreign = np.flatnonzero(tokens[part] >= tokenizer.size)
        if len(foreign):
            position = part.start + int(foreign[0])
            raise QuantGolfError(
                f"shard {path}: token {tokens[position]:,} at position {position:,}, and the tokenizer has "
                f"{tokenizer.size:,} pieces; give the tokenizer the shard was written with"
            )
