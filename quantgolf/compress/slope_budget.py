"""One slope under a byte budget: the one number c that all steps share is found so that the file just fits.

A sample of all rows, solved, says how large a file would be, so that the first solve of all of them lies within some
thousandths of the budget; a second one lies on its other side. In the end the two are mixed (`slope_mix`): every size
that decides is that of a real file.
"""

import math

from quantgolf.compress.slope_draft import Drafts
from quantgolf.compress.slope_mix import Side, Size, mixed
from quantgolf.compress.slope_solver import Count, SlopeSolver
from quantgolf.errors import BudgetError

ROUNDS = 8
SAMPLES = 2
NEXT_TO_NOTHING = 0.02  # bits a weight: the least that is tried
FARTHEST = 600.0  # octaves of the slope
CLOSE = 2e-3  # of the budget: solutions this near to it, one on each side, are worth mixing


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
        under: Side | None = None
        over: Side | None = None
        power = self._known[0][0] if self._known else _guess(self._solver, size_of, max_bytes, self._least)
        known, self._known, missed = self._known, [], 0
        for _ in range(ROUNDS):
            power, drafts = known.pop(0) if known else (power, self._solver.draft(2.0**power, self._progress))
            size = size_of(drafts)
            if size <= max_bytes and (under is None or size > under.size):
                under = Side(drafts, size, power)
            elif size > max_bytes and (over is None or size < over.size):
                over = Side(drafts, size, power)
            self._known.append((power, drafts))
            if under is not None and over is not None and over.size - under.size <= 2 * CLOSE * max_bytes:
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
        self._known = [each for each in self._known if any(side and each[1] is side.drafts for side in (under, over))]
        if under is None:
            assert over is not None
            nearest = over.size
            raise BudgetError(
                f"budget of {max_bytes:,} bytes cannot be met: with next to no bits for the weights file and code take "
                f"{nearest:,}; give --max-bytes {nearest} or more, or a smaller model",
                nearest,
            )
        return under.drafts if over is None else mixed(self._solver, under, over, size_of, max_bytes)


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
    # Statistics of 1e-30 or 1e30 have their slopes beyond; trained models do not.
    while solver.predicted_bits(2.0**low) < bits and low > -FARTHEST:
        low -= 60.0
    while solver.predicted_bits(2.0**high) > bits and high < FARTHEST:
        high += 60.0
    for _ in range(50):
        middle = (low + high) / 2
        if solver.predicted_bits(2.0**middle) > bits:
            low = middle
        else:
            high = middle
    return high
