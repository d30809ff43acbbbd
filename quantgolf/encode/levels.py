"""The levels of a whole model in one stream: interleaved rANS with a table for each context.

What is known before a level is read: the steps of its row and column and the standard deviation of its matrix, all
as whole quarter octaves, which together predict how wide levels spread there; and whether the trellis is in an odd
state. That pair is the context. Weights of all matrices share the tables, so that there are few and each is learned
from many. The matrices follow each other in one sequence, see `lanes`, which leaves a decoder wide strides. Those whose
trellis runs along diagonals are rolled first, see `diagonals`.

Levels are unclipped. In an even state only the even ones are allowed, in an odd one the odd ones and zero: what is
coded is k, level = 2k or 2k - sign(k), and with one state level = k. |k| up to 126 is a symbol; beyond it the
excess of |k| over 127 goes into a run of its own, because a few outliers do not deserve a table.

The stream: varint classes - 1; for each class after the first, varint of where it begins less where the one before
does, less 1 (the first begins at the least spread predicted); for each class the table for even and, with more than
one state, odd states, or one byte 255 where no weight has that context; varint number of escapes and a varint for
the excess of each; a uint32 state for each lane; uint16 words to the end. Escapes and words come in the order a
decoder needs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.contexts import Contexts, choose_contexts, group_spreads, read_contexts
from quantgolf.encode.diagonals import rolled, unrolled
from quantgolf.encode.lanes import (
    FIRST,
    LARGEST_LEVEL,
    LAST,
    ZERO,
    classes_of,
    decode_lanes,
    encode_lanes,
    lane_starts,
    symbols_of,
)
from quantgolf.encode.rans import LOWEST, SYMBOLS_PER_LANE
from quantgolf.encode.table import SYMBOLS, frequencies, symbol_bits
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis

LARGEST_SPREAD = 2**15


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


@dataclass(frozen=True)
class _Prepared:
    """All weights in coding order: symbols [n], groups and states they are met in [n], and how they are coded."""

    symbols: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    context_of: NDArray[np.uint16]
    excess: tuple[int, ...]
    starts: NDArray[np.int64]
    contexts: Contexts
    counts: NDArray[np.int64]


def encode_levels(matrices: Sequence[Levels], trellis: Trellis) -> bytes:
    """Levels that `trellis` allows, as one stream; b"" where there is not a single weight.

    Raises:
        QuantGolfError: a level the trellis does not allow at its place, or arrays of other dtypes or shapes.
    """
    ready = _prepare(matrices, trellis)
    if ready is None:
        return b""
    states = np.full(len(ready.starts), LOWEST, dtype=np.uint64)
    words = np.empty(len(ready.symbols), dtype=np.uint16)  # no symbol gives more than one
    first = encode_lanes(
        ready.symbols, ready.keys, ready.context_of, ready.starts, ready.contexts.shares(), states, words
    )
    return _head(ready, trellis) + states.astype("<u4").tobytes() + words[first:].astype("<u2").tobytes()


def predicted_bits(matrices: Sequence[Levels], trellis: Trellis) -> float:
    """Bits of `encode_levels` without coding: cross-entropy under the tables, the tables, escapes and lanes.

    Raises:
        QuantGolfError: as `encode_levels`.
    """
    ready = _prepare(matrices, trellis)
    if ready is None:
        return 0.0
    pairs = zip(ready.counts, ready.contexts.roots, strict=True)
    entropy = sum(symbol_bits(counts, frequencies(roots)) for counts, roots in pairs if roots is not None)
    # Of its 32 bits a state begins with 16 that mean nothing and ends about half full of the other 16.
    return entropy + 8 * len(_head(ready, trellis)) + 24 * len(ready.starts)


def decode_levels(
    payload: bytes, shapes_and_steps: Sequence[Frame], trellis: Trellis, what: str = "the stream of levels"
) -> list[NDArray[np.int32]]:
    """The levels int32 [N, K] of each matrix that `encode_levels` was given; `what` names the stream in messages.

    Those of columns are views of one array in coding order, columns one after another in memory. It is allocated only
    if the payload is long enough for the states of its lanes, 4 bytes for every 32,768 levels.

    Raises:
        FormatError: not a stream that `encode_levels` writes for these frames.
    """
    for frame in shapes_and_steps:
        if fault := _fault(frame):
            raise FormatError(f"{what} holds {fault}; {DAMAGED}")
    cursor = Cursor(payload, what)
    ends = list(accumulate(rows * columns for rows, columns in (frame.shape for frame in shapes_and_steps)))
    count = ends[-1] if ends else 0
    if count // SYMBOLS_PER_LANE * 4 > cursor.left:
        raise FormatError(f"{what} has {len(payload)} bytes for {count:,} levels, too few for their lanes; {DAMAGED}")
    frames = [frame for frame in shapes_and_steps if 0 not in frame.shape]
    levels = np.empty(count, dtype=np.int32)
    if frames:
        _decode(cursor, frames, trellis, levels)
    cursor.finish()
    found = []
    for end, frame in zip(ends, shapes_and_steps, strict=True):
        coded = levels[end - frame.shape[0] * frame.shape[1] : end].reshape(frame.shape[::-1])
        found.append(unrolled(coded) if frame.diagonal else coded.T)
    return found


def _decode(cursor: Cursor, frames: list[Frame], trellis: Trellis, levels: NDArray[np.int32]) -> None:
    spreads = _spreads(frames)
    contexts = read_contexts(cursor, spreads, trellis.states > 1)
    lowest = contexts.lowest
    class_at = contexts.class_at(np.arange(lowest, spreads[-1] + 1))
    excess = np.array([min(cursor.varint(), LARGEST_LEVEL) for _ in range(cursor.varint())], dtype=np.int64)
    starts = lane_starts(np.array([frame.shape for frame in frames]), trellis.restart)
    states = np.frombuffer(cursor.take(4 * len(starts)), "<u4").astype(np.uint64)
    if cursor.left % 2:
        raise FormatError(f"{cursor.what} has {cursor.left} bytes of words, expected an even number; {DAMAGED}")
    words = np.frombuffer(cursor.rest(), "<u2").astype(np.uint16)
    classes, at = np.empty(len(levels), dtype=np.uint8), 0
    for frame in frames:
        end = at + frame.shape[0] * frame.shape[1]
        row, column = frame.row.astype(np.int64), frame.spread - lowest - frame.column.astype(np.int64)
        classes_of(row, column, class_at, trellis.restart, classes[at:end], frame.diagonal)
        at = end
    begun = states.min() >= LOWEST
    ends = decode_lanes(
        words, excess, classes, starts, contexts.shares(), contexts.slots(), trellis.after, states, levels
    )
    if not begun or ends != (len(words), len(excess)) or (states != LOWEST).any():
        raise FormatError(f"{cursor.what} does not end where its encoder began; {DAMAGED}")


def _prepare(matrices: Sequence[Levels], trellis: Trellis) -> _Prepared | None:
    for at, matrix in enumerate(matrices):
        if fault := _fault_of_levels(matrix):
            raise QuantGolfError(f"matrix {at} to encode has {fault}")
    matrices = [matrix for matrix in matrices if matrix.levels.size]
    if not matrices:
        return None
    frames = [matrix.frame for matrix in matrices]
    spreads = _spreads(frames)
    lowest = int(spreads[0])
    groups = group_spreads(spreads)
    group_at = np.searchsorted(groups, np.arange(lowest, spreads[-1] + 1), side="right").astype(np.uint8) - np.uint8(1)
    starts = lane_starts(np.array([frame.shape for frame in frames]), trellis.restart)
    count = sum(matrix.levels.size for matrix in matrices)
    symbols, keys = np.empty(count, dtype=np.uint8), np.empty(count, dtype=np.uint8)
    counts = np.zeros((2 * len(groups), SYMBOLS), dtype=np.int64)
    escapes: list[NDArray[np.int64]] = []
    at = 0
    for matrix in matrices:
        flat = rolled(matrix.levels).ravel() if matrix.diagonal else matrix.levels.ravel(order="F")
        row, column = matrix.row.astype(np.int64), matrix.spread - lowest - matrix.column.astype(np.int64)
        end = at + len(flat)
        part = symbols[at:end]
        shared = trellis.after, trellis.restart
        wrong = symbols_of(flat, row, column, group_at, *shared, part, keys[at:end], counts, matrix.diagonal)
        if wrong >= 0:
            j, i = divmod(wrong, len(row))
            j = (j - i) % len(column) if matrix.diagonal else j
            raise QuantGolfError(
                f"level {flat[wrong]} at row {i} of column {j} is one that the trellis with {trellis.states} states, "
                f"down {'diagonals' if matrix.diagonal else 'columns'}, does not allow there; expected levels that it "
                "gave"
            )
        found = np.flatnonzero((part == FIRST) | (part == LAST))
        magnitude = np.abs(flat[found].astype(np.int64))
        magnitude = magnitude if trellis.states == 1 else (magnitude + 1) // 2
        escapes.append(np.stack([found + at, magnitude - ZERO]))
        at = end
    contexts, histograms = choose_contexts(groups, counts.reshape(-1, 2, SYMBOLS))
    context_of = 2 * contexts.class_at(groups).astype(np.uint16).repeat(2) + np.tile(
        np.array([0, 1], np.uint16), len(groups)
    )
    place, excess = np.concatenate(escapes, axis=1)
    lane = np.searchsorted(starts, place, side="right") - 1
    order = np.lexsort((lane, place - starts[lane]))
    return _Prepared(symbols, keys, context_of, tuple(excess[order].tolist()), starts, contexts, histograms)


def _head(ready: _Prepared, trellis: Trellis) -> bytes:
    """All that comes before states and words."""
    excess = b"".join(map(varint, (len(ready.excess), *ready.excess)))
    return ready.contexts.write(odd=trellis.states > 1) + excess


def _spreads(frames: Sequence[Frame]) -> NDArray[np.int64]:
    """The predicted spreads spread - row[i] - column[j] of all weights, each once, sorted; no matrix is empty."""
    # Marked in an array of at most 4 · 2^16: sums of all distinct rows and columns could be as many as the weights.
    least = min(frame.spread - int(frame.row.max()) - int(frame.column.max()) for frame in frames)
    most = max(frame.spread - int(frame.row.min()) - int(frame.column.min()) for frame in frames)
    present = np.zeros(most - least + 1, dtype=np.bool_)
    for frame in frames:
        columns = frame.spread - least - np.unique(frame.column).astype(np.int64)
        for row in np.unique(frame.row).tolist():
            present[columns - row] = True
    return np.flatnonzero(present) + least


def _fault(frame: Frame) -> str | None:
    rows, columns = frame.shape
    if rows < 0 or columns < 0 or frame.row.shape != (rows,) or frame.column.shape != (columns,):
        return f"a matrix {list(frame.shape)} with {frame.row.shape} row and {frame.column.shape} column steps"
    if frame.row.dtype != np.int16 or frame.column.dtype != np.int16:
        return f"{frame.row.dtype} row and {frame.column.dtype} column steps, expected int16"
    if not -LARGEST_SPREAD <= frame.spread < LARGEST_SPREAD:
        return f"a spread of {frame.spread} quarter octaves, expected one within int16"
    return None


def _fault_of_levels(matrix: Levels) -> str | None:
    if matrix.levels.dtype != np.int32 or matrix.levels.ndim != 2:
        return f"{matrix.levels.dtype} levels {list(matrix.levels.shape)}, expected int32 [N, K]"
    if matrix.levels.size and matrix.levels.min() < -LARGEST_LEVEL:
        return f"a level of {matrix.levels.min()}, expected at least {-LARGEST_LEVEL}"
    return _fault(matrix.frame)
