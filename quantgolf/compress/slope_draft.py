"""A matrix solved at one slope: levels and the powers of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    def stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors by name and facts that JSON holds; steps have nothing fine before tuning."""
        tensors = {
            "levels": torch.from_numpy(self.levels), "row": self.exponents.row, "column": self.exponents.column
        }  # fmt: skip
        facts = {
            "spread": self.exponents.spread, "damp": self.damp, "retries": self.retries, "dead": self.dead,
            "diagonal": self.diagonal,
        }  # fmt: skip
        return tensors, facts

    @staticmethod
    def from_stored(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> "Draft":
        """What `stored` gave."""
        exponents = Exponents(tensors["row"], tensors["column"], facts["spread"])
        rest = facts["damp"], facts["retries"], facts["dead"], facts["diagonal"]
        return Draft(tensors["levels"].numpy(), exponents, *rest)


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
