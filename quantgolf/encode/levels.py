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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode import gpu
from quantgolf.encode.contexts import Contexts, choose_contexts, group_spreads, read_contexts
from quantgolf.encode.diagonals import rolled, unrolled
from quantgolf.encode.frames import Frame as Frame
from quantgolf.encode.frames import Levels as Levels
from quantgolf.encode.frames import fault, fault_of_levels, predicted_spreads
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
from quantgolf.encode.rans import LOWEST
from quantgolf.encode.table import SYMBOLS, frequencies, symbol_bits
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis


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

    All run on the CPU. They are views of one array, contiguous each. It is allocated when classes, tables, escapes and
    the states of lanes, 4 bytes for every 32,768 levels, have been read.

    Raises:
        FormatError: not a stream that `encode_levels` writes for these frames.
    """
    cursor, ends = _open(payload, shapes_and_steps, what)
    frames = [frame for frame in shapes_and_steps if 0 not in frame.shape]
    opened = _read(cursor, frames, trellis) if frames else None
    cursor.finish()
    levels = np.empty(ends[-1] if ends else 0, dtype=np.int32)
    if opened is not None:
        _decode(opened, frames, trellis, levels)
    found = []
    for end, frame in zip(ends, shapes_and_steps, strict=True):
        flat = levels[end - frame.shape[0] * frame.shape[1] : end]
        coded = flat.reshape(frame.shape[::-1])
        # Each in its own place, so that levels are in memory once and the largest matrix twice.
        flat[:] = (unrolled(coded) if frame.diagonal else torch.from_numpy(coded).T.contiguous().numpy()).ravel()
        found.append(flat.reshape(frame.shape))
    return found


def decode_levels_on(
    device: torch.device, payload: bytes, shapes_and_steps: Sequence[Frame], trellis: Trellis,
    what: str = "the stream of levels",
) -> Iterator[Tensor]:  # fmt: skip
    """As `decode_levels`, on a GPU that `gpu.decodes_on`: the levels int32 [N, K] of a matrix after the other.

    Words, tables and exponents are read on the CPU and go to the GPU; levels never visit the CPU. All are decoded in
    one launch when the first matrix is asked for, and put into the order of their matrices one at a time.

    Raises:
        FormatError: as `decode_levels`, before the first matrix comes.
    """
    cursor, _ = _open(payload, shapes_and_steps, what)
    frames = [frame for frame in shapes_and_steps if 0 not in frame.shape]
    found: Iterator[Tensor] = iter(())
    if frames:
        found = _decode_on(device, _read(cursor, frames, trellis), frames, trellis)
    cursor.finish()
    for frame in shapes_and_steps:
        yield torch.empty(frame.shape, dtype=torch.int32, device=device) if 0 in frame.shape else next(found)


@dataclass(frozen=True)
class _Coded:
    """A stream of levels taken apart, with the words still to be decoded."""

    what: str
    contexts: Contexts
    class_at: NDArray[np.uint8]
    excess: NDArray[np.int64]
    starts: NDArray[np.int64]
    states: NDArray[np.uint32]
    words: NDArray[np.uint16]

    def check(self, is_whole: bool) -> None:
        if not is_whole or self.states.min() < LOWEST:
            raise FormatError(f"{self.what} does not end where its encoder began; {DAMAGED}")


def _open(payload: bytes, shapes_and_steps: Sequence[Frame], what: str) -> tuple[Cursor, list[int]]:
    """The stream, and where each matrix ends in the sequence."""
    for frame in shapes_and_steps:
        if why := fault(frame):
            raise FormatError(f"{what} holds {why}; {DAMAGED}")
    cursor = Cursor(payload, what)
    ends = list(accumulate(rows * columns for rows, columns in (frame.shape for frame in shapes_and_steps)))
    return cursor, ends


def _read(cursor: Cursor, frames: list[Frame], trellis: Trellis) -> _Coded:
    spreads = predicted_spreads(frames)
    contexts = read_contexts(cursor, spreads, trellis.states > 1)
    lowest = contexts.lowest
    class_at = contexts.class_at(np.arange(lowest, spreads[-1] + 1))
    escapes, weights = cursor.varint(), sum(rows * columns for rows, columns in (frame.shape for frame in frames))
    if escapes > weights:
        raise FormatError(f"{cursor.what} has {escapes} escapes, expected at most {weights}, its weights; {DAMAGED}")
    excess = np.fromiter((min(cursor.varint(), LARGEST_LEVEL) for _ in range(escapes)), dtype=np.int64, count=escapes)
    starts = lane_starts(np.array([frame.shape for frame in frames]), trellis.restart)
    states = np.frombuffer(cursor.take(4 * len(starts)), "<u4").astype(np.uint32)
    if cursor.left % 2:
        raise FormatError(f"{cursor.what} has {cursor.left} bytes of words, expected an even number; {DAMAGED}")
    words = np.frombuffer(cursor.rest(), "<u2").astype(np.uint16)
    return _Coded(cursor.what, contexts, class_at, excess, starts, states, words)


def _decode(coded: _Coded, frames: list[Frame], trellis: Trellis, levels: NDArray[np.int32]) -> None:
    classes, at, lowest = np.empty(len(levels), dtype=np.uint8), 0, coded.contexts.lowest
    for frame in frames:
        end = at + frame.shape[0] * frame.shape[1]
        row, column = frame.row.astype(np.int64), frame.spread - lowest - frame.column.astype(np.int64)
        classes_of(row, column, coded.class_at, trellis.restart, classes[at:end], frame.diagonal)
        at = end
    states, tables = coded.states.astype(np.uint64), (coded.contexts.shares(), coded.contexts.slots())
    ends = decode_lanes(coded.words, coded.excess, classes, coded.starts, *tables, trellis.after, states, levels)
    coded.check(ends == (len(coded.words), len(coded.excess)) and bool((states == LOWEST).all()))


def _decode_on(device: torch.device, coded: _Coded, frames: list[Frame], trellis: Trellis) -> Iterator[Tensor]:
    lowest = coded.contexts.lowest
    matrices = gpu.Matrices(
        tuple(frame.shape for frame in frames),
        tuple(frame.diagonal for frame in frames),
        np.concatenate([frame.row for frame in frames]).astype(np.int32),
        np.concatenate([frame.spread - lowest - frame.column.astype(np.int32) for frame in frames]),
        coded.class_at,
    )
    tables = coded.contexts.shares(), coded.contexts.slots()
    levels, is_whole = gpu.decode_levels(
        matrices, coded.words, coded.excess, coded.starts, *tables, trellis.after, trellis.restart, coded.states, device
    )
    coded.check(is_whole)
    return levels.matrices()


def _prepare(matrices: Sequence[Levels], trellis: Trellis) -> _Prepared | None:
    for at, matrix in enumerate(matrices):
        if why := fault_of_levels(matrix):
            raise QuantGolfError(f"matrix {at} to encode has {why}")
    matrices = [matrix for matrix in matrices if matrix.levels.size]
    if not matrices:
        return None
    frames = [matrix.frame for matrix in matrices]
    spreads = predicted_spreads(frames)
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
