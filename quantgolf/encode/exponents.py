"""Steps in quarter octaves as bytes: 2 to 4 bits a row and a column, 16 in fp16.

What two matrices have in common is how their exponents scatter, not where: each says its smallest ones, and the
differences above them share one stream for all rows and one for all columns of a model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode.stream import decode_stream, encode_stream
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import Exponents

LARGEST = 1 << 12
WIDEST = 255
WHAT = "the stream of exponents"


def encode_exponents(matrices: Sequence[tuple[str, Exponents]]) -> bytes:
    """For each matrix its smallest row and column exponent and its spread, then the streams of rows and of columns.

    Args:
        matrices: names for messages, and exponents that `check_exponents` lets pass.

    Raises:
        QuantGolfError: the largest and the smallest exponent of rows or columns lie more than 255 apart.
    """
    head = bytearray()
    rows: list[NDArray[np.uint8]] = []
    columns: list[NDArray[np.uint8]] = []
    for name, exponents in matrices:
        for what, values, parts in (("row", exponents.row, rows), ("column", exponents.column, columns)):
            given = values.cpu().numpy().astype(np.int64)
            smallest = int(given.min()) if given.size else 0
            above = given - smallest
            if above.max(initial=0) > WIDEST:
                raise QuantGolfError(
                    f"{name} has {what} exponents that lie {above.max()} quarter octaves apart, expected at most "
                    f"{WIDEST}; bring the smallest or largest {what} steps nearer to the others"
                )
            parts.append(above.astype(np.uint8))
            head += varint(_zigzag(smallest))
        head += varint(_zigzag(exponents.spread))
    return bytes(head) + _join(rows) + _join(columns)


def decode_exponents(payload: bytes, matrices: Sequence[tuple[str, tuple[int, int]]]) -> list[Exponents]:
    """The exponents of each matrix; `matrices` are their names and shapes (N, K).

    Raises:
        FormatError: bytes that `encode_exponents` does not write for these shapes, or steps that leave fp32.
    """
    cursor = Cursor(payload, WHAT)
    heads = [[_signed(cursor.varint()) for _ in range(3)] for _ in matrices]
    rows = _split(cursor, [shape[0] for _, shape in matrices])
    columns = _split(cursor, [shape[1] for _, shape in matrices])
    cursor.finish()
    found = []
    for (name, shape), (row, column, spread), *above in zip(matrices, heads, rows, columns, strict=True):
        exponents = Exponents(_raised(name, row, above[0]), _raised(name, column, above[1]), spread)
        check_exponents(name, exponents, shape)
        found.append(exponents)
    return found


def check_exponents(name: str, exponents: Exponents, shape: tuple[int, int]) -> None:
    """Refuses exponents that do not fit a matrix [N, K] or the format.

    Raises:
        FormatError: another dtype or shape than int16 [N] and [K], an exponent or spread beyond ±2^12, or steps
            whose products overflow fp32.
    """
    for what, values, count in (("row", exponents.row, shape[0]), ("column", exponents.column, shape[1])):
        if values.dtype != torch.int16 or values.shape != (count,):
            raise FormatError(
                f"{name} has {values.dtype} {what} exponents {list(values.shape)}, expected torch.int16 [{count}]"
            )
        # As int: the magnitude of -2^15 does not fit int16.
        if count and max(-int(values.min()), int(values.max())) > LARGEST:
            raise FormatError(
                f"{name} has {what} exponents from {int(values.min())} to {int(values.max())}, expected ±{LARGEST}"
            )
    if abs(exponents.spread) > LARGEST:
        raise FormatError(f"{name} has a spread of {exponents.spread} quarter octaves, expected ±{LARGEST}")
    check_levels(name, exponents, 1)


def check_levels(name: str, exponents: Exponents, largest: int) -> None:
    """Refuses levels that may overflow: the largest magnitude, times the largest step, has to be finite in fp32.

    Raises:
        FormatError: it is not.
    """
    if not len(exponents.row) or not len(exponents.column):
        return
    ends = Exponents(exponents.row.max()[None], exponents.column.max()[None], exponents.spread).steps()
    assert ends.column is not None
    if not (torch.tensor([largest]).float() * (ends.row * ends.column)).isfinite():
        raise FormatError(
            f"{name} has levels up to {largest} and steps up to 2^({int(exponents.row.max())}/4) times "
            f"2^({int(exponents.column.max())}/4), expected products that are finite in fp32"
        )


def _join(parts: Sequence[NDArray[np.uint8]]) -> bytes:
    stream = encode_stream(np.concatenate(parts)) if parts else b""
    return varint(len(stream)) + stream


def _split(cursor: Cursor, counts: Sequence[int]) -> list[NDArray[np.uint8]]:
    values = decode_stream(cursor.take(cursor.varint()), sum(counts), WHAT)
    return np.split(values, np.cumsum(counts)[:-1])


def _raised(name: str, smallest: int, above: NDArray[np.uint8]) -> Tensor:
    """Exponents by their differences above the smallest one."""
    if abs(smallest) > LARGEST or (smallest if not above.size else above.min()) != 0:
        raise FormatError(
            f"{name} has a smallest exponent of {smallest} that is beyond ±{LARGEST} or that no row or column has; "
            f"{DAMAGED}"
        )
    return torch.from_numpy(above.astype(np.int16) + np.int16(smallest))


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _signed(value: int) -> int:
    return -(value + 1 >> 1) if value & 1 else value >> 1
