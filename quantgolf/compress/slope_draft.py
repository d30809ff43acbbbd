"""A matrix solved at one slope: levels and the powers of its steps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantgolf.types import Exponents, SolveReport

Levels = NDArray[np.int32] | NDArray[np.int16]


@dataclass(frozen=True)
class Draft:
    """A matrix solved on the grid of one slope.

    Attributes:
        levels: int16, or int32 where they need it, [N, K].
        exponents: of its steps.
        damp, retries, dead: of its factor, for the report.
        diagonal: whether levels are paths of the trellis along diagonals instead of down columns.
    """

    levels: Levels
    exponents: Exponents
    damp: float
    retries: int
    dead: int
    diagonal: bool


@dataclass(frozen=True)
class OnSlope:
    """A matrix solved on the grid of one slope, and what that costs."""

    levels: Levels
    exponents: Exponents
    report: SolveReport
    diagonal: bool


Drafts = dict[str, Draft]
Solution = dict[str, OnSlope]


def narrowed(levels: NDArray[np.int32]) -> Levels:
    """Levels in int16 where that holds them."""
    largest = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
    return levels.astype(np.int16) if largest < 2**15 else levels
