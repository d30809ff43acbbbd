"""Matrices of levels before and after they are coded, and what a decoder knows of each before it reads any level."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.lanes import LARGEST_LEVEL

LARGEST_SPREAD = 2**15
AT_ONCE = 1 << 18  # sums of distinct rows and columns; files have at most 2^16 of a matrix


@dataclass(frozen=True)
class Frame:
    """What a decoder knows of a matrix before it reads its levels.

    Attributes:
        shape: (N, K).
        spread: standard deviation of the weights, in quarter octaves: about 2^(spread / 4); within int16.
        row: int16 [N]; weight (i, j) has a step of about 2^((row[i] + column[j]) / 4).
        column: int16 [K].
        diagonal: whether it is coded along its diagonals.
    """

    shape: tuple[int, int]
    spread: int
    row: NDArray[np.int16]
    column: NDArray[np.int16]
    diagonal: bool = False


@dataclass(frozen=True)
class Levels:
    """The levels int32 [N, K] of a matrix, in ±(2^31 - 1), and what `Frame` says of it."""

    levels: NDArray[np.int32]
    spread: int
    row: NDArray[np.int16]
    column: NDArray[np.int16]
    diagonal: bool = False

    @property
    def frame(self) -> Frame:
        """What is known of the matrix without its levels."""
        return Frame((self.levels.shape[0], self.levels.shape[1]), self.spread, self.row, self.column, self.diagonal)


def predicted_spreads(frames: Sequence[Frame]) -> NDArray[np.int64]:
    """The predicted spreads spread - row[i] - column[j] of all weights, each once, sorted; no matrix is empty."""
    # Marked in an array of at most 4 · 2^16: sums of all distinct rows and columns could be as many as the weights.
    least = min(frame.spread - int(frame.row.max()) - int(frame.column.max()) for frame in frames)
    most = max(frame.spread - int(frame.row.min()) - int(frame.column.min()) for frame in frames)
    present = np.zeros(most - least + 1, dtype=np.bool_)
    for frame in frames:
        columns = frame.spread - least - np.unique(frame.column).astype(np.int64)
        rows = np.unique(frame.row).astype(np.int64)
        at_once = max(1, AT_ONCE // len(columns))
        for start in range(0, len(rows), at_once):
            present[np.subtract.outer(columns, rows[start : start + at_once])] = True
    return np.flatnonzero(present) + least


def fault(frame: Frame) -> str | None:
    rows, columns = frame.shape
    if frame.row.shape != (rows,) or frame.column.shape != (columns,):
        return f"a matrix {list(frame.shape)} with {frame.row.shape} row and {frame.column.shape} column steps"
    if frame.row.dtype != np.int16 or frame.column.dtype != np.int16:
        return f"{frame.row.dtype} row and {frame.column.dtype} column steps, expected int16"
    if not -LARGEST_SPREAD <= frame.spread < LARGEST_SPREAD:
        return f"a spread of {frame.spread} quarter octaves, expected one within int16"
    return None


def fault_of_levels(matrix: Levels) -> str | None:
    if matrix.levels.dtype != np.int32 or matrix.levels.ndim != 2:
        return f"{matrix.levels.dtype} levels {list(matrix.levels.shape)}, expected int32 [N, K]"
    if matrix.levels.size and matrix.levels.min() < -LARGEST_LEVEL:
        return f"a level of {matrix.levels.min()}, expected at least {-LARGEST_LEVEL}"
    return fault(matrix.frame)
