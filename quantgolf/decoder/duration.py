"""About how long the stand-alone decoder takes for a file.

It goes through the lanes of a stream a symbol of each a step, so that a kilobyte in one lane can keep it busy for an
hour.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode import DTYPES, matrix_shape, places
from quantgolf.encode.groups import WIDTHS, group_count
from quantgolf.encode.lanes import lane_starts
from quantgolf.encode.model import ITEM_SIZES
from quantgolf.encode.place import rows_and_columns
from quantgolf.encode.stream import RANS
from quantgolf.encode.table import read_table
from quantgolf.encode.varint import Cursor
from quantgolf.types import CodedModel

# One EPYC core: a step of one lane of codes takes 55 to 65 µs, of levels 80; of 128 lanes 82, and of 1,096 300.
SECONDS_A_STEP, SECONDS_A_SYMBOL = 8e-5, 2e-7
SECONDS_A_TABLE, SECONDS_A_BLOCK, SECONDS_A_BYTE = 5e-4, 3e-4, 1e-7


def seconds_of(coded: CodedModel) -> float:
    """Seconds for a file that is known to be sound: for every stream its steps and its symbols."""
    found = sum(len(entry.blocks) for entry in coded.tensors) * SECONDS_A_BLOCK
    found += len(coded.streams()) * SECONDS_A_BYTE
    leveled = [
        matrix_shape(entry.shape, place)
        for entry in coded.tensors
        for block, place in zip(entry.blocks, places(entry), strict=True)
        if block.levels
    ]
    shapes = np.array(leveled, dtype=np.int64).reshape(-1, 2)
    for stream in (*_of_codes(coded), *_of_kept(coded), *_of_exponents(coded, shapes)):
        found += _seconds(*stream)
    if count := int(shapes.prod(1).sum()):
        starts = lane_starts(shapes[shapes.prod(1) > 0], coded.restart)
        found += _steps(int(np.diff(starts, append=count).max()), count)
    return found


def _steps(steps: int, count: int) -> float:
    return steps * SECONDS_A_STEP + count * SECONDS_A_SYMBOL


def _seconds(payload: bytes, count: int) -> float:
    """Of a stream of so many symbols."""
    if not count or payload[0] != RANS:
        return 0.0
    cursor = Cursor(payload, "a stream")
    cursor.take(1)
    read_table(cursor)
    return SECONDS_A_TABLE + _steps(-(-count // cursor.varint()), count)


def _of_codes(coded: CodedModel) -> Iterator[tuple[bytes, int]]:
    """The streams of codes, of steps and scales, and of zeros, each with its symbols."""
    scales, zeros = 0, dict.fromkeys(WIDTHS, 0)
    for tensor in coded.tensors:
        for block, place in zip(tensor.blocks, places(tensor), strict=True):
            if block.bits is not None:
                rows, columns = matrix_shape(tensor.shape, place)
                yield block.codes, rows * columns
                each = rows * (1 if block.groups is None else group_count(block.groups.size, columns))
                scales += each
                if block.groups is not None and block.groups.zeros:
                    zeros[block.bits] += each
    yield from _planes(Cursor(coded.steps, "the stream of steps"), scales, 2)
    cursor = Cursor(coded.zeros, "the stream of zeros")
    for count in zeros.values():
        yield from _planes(cursor, count, 1)


def _of_kept(coded: CodedModel) -> Iterator[tuple[bytes, int]]:
    counts = dict.fromkeys(ITEM_SIZES, 0)
    for tensor in coded.tensors:
        columns = rows_and_columns(tensor.shape, tensor.lead)[1]
        for block in tensor.blocks:
            if block.stored is not None:
                counts[DTYPES[block.stored].itemsize] += block.rows * columns
    cursor = Cursor(coded.small, "the stream of small tensors")
    for size, count in counts.items():
        yield from _planes(cursor, count, size)


def _of_exponents(coded: CodedModel, shapes: NDArray[np.int64]) -> Iterator[tuple[bytes, int]]:
    """Of the rows and columns of matrices of levels [M, 2], and of what tuning added, where it did."""
    cursor = Cursor(coded.exponents, "the stream of exponents")
    for _ in range(3 * len(shapes)):
        cursor.varint()
    for count in (*shapes.sum(0).tolist(), *shapes.sum(0).tolist()):
        if cursor.left and (payload := cursor.take(cursor.varint())):
            yield payload, count


def _planes(cursor: Cursor, count: int, size: int) -> Iterator[tuple[bytes, int]]:
    for _ in range(size if count else 0):
        yield cursor.take(cursor.varint()), count
