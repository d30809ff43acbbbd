"""Which contexts share a table: predicted spreads are cut into classes, and neighbours merge while that saves bits.

A table costs 5 to 60 bytes and pays for itself over some thousand weights, so a small model gets a few wide classes
and a large one up to 64 narrow ones. Every class has two tables, one for even and one for odd states, because those
quantize differently; a scalar quantizer has one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.lanes import MOST_CLASSES
from quantgolf.encode.table import (
    SYMBOLS,
    TOTAL,
    choose_roots,
    frequencies,
    read_table,
    table_costs,
    write_table,
)
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError

MOST_GROUPS = 128
NO_TABLE = b"\xff"  # in place of a table: its first symbol is at most 254


@dataclass(frozen=True)
class Contexts:
    """Classes of predicted spread and the tables of their contexts, 2 · class + odd.

    Attributes:
        lowest: the least predicted spread of any weight.
        thresholds: where classes begin after the first, ascending, above `lowest`, int64 [classes - 1].
        roots: of each context, int64 [256], None where no weight has it; [2 · classes].
    """

    lowest: int
    thresholds: NDArray[np.int64]
    roots: tuple[NDArray[np.int64] | None, ...]

    def class_at(self, spreads: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The class of each of these predicted spreads."""
        return np.searchsorted(self.thresholds, spreads, side="right").astype(np.uint8)

    def shares(self) -> NDArray[np.uint32]:
        """frequency + 2^16 · start by context and symbol, [contexts · 256]."""
        shares = np.zeros((len(self.roots), SYMBOLS), dtype=np.uint32)
        for context, roots in enumerate(self.roots):
            if roots is not None:
                frequency = frequencies(roots)
                shares[context] = frequency + ((np.cumsum(frequency) - frequency) << 16)
        return shares.ravel()

    def slots(self) -> NDArray[np.uint8]:
        """The symbol of each slot, [contexts, 2^14]; 255 where a context has no table."""
        slots = np.full((len(self.roots), TOTAL), SYMBOLS - 1, dtype=np.uint8)
        for context, roots in enumerate(self.roots):
            if roots is not None:
                slots[context] = np.repeat(np.arange(SYMBOLS, dtype=np.uint8), frequencies(roots))
        return slots

    def write(self, odd: bool) -> bytes:
        """The classes and the tables; those of odd states only where `odd`."""
        steps = np.diff(self.thresholds, prepend=self.lowest) - 1
        tables = self.roots if odd else self.roots[::2]
        return b"".join(
            [varint(len(steps)), *map(varint, steps.tolist())]
            + [NO_TABLE if roots is None else write_table(roots) for roots in tables]
        )


def group_spreads(spreads: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where groups of predicted spreads begin that differ, [at most 128], for `spreads` sorted, each once.

    Each is a group of its own, unless there are too many: then powers of two of neighbours are one.
    """
    width = 1
    while len(np.unique(spreads // width)) > MOST_GROUPS:
        width *= 2
    return spreads[np.unique(spreads // width, return_index=True)[1]]


def choose_contexts(groups: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[Contexts, NDArray[np.int64]]:
    """Merges neighbouring groups, the pair that saves most bits first, until none saves any.

    `groups` are where they begin, [G]; `counts` are the histograms of their contexts, [G, 2, 256]. Returns those of
    the contexts as well, [2 · classes, 256].
    """
    costs, joint = _costs(counts), _costs(counts[:-1] + counts[1:])
    while len(groups) > 1:
        saving = costs[:-1] + costs[1:] - joint + 8
        pair = int(np.argmax(saving))
        if saving[pair] <= 0 and len(groups) <= MOST_CLASSES:
            break
        costs[pair] = joint[pair]
        merged = counts[pair] + counts[pair + 1]
        groups, costs = np.delete(groups, pair + 1), np.delete(costs, pair + 1)
        counts = np.delete(counts, pair + 1, axis=0)
        counts[pair] = merged
        joint = np.delete(joint, pair)
        near = np.arange(max(0, pair - 1), min(pair + 1, len(joint)))
        joint[near] = _costs(counts[near] + counts[near + 1])
    histograms = counts.reshape(-1, SYMBOLS)
    roots = tuple(choose_roots(each) if each.any() else None for each in histograms)
    return Contexts(int(groups[0]), groups[1:], roots), histograms


def read_contexts(cursor: Cursor, spreads: NDArray[np.int64], odd: bool) -> Contexts:
    """What `Contexts.write` wrote, for weights with these predicted spreads, sorted, each once.

    Raises:
        FormatError: classes or tables that no encoder writes for them.
    """
    more, at = cursor.varint(), int(spreads[0])
    if more >= MOST_CLASSES:
        raise FormatError(f"{cursor.what} has {more + 1} classes, expected at most {MOST_CLASSES}; {DAMAGED}")
    known = set(spreads.tolist())
    thresholds = []
    for _ in range(more):
        at += 1 + cursor.varint()
        if at not in known:
            raise FormatError(f"{cursor.what} has a class begin at spread {at}, where no weight is; {DAMAGED}")
        thresholds.append(at)
    roots = [_read_table(cursor) if odd or i % 2 == 0 else None for i in range(2 * (more + 1))]
    return Contexts(int(spreads[0]), np.array(thresholds, dtype=np.int64), tuple(roots))


def _read_table(cursor: Cursor) -> NDArray[np.int64] | None:
    if cursor.data[cursor.at : cursor.at + 1] == NO_TABLE:
        cursor.take(1)
        return None
    roots = read_table(cursor)
    frequencies(roots)
    if roots[SYMBOLS - 1]:
        raise FormatError(f"{cursor.what} has a table with symbol {SYMBOLS - 1}, which no level has; {DAMAGED}")
    return roots


def _costs(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of groups [G] with histograms [G, 2, 256], tables included."""
    bits: NDArray[np.float64] = table_costs(counts.reshape(-1, SYMBOLS)).reshape(-1, 2).sum(axis=1)
    return bits
