"""Steps in quarter octaves as bytes: 2 to 4 bits a row and a column, 16 in fp16.

What two matrices have in common is how their exponents scatter, not where: each says its smallest ones, and the
differences above them share one stream for all rows and one for all columns of a model. What tuning adds to them has
two streams of its own, and none where nothing was tuned.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode.stream import Codec, decode_stream, encode_stream
from quantgolf.encode.varint import DAMAGED, Cursor, signed, varint, zigzag
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import Exponents

LARGEST = 1 << 12
WIDEST = 255
WHAT = "the stream of exponents"
NONE = varint(0)  # in place of a stream
ZERO = np.uint8(0x80)


def encode_exponents(matrices: Sequence[tuple[str, Exponents]], codec: Codec = "auto") -> bytes:
    """For each matrix its smallest row and column exponent and its spread, then the streams of rows and of columns,
    and those of what tuning added to each if it added anything.

    Args:
        matrices: names for messages, and exponents that `check_exponents` lets pass.
        codec: of the streams, as `encode_stream` has it.

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
            head += varint(zigzag(smallest))
        head += varint(zigzag(exponents.spread))
    fine = [
        _join_fine([each.fine_row for _, each in matrices], [len(each.row) for _, each in matrices], codec),
        _join_fine([each.fine_column for _, each in matrices], [len(each.column) for _, each in matrices], codec),
    ]
    tuned = b"" if fine == [NONE, NONE] else b"".join(fine)
    return bytes(head) + _join(rows, codec) + _join(columns, codec) + tuned


def decode_exponents(payload: bytes, matrices: Sequence[tuple[str, tuple[int, int]]]) -> list[Exponents]:
    """The exponents of each matrix; `matrices` are their names and shapes (N, K).

    Raises:
        FormatError: bytes that `encode_exponents` does not write for these shapes, or steps that leave fp32.
    """
    cursor = Cursor(payload, WHAT)
    heads = [[signed(cursor.varint()) for _ in range(3)] for _ in matrices]
    rows = _split(cursor, [shape[0] for _, shape in matrices])
    columns = _split(cursor, [shape[1] for _, shape in matrices])
    tuned = cursor.left > 0
    fine_rows = _split_fine(cursor, [shape[0] for _, shape in matrices]) if tuned else [None] * len(matrices)
    fine_columns = _split_fine(cursor, [shape[1] for _, shape in matrices]) if tuned else [None] * len(matrices)
    cursor.finish()
    if tuned and all(fine is None for fine in (*fine_rows, *fine_columns)):
        raise FormatError(f"{WHAT} has two empty streams of tuned steps, expected none; {DAMAGED}")
    found = []
    parts = zip(matrices, heads, rows, columns, fine_rows, fine_columns, strict=True)
    for (name, shape), (row, column, spread), rows_above, columns_above, *fine in parts:
        exponents = Exponents(_raised(name, row, rows_above), _raised(name, column, columns_above), spread, *fine)
        check_exponents(name, exponents, shape)
        found.append(exponents)
    return found


def check_exponents(name: str, exponents: Exponents, shape: tuple[int, int]) -> None:
    """Refuses exponents that do not fit a matrix [N, K] or the format.

    Raises:
        FormatError: another dtype or shape than int16 [N] and [K], int8 for what tuning adds, an exponent or spread
            beyond ±2^12, or steps whose products overflow fp32.
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
    for what, fine, count in (("row", exponents.fine_row, shape[0]), ("column", exponents.fine_column, shape[1])):
        if fine is not None and (fine.dtype != torch.int8 or fine.shape != (count,)):
            raise FormatError(f"{name} has {fine.dtype} fine {what}s {list(fine.shape)}, expected torch.int8 [{count}]")
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
    with np.errstate(over="ignore"):
        product = np.float32(largest) * exponents.largest()
    if not np.isfinite(product):
        raise FormatError(
            f"{name} has levels up to {largest} and steps up to 2^({int(exponents.row.max())}/4) times "
            f"2^({int(exponents.column.max())}/4), expected products that are finite in fp32; scale the weight down"
        )


def _join(parts: Sequence[NDArray[np.uint8]], codec: Codec) -> bytes:
    stream = encode_stream(np.concatenate(parts), codec) if parts else b""
    return varint(len(stream)) + stream


def _split(cursor: Cursor, counts: Sequence[int]) -> list[NDArray[np.uint8]]:
    values = decode_stream(cursor.take(cursor.varint()), sum(counts), WHAT)
    return np.split(values, np.cumsum(counts)[:-1])


def _join_fine(parts: Sequence[Tensor | None], counts: Sequence[int], codec: Codec) -> bytes:
    if all(fine is None or not fine.any() for fine in parts):
        return NONE
    pairs = zip(parts, counts, strict=True)
    values = [np.full(n, ZERO) if fine is None else fine.cpu().numpy().view(np.uint8) ^ ZERO for fine, n in pairs]
    return _join(values, codec)


def _split_fine(cursor: Cursor, counts: Sequence[int]) -> list[Tensor | None]:
    """What tuning adds to each matrix; None for those it adds nothing to."""
    size = cursor.varint()
    if size == 0:
        return [None] * len(counts)
    values = decode_stream(cursor.take(size), sum(counts), WHAT) ^ ZERO
    if not values.any():
        raise FormatError(f"{WHAT} has a stream of tuned steps that tunes none, expected it to be left out; {DAMAGED}")
    parts = np.split(values.view(np.int8), np.cumsum(counts)[:-1])
    return [torch.from_numpy(part.copy()) if part.any() else None for part in parts]


def _raised(name: str, smallest: int, above: NDArray[np.uint8]) -> Tensor:
    """Exponents by their differences above the smallest one."""
    if abs(smallest) > LARGEST or (smallest if not above.size else above.min()) != 0:
        raise FormatError(
            f"{name} has a smallest exponent of {smallest} that is beyond ±{LARGEST} or that no row or column has; "
            f"{DAMAGED}"
        )
    return torch.from_numpy(above.astype(np.int16) + np.int16(smallest))
