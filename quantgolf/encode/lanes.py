"""The inner loops of the coder of levels: which symbol and context a level has, and rANS with a table per context.

Weights follow each other matrix after matrix, column after column, down the rows; of a diagonal matrix the columns are
its diagonals, see `diagonals`. A lane is a contiguous run of whole segments of the trellis, so that every lane begins
in state 0 and a decoder can follow all of them at once: step t takes the t-th symbol of every lane that still has one,
in lane order, from one shared sequence of words.

A lane's symbols may lie exactly 2^15 from those of its neighbours, all in the same few sets of the cache. Therefore
blocks of `BLOCK` steps are gathered into a small array first: 1.6 times as fast on a matrix [4096, 8192], and 1.1
times on many small ones, where lanes lie less evenly (EPYC, one core).
"""

import numba
import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.diagonals import first_of, in_coding_order
from quantgolf.encode.rans import LOWEST, SYMBOLS_PER_LANE
from quantgolf.encode.table import PRECISION, TOTAL
from quantgolf.solve.trellis import label_of

BLOCK = 32
ZERO = 127  # the symbol of k = 0
FIRST, LAST = 0, 2 * ZERO  # escapes: k at or beyond ±127
MOST_CLASSES = 64
ENDED = 0xFFFF
LARGEST_LEVEL = 2**31 - 1


def lane_starts(shapes: NDArray[np.int64], restart: int) -> NDArray[np.int64]:
    """Where each lane begins among the n weights of matrices `shapes` [M, 2]; [L], L = max(1, ⌊n / 32768⌋), n > 0.

    Lane l begins with the first segment that begins at or after ⌊l · n / L⌋, or at n; lanes may be empty.
    """
    sizes = shapes.prod(axis=1)
    bases = np.cumsum(sizes) - sizes
    count = int(sizes.sum())
    lanes = max(1, count // SYMBOLS_PER_LANE)
    wanted = np.arange(lanes, dtype=np.int64) * count // lanes
    matrix = np.searchsorted(bases, wanted, side="right") - 1
    rows = shapes[matrix, 0]
    row = (wanted - bases[matrix]) % rows
    starts: NDArray[np.int64] = wanted - row + np.minimum(-(-row // restart) * restart, rows)
    return starts


@numba.njit(cache=True, nogil=True)
def symbols_of(
    levels: NDArray[np.int32],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    class_at: NDArray[np.uint8],
    after: NDArray[np.int64],
    restart: int,
    symbols: NDArray[np.uint8],
    keys: NDArray[np.uint8],
    counts: NDArray[np.int64],
    diagonal: bool,
) -> int:
    """Fills the symbols [N·K] and keys 2 · class + odd [N·K] of levels [K, N], and adds them to `counts` [keys, 256].

    Levels of a `diagonal` matrix come rolled. The class of weight (i, j) is `class_at[column[j] - row[i]]`.
    Returns the place of the first level that its state does not allow, -1 if there is none.
    """
    n, at, scalar = len(row), 0, len(after) == 1
    above = in_coding_order(column, n, diagonal)
    for j in range(len(column)):
        first, state = first_of(j, column, diagonal), 0
        for i in range(n):
            if i % restart == 0:
                state = 0
            level = int(levels[at])
            k = level
            if not scalar:
                if (level & 1) != (state & 1) and level != 0:
                    return at
                k = (level + (level & 1 if level > 0 else -(level & 1))) >> 1
            symbol = min(max(k + ZERO, FIRST), LAST)
            key = class_at[above[first + i * diagonal] - row[i]] << 1 | (state & 1)
            symbols[at] = symbol
            keys[at] = key
            counts[key, symbol] += 1
            state = int(after[state, label_of(level)])
            at += 1
    return -1


@numba.njit(inline="always")
def _symbol(level: int, odd: int, scalar: bool) -> int:
    """The symbol of a level that a state with this parity allows."""
    k = level if scalar else (level + (odd if level > 0 else -odd)) >> 1 if level != 0 else 0
    return min(max(k + ZERO, FIRST), LAST)


@numba.njit(inline="always")
def _level(k: int, odd: int, scalar: bool) -> int:
    """The level that k stands for in a state with this parity."""
    return k if scalar else 2 * k - (odd if k > 0 else -odd if k < 0 else 0)


@numba.njit(cache=True, nogil=True)
def count_levels(
    levels: NDArray[np.int32],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    after: NDArray[np.int64],
    restart: int,
    counts: NDArray[np.int64],
    diagonal: bool,
) -> int:
    """Adds the symbols of levels [K, N] to `counts` [spreads, 2, 256]; that of weight (i, j) is column[j] - row[i].

    Levels of a `diagonal` matrix come rolled. Returns the bytes of what escapes hold.
    """
    scalar, excess = len(after) == 1, 0
    above = in_coding_order(column, len(row), diagonal)
    for j in range(len(column)):
        first, state = first_of(j, column, diagonal), 0
        for i in range(len(row)):
            if i % restart == 0:
                state = 0
            level = int(levels[j, i])
            symbol = _symbol(level, state & 1, scalar)
            counts[above[first + i * diagonal] - row[i], state & 1, symbol] += 1
            if symbol in (FIRST, LAST):
                left = (abs(level) if scalar else (abs(level) + 1) >> 1) - ZERO
                excess += 1
                while left >= 128:
                    left >>= 7
                    excess += 1
            state = int(after[state, label_of(level)])
    return excess


@numba.njit(cache=True, nogil=True)
def segment_bits(
    levels: NDArray[np.int32] | NDArray[np.int16],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    class_at: NDArray[np.uint8],
    costs: NDArray[np.float64],
    after: NDArray[np.int64],
    restart: int,
    bits: NDArray[np.float64],
    diagonal: bool,
) -> None:
    """Adds what levels [K, N], rolled if `diagonal`, cost to `bits` of their segments; `costs` [2 · classes, 256]."""
    scalar = len(after) == 1
    above = in_coding_order(column, len(row), diagonal)
    for j in range(len(column)):
        first = first_of(j, column, diagonal)
        for begin in range(0, len(row), restart):
            state, total = 0, 0.0
            for i in range(begin, min(begin + restart, len(row))):
                level = int(levels[j, i])
                context = int(class_at[above[first + i * diagonal] - row[i]]) << 1 | (state & 1)
                total += costs[context, _symbol(level, state & 1, scalar)]
                state = int(after[state, label_of(level)])
            bits[begin // restart] += total


@numba.njit(cache=True, nogil=True)
def classes_of(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    class_at: NDArray[np.uint8],
    restart: int,
    classes: NDArray[np.uint8],
    diagonal: bool,
) -> None:
    """Fills 2 · class of each weight [N·K] in coding order, 1 more where the trellis begins again."""
    at, above = 0, in_coding_order(column, len(row), diagonal)
    for j in range(len(column)):
        first = first_of(j, column, diagonal)
        for i in range(len(row)):
            classes[at + i] = class_at[above[first + i * diagonal] - row[i]] << 1
        for i in range(0, len(row), restart):
            classes[at + i] |= 1
        at += len(row)


@numba.njit(cache=True, nogil=True)
def encode_lanes(
    symbols: NDArray[np.uint8],
    keys: NDArray[np.uint8],
    context_of: NDArray[np.uint16],
    starts: NDArray[np.int64],
    shares: NDArray[np.uint32],
    states: NDArray[np.uint64],
    words: NDArray[np.uint16],
) -> int:
    """Fills `words` from its end; returns where they begin.

    Symbol i has context `context_of[keys[i]]`; `shares` [contexts · 256] holds frequency + 2^16 · start.
    """
    lanes, at = len(starts), len(words)
    ends = np.append(starts[1:], len(symbols))
    steps = (ends - starts).max()
    block = np.empty((BLOCK, lanes), dtype=np.uint16)
    for first in range((steps - 1) // BLOCK * BLOCK, -1, -BLOCK):
        for lane in range(lanes):
            begin = starts[lane] + first
            held = min(BLOCK, ends[lane] - begin)
            for t in range(held):
                block[t, lane] = context_of[keys[begin + t]] << 8 | symbols[begin + t]
            for t in range(max(0, held), BLOCK):
                block[t, lane] = ENDED
        for t in range(BLOCK - 1, -1, -1):
            for lane in range(lanes - 1, -1, -1):
                index = block[t, lane]
                if index == ENDED:
                    continue
                x, share = states[lane], shares[index]
                f, start = np.uint64(share & 0xFFFF), np.uint64(share >> 16)
                if x >= f << np.uint64(32 - PRECISION):
                    at -= 1
                    words[at] = np.uint16(x & np.uint64(0xFFFF))
                    x >>= np.uint64(16)
                quotient = x // f
                states[lane] = (quotient << np.uint64(PRECISION)) + (x - quotient * f) + start
    return at


@numba.njit(cache=True, nogil=True)
def decode_lanes(
    words: NDArray[np.uint16],
    excess: NDArray[np.int64],
    classes: NDArray[np.uint8],
    starts: NDArray[np.int64],
    shares: NDArray[np.uint32],
    slots: NDArray[np.uint8],
    after: NDArray[np.int64],
    states: NDArray[np.uint64],
    levels: NDArray[np.int32],
) -> tuple[int, int]:
    """Fills `levels` [n]; returns the words and the escapes used, -1 where they run out or do not fit.

    `slots` [contexts, 2^14] names the symbol of each slot, 255 in contexts that have no table.
    """
    lanes, at, escaped, scalar = len(starts), 0, 0, len(after) == 1
    ends = np.append(starts[1:], len(levels))
    steps = (ends - starts).max()
    block = np.empty((BLOCK, lanes), dtype=np.uint16)
    found = np.empty((BLOCK, lanes), dtype=np.int32)
    machines = np.zeros(lanes, dtype=np.int64)
    level_of, next_machine = np.empty((2, 256), dtype=np.int32), np.empty((len(after), 256), dtype=np.uint8)
    for symbol in range(256):
        for odd in range(2):
            level_of[odd, symbol] = _level(symbol - ZERO, odd, scalar)
        for machine in range(len(after)):
            next_machine[machine, symbol] = after[machine, label_of(level_of[machine & 1, symbol])]
    for first in range(0, steps, BLOCK):
        for lane in range(lanes):
            begin = starts[lane] + first
            held = min(BLOCK, ends[lane] - begin)
            for t in range(held):
                block[t, lane] = classes[begin + t]
            for t in range(max(0, held), BLOCK):
                block[t, lane] = ENDED
        for t in range(BLOCK):
            for lane in range(lanes):
                entry = int(block[t, lane])
                if entry == ENDED:
                    continue
                machine = 0 if entry & 1 else int(machines[lane])
                odd = machine & 1
                context = (entry & ~1) | odd
                x = states[lane]
                slot = x & np.uint64(TOTAL - 1)
                symbol = int(slots[context, slot])
                share = shares[context << 8 | symbol]
                x = np.uint64(share & 0xFFFF) * (x >> np.uint64(PRECISION)) + slot - np.uint64(share >> 16)
                if x < np.uint64(LOWEST):
                    if at == len(words):
                        return -1, escaped
                    x = x << np.uint64(16) | np.uint64(words[at])
                    at += 1
                states[lane] = x
                if symbol == FIRST or symbol >= LAST:
                    if symbol > LAST or escaped == len(excess):
                        return at, -1
                    k = symbol - ZERO
                    k += int(excess[escaped]) if k > 0 else -int(excess[escaped])
                    escaped += 1
                    level = _level(k, odd, scalar)
                    if abs(level) > LARGEST_LEVEL:
                        return at, -1
                    found[t, lane] = np.int32(level)
                    machines[lane] = after[machine, label_of(level)]
                    continue
                found[t, lane] = level_of[odd, symbol]
                machines[lane] = int(next_machine[machine, symbol])
        for lane in range(lanes):
            begin = starts[lane] + first
            for t in range(min(BLOCK, ends[lane] - begin)):
                levels[begin + t] = found[t, lane]
    return at, escaped
