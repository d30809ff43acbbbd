"""One slope under a byte budget: the one number c that all steps share is found so that the file just fits.

A sample of all rows, solved, says how large a file would be, so that the first solve of all of them lies within some
thousandths of the budget; a second one lies on its other side. In the end the two are mixed, in runs of rows that the
trellis makes independent, and a run that just fits fills what is left: every size that decides is that of a real file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from quantgolf.compress.slope_size import bits_by_segment
from quantgolf.compress.slope_solver import Count, Draft, Drafts, SlopeSolver
from quantgolf.errors import BudgetError

ROUNDS = 8
SAMPLES = 2
NEXT_TO_NOTHING = 0.02  # bits a weight: the least that is tried
ENOUGH = 2e-5  # of the budget: so little left is not worth another encode
CLOSE = 2e-3  # of the budget: solutions this near to it, one on each side, are worth mixing
MIXES, FILLS = 12, 6  # files that are encoded at most to mix two solutions, and to fill what is left then

Size = Callable[[Mapping[str, Draft]], int]
Sides = tuple[Draft, Draft]


class SlopeFit:
    """Finds the slope at which a file just fits, again and again for files of which something else has changed.

    Args:
        solver: of all matrices.
        progress: called with (solved, to solve) of the round under way.
    """

    def __init__(self, solver: SlopeSolver, progress: Count | None = None) -> None:
        self._solver, self._progress = solver, progress
        self._least = NEXT_TO_NOTHING * sum(math.prod(solver.matrices.size(name)) for name in solver.names)
        self._known: list[tuple[float, Drafts]] = []  # log2 of slopes, and matrices solved there

    def within(self, max_bytes: int, size_of: Size) -> Drafts:
        """Matrices whose complete file takes at most `max_bytes` and little less.

        Args:
            max_bytes: for the file and whatever else `size_of` counts.
            size_of: bytes of the complete file of drafts.

        Raises:
            BudgetError: no slope fits.
        """
        under: tuple[Drafts, int] | None = None
        over: tuple[Drafts, int] | None = None
        power = self._known[0][0] if self._known else _guess(self._solver, size_of, max_bytes, self._least)
        known, self._known, missed = self._known, [], 0
        for _ in range(ROUNDS):
            power, drafts = known.pop(0) if known else (power, self._solver.draft(2.0**power, self._progress))
            size = size_of(drafts)
            if size <= max_bytes and (under is None or size > under[1]):
                under = (drafts, size)
            elif size > max_bytes and (over is None or size < over[1]):
                over = (drafts, size)
            self._known.append((power, drafts))
            if under is not None and over is not None and over[1] - under[1] <= 2 * CLOSE * max_bytes:
                break
            # Sizes of small models jump: a side that is missed again is aimed at from twice as far.
            missed = 0 if under is not None and over is not None else missed + 1
            farther = CLOSE / 2 * 2 ** max(0, missed - 1)
            aim = max_bytes * (1 + (farther if over is None else -farther))
            # The codes' bits change as predicted from here, whatever the file's size is in itself.
            bits = self._solver.predicted_bits(2.0**power) - 8 * (size - aim)
            before, power = power, power_for(self._solver, max(self._least, bits))
            if power == before and not known:  # no fewer bits are asked for
                break
        self._known = [each for each in self._known if any(side and each[1] is side[0] for side in (under, over))]
        if under is None:
            assert over is not None
            nearest = over[1]
            raise BudgetError(
                f"budget of {max_bytes:,} bytes cannot be met: with next to no bits for the weights file and code take "
                f"{nearest:,}; give --max-bytes {nearest} or more, or a smaller model",
                nearest,
            )
        return under[0] if over is None else _mixed(self._solver, under, over, size_of, max_bytes, 2.0**power)


def _guess(solver: SlopeSolver, size_of: Size, max_bytes: int, least: float) -> float:
    """log2 of the slope at which a file should be just under the budget."""
    aim = 8 * max_bytes * (1 - CLOSE / 2)
    power = power_for(solver, max(aim, least))
    aim -= 8 * size_of(solver.empty(2.0**power))
    power = power_for(solver, max(aim, least))
    for _ in range(SAMPLES):
        bits, _ = solver.sampled(2.0**power)
        power = power_for(solver, max(least, solver.predicted_bits(2.0**power) - (bits - aim)))
    return power


def power_for(solver: SlopeSolver, bits: float) -> float:
    """log2 of the slope at which codes should take so many bits."""
    low, high = -60.0, 60.0
    for _ in range(50):
        middle = (low + high) / 2
        if solver.predicted_bits(2.0**middle) > bits:
            low = middle
        else:
            high = middle
    return high


def _mixed(
    solver: SlopeSolver,
    under: tuple[Drafts, int],
    over: tuple[Drafts, int],
    size_of: Size,
    max_bytes: int,
    slope: float,
) -> Drafts:
    """As much of the larger solution as fits: runs of rows of the largest matrices first, then one that still fits."""
    names = sorted(solver.names, key=lambda name: -math.prod(solver.matrices.size(name)))
    sides = {name: (under[0][name], over[0][name]) for name in names}
    gains = _gains(solver, sides, slope)
    edges = np.cumsum([0] + [len(gains[name]) for name in names])
    bits = np.concatenate([gains[name] for name in names])
    bits *= 8 * (over[1] - under[1]) / max(float(bits.sum()), 1.0)  # so that they add up to what files have shown

    def file(taken: NDArray[np.bool_]) -> tuple[Drafts, int]:
        parts = zip(names, np.split(taken, edges[1:-1]), strict=True)
        found = {name: _joined(*sides[name], part, solver.trellis.restart) for name, part in parts}
        return found, size_of(found)

    best, fits, too_many = under, 0, len(bits)
    for tried in range(MIXES):
        room = max_bytes - best[1]
        if too_many - fits <= 1 or room <= ENOUGH * max_bytes:
            break
        count = fits + int(np.searchsorted(np.cumsum(bits[fits:]), 8 * room, side="right"))
        count = min(max(count, fits + 1), too_many - 1) if tried % 3 < 2 else (fits + too_many) // 2
        mixed = file(np.arange(len(bits)) < count)
        if mixed[1] <= max_bytes:
            best, fits = mixed, count
        else:
            too_many = count
    taken, open_ = np.arange(len(bits)) < fits, np.arange(len(bits)) >= fits
    for _ in range(FILLS):
        room = max_bytes - best[1]
        fitting = np.where(open_ & (bits <= 8 * room), bits, 0.0)
        at = int(np.argmax(fitting))
        if room <= ENOUGH * max_bytes or fitting[at] <= 8:
            break
        open_[at], taken[at] = False, True
        mixed = file(taken)
        if mixed[1] <= max_bytes:
            best = mixed
        else:
            taken[at] = False
    return best[0]


def _gains(solver: SlopeSolver, sides: Mapping[str, Sides], slope: float) -> dict[str, NDArray[np.float64]]:
    """Bits that each run of rows takes more in the second of two solutions of each matrix."""
    _, contexts = solver.sampled(slope)

    def work(name: str) -> NDArray[np.float64]:
        less, more = (
            bits_by_segment(
                draft.levels.T, draft.exponents.row.numpy(), draft.exponents.column.numpy(), draft.exponents.spread,
                solver.trellis, contexts,
            )
            for draft in sides[name]
        )  # fmt: skip
        return more - less

    return solver.each(work)


def _joined(under: Draft, over: Draft, taken: NDArray[np.bool_], restart: int) -> Draft:
    """A matrix whose runs of `restart` rows are those of `over` where `taken`; columns have the same steps in both."""
    if taken.all() or not taken.any():
        return over if taken.all() else under
    rows = taken.repeat(restart)[: len(under.levels)]
    levels = np.where(rows, over.levels.T, under.levels.T).T
    row = torch.where(torch.from_numpy(rows), over.exponents.row, under.exponents.row)
    return replace(under, levels=levels, exponents=replace(under.exponents, row=row))
