"""What levels will take in the file, from counts, without coding them.

Levels share tables between matrices, so a size is that of a whole model: counts by predicted spread and kind of
state, from a sample or from all of it, and then the classes and tables the coder would choose. Once there are tables,
the bits of rows simply add up, and what a few rows more or less change is known without another encode.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from quantgolf.encode.contexts import Contexts, choose_contexts, group_spreads
from quantgolf.encode.lanes import FIRST, LAST, count_levels, segment_bits
from quantgolf.encode.rans import SYMBOLS_PER_LANE
from quantgolf.encode.table import PRECISION, SYMBOLS, frequencies, symbol_bits
from quantgolf.solve.slope import RESOLUTION, Grid
from quantgolf.solve.trellis import Trellis

WIDEST = 4 * 40  # predicted spreads beyond this many quarter octaves cost a bit for every four more
LANE_BITS = 24  # of a lane's state; the rest of its 32 bits carries levels

Spreads = tuple[int, NDArray[np.int64]]  # the least spread, and how many weights have it and each one above


@dataclass(frozen=True)
class Histogram:
    """How often each symbol of the coder occurs, for all or for some matrices.

    Attributes:
        lowest: the least predicted spread.
        counts: by spread above it, odd state and symbol, int64 [S, 2, 256].
        excess: bytes of what escapes hold.
    """

    lowest: int
    counts: NDArray[np.int64]
    excess: float = 0.0

    @staticmethod
    def sum(parts: Iterable["Histogram"]) -> "Histogram":
        """Of all parts together; at least one."""
        parts = list(parts)
        lowest = min(part.lowest for part in parts)
        counts = np.zeros((max(part.lowest + len(part.counts) for part in parts) - lowest, 2, SYMBOLS), dtype=np.int64)
        for part in parts:
            counts[part.lowest - lowest :][: len(part.counts)] += part.counts
        return Histogram(lowest, counts, sum(part.excess for part in parts))

    def times(self, factor: float) -> "Histogram":
        """As if there were so many times as many weights."""
        return Histogram(self.lowest, np.rint(self.counts * factor).astype(np.int64), self.excess * factor)

    def coded(self, trellis: Trellis) -> tuple[float, Contexts]:
        """Bits of the stream of levels, to a few hundred, and the classes and tables it would have."""
        present = np.flatnonzero(self.counts.any(axis=(1, 2)))
        spreads = present + self.lowest
        groups = group_spreads(spreads)
        counts = np.zeros((len(groups), 2, SYMBOLS), dtype=np.int64)
        np.add.at(counts, np.searchsorted(groups, spreads, side="right") - 1, self.counts[present])
        contexts, histograms = choose_contexts(groups, counts)
        bits = 8 * (self.excess + len(contexts.write(odd=trellis.states > 1)))
        for each, roots in zip(histograms, contexts.roots, strict=True):
            bits += 0.0 if roots is None else symbol_bits(each, frequencies(roots))
        lanes = max(1, int(counts.sum()) // SYMBOLS_PER_LANE)
        return bits + LANE_BITS * lanes, contexts


def histogram_of(
    levels: NDArray[np.int32],
    row: NDArray[np.int16],
    column: NDArray[np.int16],
    spread: int,
    trellis: Trellis,
) -> Histogram:
    """Of levels [K, N] down columns, whose rows begin where the trellis does, and their powers [N] and [K]."""
    lowest, widths = predicted_spreads(row, column, spread)
    counts = np.zeros((len(widths), 2, SYMBOLS), dtype=np.int64)
    above = spread - lowest - column.astype(np.int64)
    excess = count_levels(levels, row.astype(np.int64), above, trellis.after, trellis.restart, counts, False)
    return Histogram(lowest, counts, float(excess))


def bits_by_segment(
    levels: NDArray[np.int32] | NDArray[np.int16],
    row: NDArray[np.int16],
    column: NDArray[np.int16],
    spread: int,
    trellis: Trellis,
    contexts: Contexts,
    diagonal: bool = False,
) -> NDArray[np.float64]:
    """Bits of the levels [K, N], int16 or int32, of each run of `trellis.restart` rows, [⌈N / restart⌉], under tables.

    What a table does not have costs as much as its rarest symbol.
    """
    costs = np.full((len(contexts.roots), SYMBOLS), float(PRECISION))
    for context, roots in enumerate(contexts.roots):
        if roots is not None:
            costs[context] = PRECISION - np.log2(np.maximum(frequencies(roots), 1))
    costs[:, [FIRST, LAST]] += 8  # the excess takes a byte or two
    lowest, widths = predicted_spreads(row, column, spread)
    class_at = contexts.class_at(np.arange(lowest, lowest + len(widths)))
    bits = np.zeros(-(-len(row) // trellis.restart))
    above = spread - lowest - column.astype(np.int64)
    segment_bits(levels, row.astype(np.int64), above, class_at, costs, trellis.after, trellis.restart, bits, diagonal)
    return bits


def predicted_spreads(
    row: NDArray[np.int16] | NDArray[np.int64], column: NDArray[np.int16] | NDArray[np.int64], spread: int
) -> Spreads:
    """How many weights of a matrix have each predicted spread: that of (i, j) is spread - row[i] - column[j]."""
    rows, columns = (np.bincount(int(side.max()) - side.astype(np.int64)) for side in (row, column))
    return spread - int(row.max()) - int(column.max()), np.convolve(rows, columns)


def spreads_of(grid: Grid, rows: slice | NDArray[np.int64]) -> Spreads:
    """How many weights of these rows have each spread in steps of slope 1, in quarter octaves."""
    row, column = (RESOLUTION * (grid.row - grid.spreads)[rows]).round(), (RESOLUTION * grid.column).round()
    return predicted_spreads(row.numpy().astype(np.int64), column.numpy().astype(np.int64), 0)


def summed_spreads(parts: Sequence[Spreads]) -> Spreads:
    """Of all parts together; at least one."""
    lowest = min(first for first, _ in parts)
    total = np.zeros(max(first + len(many) for first, many in parts) - lowest, dtype=np.int64)
    for first, many in parts:
        total[first - lowest :][: len(many)] += many
    return lowest, total


def gaussian_bits(
    spread: NDArray[np.int64] | NDArray[np.floating[Any]], trellis: Trellis | None = None
) -> NDArray[np.float64]:
    """Entropy of Gaussian numbers with standard deviation 2^(spread / 4), rounded to integers.

    With a trellis, of what it makes of them: it chooses among levels two apart; with one state they are one apart.
    """
    power = spread - (RESOLUTION if trellis is not None and trellis.states > 1 else 0)
    found: NDArray[np.float64] = np.interp(power, np.arange(-WIDEST, 41), _gaussian_bits())
    return found + np.maximum(0, power - 40) / RESOLUTION


def bits_of(levels: NDArray[np.int32] | NDArray[np.int16], trellis: Trellis) -> float:
    """Entropy of what is coded of levels, by one histogram, bits a weight; the file's contexts take less."""
    magnitude = np.abs(levels.astype(np.int32))
    magnitude = magnitude if trellis.states == 1 else (magnitude + 1) >> 1
    coded = np.where(levels < 0, -magnitude, magnitude).ravel(order="K")
    most = int(magnitude.max(initial=0))
    counts = np.bincount(coded + most) if most < 2**20 else np.unique(coded, return_counts=True)[1]
    share = counts[counts > 0] / max(1, levels.size)
    return float(-(share * np.log2(share)).sum())


@cache
def _gaussian_bits() -> NDArray[np.float64]:
    """`gaussian_bits` of the powers -WIDEST to 40."""
    table = np.empty(WIDEST + 41)
    for index in range(len(table)):
        share = np.diff(ndtr((np.arange(-9000, 9001) + 0.5) / 2 ** ((index - WIDEST) / RESOLUTION)))
        share = share[share > 0]
        table[index] = -(share * np.log2(share)).sum()
    return table
