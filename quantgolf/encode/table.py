"""Frequency tables: integers that sum to 2^14, written down in a few bytes.

A table stores q, about the square root of each frequency, because there a rounding error costs the same number of
bits wherever it falls: coding with f + d instead of f wastes about d² / (2 f) nats, four times half the square of
the error of √f. So one unit of q fits all symbols, a coarse unit will do for a short stream, and neighbours on a
bell curve differ by little. 15 levels take about 15 bytes and 255 levels about 60, table and waste together stay
under 0.03% of 200,000 codes up to 6 bits and under 0.06% at 8.

Precision 14: the integers waste 0.26% on 8-bit codes at 12 bits, 0.05% at 14, 0.02% at 15; but the coder's own
loss grows as states get close to the total, 0.002%, 0.016% and 0.06% of 2-bit codes. 14 is the best for all.
"""

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.varint import DAMAGED, Cursor
from quantgolf.errors import FormatError

PRECISION = 14
TOTAL = 1 << PRECISION
SYMBOLS = 256
LARGEST_ROOT = 0xFFFF

# Units of q to choose from: √(Σ (q-1)²), half an octave apart. Below 11 all roots of a wide table round to zero.
SCALES = (11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)


def choose_roots(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The q [256] with the fewest bits, table and symbols together, for symbols that occur `counts` [256] times.

    q is 0 exactly where a symbol never occurs. At least one symbol has to occur.
    """
    occurs = counts > 0
    excess = np.maximum(0, counts / counts.sum() * TOTAL - 1) / (TOTAL - occurs.sum())
    candidates = [np.where(occurs, 1 + np.rint(scale * np.sqrt(excess)), 0).astype(np.int64) for scale in SCALES]
    return min(candidates, key=lambda roots: _table_bits(roots) + symbol_bits(counts, frequencies(roots)))


def table_costs(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits [B] of histograms [B, 256], each under the table `choose_roots` gives it: `write_table` and symbols.

    A histogram of nothing has no table and costs nothing. Many at once take a fifth of the time.
    """
    found = np.zeros(len(counts))
    filled = counts.any(axis=1)
    counts = counts[filled]
    occurs = (counts > 0)[:, None]
    excess = np.maximum(0, counts / counts.sum(axis=1, keepdims=True) * TOTAL - 1)
    excess /= TOTAL - occurs.sum(axis=2)
    scaled = np.array(SCALES)[:, None] * np.sqrt(excess)[:, None]
    roots = np.where(occurs, 1 + np.rint(scaled), 0).astype(np.int64)  # [B, scales, 256]
    share, placed = np.cumsum(np.maximum(roots - 1, 0) ** 2, axis=2), np.cumsum(occurs, axis=2)
    frequency = np.diff(share * (TOTAL - placed[..., -1:]) // share[..., -1:] + placed, prepend=0)
    symbols = (counts[:, None] * (PRECISION - np.log2(np.maximum(frequency, 1)))).sum(axis=2)
    step = np.diff(roots, prepend=0)
    widths = 2 * np.frexp(np.where(step >= 0, 2 * step, -2 * step - 1) + 1)[1] - 1
    last = SYMBOLS - 1 - np.argmax(occurs[..., ::-1], axis=2)[..., None]
    within = (np.arange(SYMBOLS) >= np.argmax(occurs, axis=2)[..., None]) & (np.arange(SYMBOLS) <= last)
    table = (widths * within).sum(axis=2)
    best = np.argmin(table + symbols, axis=1)[:, None]
    table, symbols = np.take_along_axis(table, best, axis=1)[:, 0], np.take_along_axis(symbols, best, axis=1)[:, 0]
    found[filled] = 16 + 8 * np.ceil(table / 8) + symbols
    return found


def frequencies(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies [256] of the roots q [256]: exactly 2^14 together, at least 1 where q > 0, and 0 elsewhere.

    Beyond its 1 each symbol gets the share (q-1)² of what is left, rounded so that the sum comes out:
    Σ_{j≤i} f_j = ⌊Σ_{j≤i} (q_j - 1)² · (2^14 - A) / Σ (q - 1)²⌋ + symbols with q > 0 up to i, A of them in all.

    Raises:
        FormatError: no q is above 1.
    """
    occurs = np.cumsum(roots > 0)
    share = np.cumsum(np.maximum(roots - 1, 0) ** 2)
    if share[-1] == 0:
        raise FormatError(f"a frequency table gives no symbol a share, expected at least one; {DAMAGED}")
    frequency: NDArray[np.int64] = np.diff(share * (TOTAL - occurs[-1]) // share[-1] + occurs, prepend=0)
    return frequency


def symbol_bits(counts: NDArray[np.int64], frequency: NDArray[np.int64]) -> float:
    """Cross-entropy: bits that symbols with histogram `counts` [256] take under `frequency` [256]."""
    occurs = counts > 0
    return float((counts[occurs] * (PRECISION - np.log2(frequency[occurs]))).sum())


def write_table(roots: NDArray[np.int64]) -> bytes:
    """First and last symbol that occurs, then the differences of q between them, gamma-coded (Elias 1975).

    A difference d becomes n = 1 + (2d or -2d - 1), and n takes k = ⌊log2 n⌋ zero bits, a one, and the k low bits
    of n, low ones first. Bits fill each byte from its lowest; the last byte is filled up with zeros.
    """
    first, last, numbers = _differences(roots)
    bits: list[int] = []
    for number in numbers.tolist():
        width = number.bit_length() - 1
        bits += [0] * width + [1] + [number >> place & 1 for place in range(width)]
    return bytes([first, last]) + np.packbits(np.array(bits, dtype=np.uint8), bitorder="little").tobytes()


def read_table(cursor: Cursor) -> NDArray[np.int64]:
    """The roots q [256] that `write_table` wrote.

    Raises:
        FormatError: not such a table.
    """
    first, last = cursor.take(2)
    bits = cursor.bits()
    roots = np.zeros(SYMBOLS, dtype=np.int64)
    root = used = 0
    for symbol in range(first, last + 1):
        width = 0
        while not next(bits):
            width += 1
            if width > 16:
                raise FormatError(f"a frequency table holds a difference above 17 bits; {DAMAGED}")
        number = (1 << width) + sum(next(bits) << place for place in range(width)) - 1
        root += -(number + 1 >> 1) if number & 1 else number >> 1
        if not 0 <= root <= LARGEST_ROOT:
            raise FormatError(f"a frequency table holds {root}, expected 0 to {LARGEST_ROOT}; {DAMAGED}")
        roots[symbol] = root
        used += 2 * width + 1
    fill = cursor.data[cursor.at - 1] >> used % 8 if used % 8 else 0
    if not (roots[first] and roots[last]) or fill:
        raise FormatError(f"{cursor.what} spells a table as no encoder does; {DAMAGED}")
    return roots


def _differences(roots: NDArray[np.int64]) -> tuple[int, int, NDArray[np.int64]]:
    occurs = np.flatnonzero(roots)
    first, last = int(occurs[0]), int(occurs[-1])
    step = np.diff(roots[first : last + 1], prepend=0)
    return first, last, np.where(step >= 0, 2 * step, -2 * step - 1) + 1


def _table_bits(roots: NDArray[np.int64]) -> int:
    _, _, numbers = _differences(roots)
    return int((2 * np.frexp(numbers)[1] - 1).sum())
