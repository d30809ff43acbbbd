"""Levels of one slope within the numbers that the weight's own dtype knows.

Levels are not clipped, so that a weight next to the largest number of its dtype may be rounded to one that is infinite
there: of fp16 beyond 65,504. Labels of levels repeat every fourth one (`trellis.label_of`), whence a level that is four
nearer to zero takes the same path.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantgolf.solve.trellis import Trellis
from quantgolf.types import Exponents

Levels = NDArray[np.int32] | NDArray[np.int16]
APART = 4  # levels with the same parity and label


def finite_levels(levels: Levels, exponents: Exponents, dtype: torch.dtype, trellis: Trellis, diagonal: bool) -> Levels:
    """Levels [N, K] of which none stands for a number that is infinite in `dtype`; the same array where none did.

    Those that did move towards zero, by one with one state and else by fours. Where a step is so large that this does
    not help, the segment of the trellis is all zeros.

    Args:
        levels: int32, or int16 where that holds them.
        exponents: of their steps.
        trellis: whose paths levels are, down columns or along the diagonals of `encode.diagonals`.
    """
    steps = exponents.steps()
    assert steps.column is not None
    row, column = steps.row.double().numpy(), steps.column.double().numpy()
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    magnitude = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
    if magnitude * row.max(initial=0.0) * column.max(initial=0.0) <= largest:
        return levels
    step = np.maximum(row[:, None] * column, np.finfo(np.float64).tiny)
    # Two last places of fp32 less: levels and the products of steps may be rounded up by one each.
    most = np.floor(np.minimum(largest * (1 - 2.0**-22) / step, 2.0**31 - 1)).astype(np.int64)
    sizes = np.abs(levels.astype(np.int64))
    beyond = np.maximum(sizes - most, 0)
    if not beyond.any():
        return levels
    apart = 1 if trellis.states == 1 else APART
    moved = sizes - apart * -(-beyond // apart)
    # What would cross zero ends on the smallest level of its kind: 0, 1 or 2; 3 and 0 are of one.
    least = np.where(sizes % APART == 3, 0, sizes % APART) if apart > 1 else 0
    moved = np.where(beyond > 0, np.maximum(moved, least), sizes)
    found: NDArray[Any] = (np.sign(levels) * moved).astype(levels.dtype)
    hopeless = moved > most
    if hopeless.any():
        _silence(found, hopeless, trellis.restart, diagonal)
    return found


def _silence(levels: Levels, hopeless: NDArray[np.bool_], restart: int, diagonal: bool) -> None:
    """Zeros, which are a path, in every segment of the trellis that has such a level."""
    rows, columns = levels.shape
    i, j = np.nonzero(hopeless)
    paths = (i + j) % columns if diagonal else j
    for segment, path in np.unique(np.stack([i // restart, paths], 1), axis=0).tolist():
        inside = np.arange(segment * restart, min(rows, (segment + 1) * restart))
        levels[inside, (path - inside) % columns if diagonal else path] = 0
