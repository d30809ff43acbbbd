"""Matrices coded along their diagonals: rolled so that each diagonal becomes a column, and back.

A solver with a feedback across output rows too (a full covariance of output gradients) makes the rows of one column
depend on each other. Weights of one diagonal i + j = d do not, so that is where its trellis has to run. Rolling row i
by i puts diagonal d into column d, and the coder goes down columns as ever.

Rolled levels lie column after column, so rolling transposes too, tile by tile: without tiles each weight touches a
line of the cache of its own.
"""

from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

TILE = 16  # int32: a line of the cache

Level = TypeVar("Level", np.int16, np.int32)


def rolled(levels: NDArray[Level]) -> NDArray[Level]:
    """Levels [N, K] in the order they are coded in, [K, N]: `rolled(levels)[d, i] == levels[i, (d - i) % K]`.

    int16 or int32, contiguous; `levels` may lie row after row or column after column.
    """
    found: NDArray[Level] = np.empty(levels.shape[::-1], dtype=levels.dtype)
    if levels.size:
        _roll(np.ascontiguousarray(levels), found)
    return found


def unrolled(levels: NDArray[Level]) -> NDArray[Level]:
    """The levels [N, K], contiguous, whose `rolled` ones [K, N] these are."""
    found: NDArray[Level] = np.empty(levels.shape[::-1], dtype=levels.dtype)
    if levels.size:
        _unroll(np.ascontiguousarray(levels), found)
    return found


@numba.njit(inline="always")
def first_of(j: int, column: NDArray[np.int64], diagonal: bool) -> int:
    """Where the spreads of coded column j begin in `in_coding_order`; down its rows they follow if `diagonal`."""
    return len(column) - 1 - j if diagonal else j


@numba.njit(cache=True, nogil=True)
def in_coding_order(column: NDArray[np.int64], rows: int, diagonal: bool) -> NDArray[np.int64]:
    """`column` itself; of a `diagonal` matrix column[(j - i) mod K] at K - 1 - j + i, which needs no division."""
    if not diagonal:
        return column
    above = np.empty(len(column) + rows, dtype=np.int64)
    for at in range(len(above)):
        above[at] = column[-1 - at % len(column)]
    return above


@numba.njit(cache=True, nogil=True)
def _roll(levels: NDArray[Any], found: NDArray[Any]) -> None:
    rows, columns = levels.shape
    tile = np.empty((TILE, TILE), dtype=levels.dtype)
    for top in range(0, rows, TILE):
        high = min(TILE, rows - top)
        for left in range(0, columns, TILE):
            wide = min(TILE, columns - left)
            for i in range(high):
                j = (left - top - i) % columns
                before = min(wide, columns - j)  # the row ends
                for d in range(before):
                    tile[d, i] = levels[top + i, j + d]
                for d in range(before, wide):
                    tile[d, i] = levels[top + i, d - before]
            for d in range(wide):
                for i in range(high):
                    found[left + d, top + i] = tile[d, i]


@numba.njit(cache=True, nogil=True)
def _unroll(levels: NDArray[Any], found: NDArray[Any]) -> None:
    columns, rows = levels.shape
    tile = np.empty((TILE, TILE), dtype=levels.dtype)
    for top in range(0, rows, TILE):
        high = min(TILE, rows - top)
        for left in range(0, columns, TILE):
            wide = min(TILE, columns - left)
            for d in range(wide):
                for i in range(high):
                    tile[d, i] = levels[left + d, top + i]
            for i in range(high):
                j = (left - top - i) % columns
                before = min(wide, columns - j)
                for d in range(before):
                    found[top + i, j + d] = tile[d, i]
                for d in range(before, wide):
                    found[top + i, d - before] = tile[d, i]
