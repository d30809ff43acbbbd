"""Codes of one role as one stream of bytes, laid out in whichever way is coded best.

The record transposes its matrices, sorts the rows of some by similarity and stores the order. Both are tried on the
stream's beginning, and so is folding signs away (0, -1, 1, -2 becomes 0, 1, 2, 3): what is smallest is taken.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numba
import numpy as np
from numpy.typing import NDArray

from quantgolf.errors import FormatError

from .coders import pack, present

Codes = NDArray[np.int8]
MOST_SORTED = 8192  # rows: the sort is quadratic, and the record's longest matrix has as many
SAMPLE = 1 << 18  # bytes of a stream on which layouts are tried


@dataclass(frozen=True)
class Layout:
    """How the codes [N, K] of a matrix become bytes.

    Attributes:
        transposed: column after column.
        folded: signs in the lowest bit.
        sorted: each row follows the one before that is nearest to it; the order is stored.
    """

    transposed: bool = True
    folded: bool = False
    sorted: bool = False

    def number(self) -> int:
        """As a file has it."""
        return self.transposed + 2 * self.folded + 4 * self.sorted

    @staticmethod
    def of(number: int) -> "Layout":
        """That of a number."""
        if number > 7:
            raise FormatError(f"the recipe's file names layout {number}, expected at most 7")
        return Layout(bool(number & 1), bool(number & 2), bool(number & 4))


def stream_of(name: str) -> str:
    """The stream a matrix belongs to: its name without the numbers of layers, so one for each role in a layer."""
    return re.sub(r"\d+", "*", name)


def lay(matrices: Sequence[Codes], layout: Layout) -> bytes:
    """The bytes of all matrices, the orders of their rows before their codes."""
    orders, parts = [], []
    for codes in matrices:
        if layout.sorted and sortable(codes):
            order = similar_rows(codes)
            orders.append(packed_order(order))
            codes = codes[order]
        part = np.ascontiguousarray(codes.T if layout.transposed else codes)
        parts.append((fold(part) if layout.folded else part).tobytes())
    return b"".join((*orders, *parts))


def unlay(data: bytes, shapes: Sequence[tuple[int, int]], layout: Layout) -> list[Codes]:
    """The codes of `lay`.

    Raises:
        FormatError: not as many bytes as the shapes have.
    """
    sizes = [order_bytes(rows) if layout.sorted and rows <= MOST_SORTED else 0 for rows, _ in shapes]
    at, needed = sum(sizes), sum(sizes) + sum(rows * columns for rows, columns in shapes)
    if len(data) != needed:
        raise FormatError(f"a stream of codes has {len(data)} bytes, expected {needed}: the file is damaged")
    found, order_at = [], 0
    for (rows, columns), size in zip(shapes, sizes, strict=True):
        raw = np.frombuffer(data, np.uint8, rows * columns, at)
        flat = unfold(raw) if layout.folded else raw.view(np.int8)
        codes = flat.reshape(columns, rows).T if layout.transposed else flat.reshape(rows, columns)
        if size:
            order = unpacked_order(data[order_at : order_at + size], rows)
            restored = np.empty((rows, columns), np.int8)
            restored[order] = codes
            codes = restored
        found.append(np.array(codes, order="C"))
        at, order_at = at + rows * columns, order_at + size
    return found


@dataclass(frozen=True)
class Choice:
    """How a stream is laid out and coded, and the bytes that took on a sample for each byte of its entropy."""

    layout: Layout
    coder: str
    ratio: float


def choose(matrices: Sequence[Codes], coders: Sequence[str]) -> Choice:
    """What codes the beginning of the stream best: first the direction and the signs, then sorting, then the coder.

    Layouts are tried on the last of `coders` that is present, which is ZPAQ where that is.
    """
    sample: list[Codes] = []
    left = SAMPLE
    for codes in matrices:
        rows = min(len(codes), max(1, left // codes.shape[1]))
        sample.append(codes[:rows])
        left -= rows * codes.shape[1]
        if left <= 0:
            break
    have = present(coders)
    trials = [Layout(*flags) for flags in product((True, False), (False, True))]
    sizes = {layout: len(pack(lay(sample, layout), have[-1:])) for layout in trials}
    best = min(sizes, key=lambda layout: sizes[layout])
    in_order = replace(best, sorted=True)
    sizes[in_order] = len(pack(lay(sample, in_order), have[-1:]))
    best = min(sizes, key=lambda layout: sizes[layout])
    by_coder = {coder: len(pack(lay(sample, best), (coder,))) for coder in have[:-1]} | {have[-1]: sizes[best]}
    coder = min(by_coder, key=lambda name: by_coder[name])
    counts = sum(np.bincount(codes.view(np.uint8).reshape(-1), minlength=256) for codes in sample)
    return Choice(best, coder, by_coder[coder] / max(1.0, entropy_bytes(np.asarray(counts))))


def entropy_bytes(counts: NDArray[np.float64] | NDArray[np.int64]) -> float:
    """Bytes that as many symbols as `counts` says take by their entropy."""
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * np.log2(seen.sum() / seen)).sum() / 8) if len(seen) else 0.0


def fold(codes: Codes) -> NDArray[np.uint8]:
    """2c for c ≥ 0 and -2c - 1 for c < 0."""
    wide = codes.astype(np.int16)
    folded: NDArray[np.uint8] = np.where(wide < 0, -2 * wide - 1, 2 * wide).astype(np.uint8)
    return folded


def unfold(folded: NDArray[np.uint8]) -> Codes:
    """The codes of `fold`."""
    half = (folded >> 1).astype(np.int16)
    codes: Codes = np.where(folded & 1, -half - 1, half).astype(np.int8)
    return codes


def sortable(codes: Codes) -> bool:
    """Whether a matrix is short enough to be sorted."""
    return len(codes) <= MOST_SORTED


@numba.njit(cache=True)
def similar_rows(codes: Codes) -> NDArray[np.int64]:
    """Rows in greedy order: the first one, then always the nearest to the last in L1 of those left."""
    rows, columns = codes.shape
    order = np.zeros(rows, dtype=np.int64)
    left = np.ones(rows, dtype=np.bool_)
    if rows:
        left[0] = False
    for position in range(1, rows):
        last, best, nearest = order[position - 1], np.int64(1 << 62), -1
        for row in range(rows):
            if not left[row]:
                continue
            distance = np.int64(0)
            for column in range(columns):
                distance += abs(np.int64(codes[row, column]) - np.int64(codes[last, column]))
            if distance < best:
                best, nearest = distance, row
        order[position] = nearest
        left[nearest] = False
    return order


def order_bytes(rows: int) -> int:
    """What an order of so many rows takes: as few whole bits for each as numbers below `rows` need."""
    return (rows * max(1, rows - 1).bit_length() + 7) // 8


def packed_order(order: NDArray[np.int64]) -> bytes:
    """The order in as few whole bits a row as it needs."""
    width = max(1, len(order) - 1).bit_length()
    return np.packbits((order[:, None] >> np.arange(width)) & 1, axis=None).tobytes()


def unpacked_order(data: bytes, rows: int) -> NDArray[np.int64]:
    """The order of `packed_order`.

    Raises:
        FormatError: no permutation.
    """
    width = max(1, rows - 1).bit_length()
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[: rows * width].reshape(rows, width).astype(np.int64)
    order: NDArray[np.int64] = (bits << np.arange(width)).sum(1)
    if not np.array_equal(np.sort(order), np.arange(rows)):
        raise FormatError(f"an order of {rows} rows names one twice or one that is not there: the file is damaged")
    return order
