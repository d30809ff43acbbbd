"""Values of several bytes as byte planes: high bytes of floating point numbers are alike, low ones are noise."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.stream import Codec, decode_stream, encode_stream
from quantgolf.encode.varint import Cursor, varint


def encode_planes(values: Sequence[NDArray[np.uint8]], codec: Codec = "auto") -> bytes:
    """Values [n, size] of several tensors in a row: for each byte of a value, lowest first, a length and a stream."""
    if not any(map(len, values)):
        return b""
    streams = [encode_stream(np.ascontiguousarray(plane), codec) for plane in np.concatenate(values).T]
    return b"".join(varint(len(stream)) + stream for stream in streams)


def decode_planes(cursor: Cursor, counts: Sequence[int], size: int) -> list[NDArray[np.uint8]]:
    """The values [count, size] of each tensor that `encode_planes` was given.

    Raises:
        FormatError: not planes of so many values.
    """
    total = sum(counts)
    if total == 0:
        return [np.empty((0, size), dtype=np.uint8) for _ in counts]
    planes = [decode_stream(cursor.take(cursor.varint()), total, cursor.what) for _ in range(size)]
    return np.split(np.stack(planes, axis=1), np.cumsum(counts)[:-1])
