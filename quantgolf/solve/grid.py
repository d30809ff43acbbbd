"""What codes of a fixed width may stand for: scales by rows or by groups of columns, with or without a zero.

A grid is a choice, made before any weight is seen; scales and zeros that fit a weight are found by `range_steps` and by
`quantgolf.solve.search`. What rounding then has to know is a `Rounding`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.steps import LARGEST_SIXTEENTHS, Groups, Steps

Scales = Literal["fp16", "log"]
LARGEST = torch.finfo(torch.float32).max  # of what codes stand for, where a weight's own dtype does not say less
SMALLEST = 2.0**-24  # fp16's smallest number; that steps near it are coarse costs little, codes follow the rounded step
# The fp32 values of all logarithmic scales, from the smallest exponent on.
POWERS = Groups(torch.arange(-LARGEST_SIXTEENTHS, LARGEST_SIXTEENTHS + 1, dtype=torch.int16)[None], None, 1).scales()[0]


@dataclass(frozen=True)
class Grid:
    """The kind of grid that codes of a fixed width lie on.

    Attributes:
        group_size: neighbouring columns that share a scale, from the row's first on; the last group of a row may have
            fewer. None, or more than there are: one scale a row.
        symmetric: levels ±(2^(bits-1) - 1) times the scale. If not, all 2^bits codes, and a zero for each group: the
            code that stands for 0, so that a group of one sign does not waste half of its codes.
        scales: "fp16", or "log": 2^(e / 16) with whole e, which takes less than half as much of a file.
    """

    group_size: int | None = None
    symmetric: bool = True
    scales: Scales = "fp16"

    def __post_init__(self) -> None:
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 1):
            raise QuantGolfError(
                f"group_size is {self.group_size!r}, expected a whole number of columns from 1 on, for example 128, or "
                "None for one scale a row"
            )
        if self.scales not in ("fp16", "log"):
            raise QuantGolfError(f"scales is {self.scales!r}, expected 'fp16' or 'log'")

    def size(self, columns: int) -> int:
        """Columns of a group of a matrix with so many."""
        return columns if self.group_size is None else min(self.group_size, columns)

    def code_range(self, bits: int) -> tuple[int, int]:
        """The lowest and the highest code of a width."""
        return -top_level(bits) - (not self.symmetric), top_level(bits)


ROWS = Grid()  # one fp16 scale a row, symmetric


@dataclass(frozen=True)
class Rounding:
    """What rounding a weight [N, K] to codes has to know: code c of (i, j) is (c - zero[i, g]) · step[i, g], with
    g = ⌊j / size⌋.

    Attributes:
        step: fp32 [N, G], more than 0.
        zero: int8 [N, G], from `lowest` to `highest`.
        size: columns of a group.
        lowest, highest: of the codes.
    """

    step: Tensor
    zero: Tensor
    size: int
    lowest: int
    highest: int

    @staticmethod
    def of(steps: Steps | Groups, bits: int, columns: int) -> "Rounding":
        """That of a matrix [N, K] of codes of a width, K being `columns`."""
        if isinstance(steps, Steps):
            return Rounding.rows(steps.row, top_level(bits), columns)
        step = values(steps.scale)
        zero = torch.zeros_like(step, dtype=torch.int8) if steps.zero is None else steps.zero
        lowest, highest = Grid(symmetric=steps.zero is None).code_range(bits)
        return Rounding(step, zero, steps.size, lowest, highest)

    @staticmethod
    def rows(step: Tensor, top: int, columns: int) -> "Rounding":
        """One step [N] a row of `columns` columns and the levels from -top to top."""
        return Rounding(step.float()[:, None], torch.zeros_like(step[:, None], dtype=torch.int8), columns, -top, top)


def top_level(bits: int) -> int:
    """Largest level of a width: 7 for 4 bits."""
    return (1 << (bits - 1)) - 1


def nearest(weight: Tensor, rounding: Rounding) -> Tensor:
    """Codes int8 [N, K]: the nearest one of each weight, clipped to the last."""
    columns = weight.shape[1]
    step, zero = (
        side.repeat_interleave(rounding.size, 1)[:, :columns] if side.shape[1] > 1 else side
        for side in (rounding.step, rounding.zero)
    )
    levels = (weight / step).round_()
    return levels.add_(zero).clamp_(rounding.lowest, rounding.highest).to(torch.int8)


def range_steps(weight: Tensor, bits: int, grid: Grid, largest: float = LARGEST) -> Steps | Groups:
    """Scales, and zeros where the grid has some, with which the last codes hold the range of each group's weights.

    A scale is rounded to what is stored and the zero fits the rounded one, so that an end may lie up to half a scale
    beyond the last code.

    Args:
        largest: that any code may stand for (`lowered`).

    Raises:
        QuantGolfError: weights too large for what a scale can be.
    """
    size = grid.size(weight.shape[1])
    low, high = ends(weight, size)
    if grid.symmetric:
        scale = stored(torch.maximum(-low, high) / top_level(bits), grid.scales, top_level(bits))
        return packed(lowered(scale, None, *grid.code_range(bits), largest), None, size, grid)
    spread = high - low
    scale = stored(spread / ((1 << bits) - 1), grid.scales, (1 << bits) - 1)
    zero = zeros_of(low, spread, values(scale), *grid.code_range(bits))
    return packed(lowered(scale, zero, *grid.code_range(bits), largest), zero, size, grid)


def ends(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The lowest and the highest weight of each group [N, G], and 0 where all lie to one side of it: 0 is on every
    grid."""
    grouped = in_groups(weight, size)
    return grouped.amin(2).clamp_(max=0), grouped.amax(2).clamp_(min=0)


def in_groups(weight: Tensor, size: int) -> Tensor:
    """[N, K] as [N, G, size], the last group of a row filled up with zeros."""
    rows, columns = weight.shape
    groups = -(-columns // size)
    if groups * size != columns:
        weight = torch.nn.functional.pad(weight, (0, groups * size - columns))
    return weight.reshape(rows, groups, size)


def zeros_of(low: Tensor, spread: Tensor, step: Tensor, lowest: int, highest: int) -> Tensor:
    """int8 zeros with which the lowest code lies at the lower end of each group; 0 where nothing but zeros is."""
    zero = (lowest - low / step).round_().clamp_(lowest, highest)
    return torch.where(spread > 0, zero, 0).to(torch.int8)


def stored(scale: Tensor, kind: Scales, levels: int) -> Tensor:
    """Scales [...] as they are stored: fp16, or int16 exponents in sixteenths of an octave.

    Logarithmic ones are the nearest, or the next larger where `levels` of them would end more than half of one short of
    `levels` of what was asked for. Scales of nothing but zeros are fp16's smallest, or the middle one of all others.

    Raises:
        QuantGolfError: a scale too large for either.
    """
    if kind == "fp16":
        rounded = scale.clamp(min=SMALLEST).to(torch.float16)
        if rounded.isinf().any():
            raise QuantGolfError(
                f"a row or group needs the scale {float(scale.max()):.3g}, expected at most "
                f"{torch.finfo(torch.float16).max:g} (fp16): scale the weight down, or take logarithmic scales"
            )
        return rounded
    exact = 16 * scale.double().clamp(min=2.0**-140).log2()
    least = (16 * (scale.double() * levels / (levels + 0.5)).clamp(min=2.0**-140).log2()).ceil()
    exponents = torch.maximum(exact.round(), least)
    if exponents.numel() and exponents.max() > LARGEST_SIXTEENTHS:
        raise QuantGolfError(
            f"a row or group needs the scale {float(scale.max()):.3g}, expected at most {float(POWERS[-1]):.3g}: scale "
            "the weight down"
        )
    exponents, some = exponents.clamp_(min=-LARGEST_SIXTEENTHS), scale > 0
    if not some.all():
        exponents[~some] = exponents[some].median() if some.any() else 0.0
    return exponents.to(torch.int16)


def lowered(scale: Tensor, zero: Tensor | None, lowest: int, highest: int, largest: float) -> Tensor:
    """Stored scales [N, G] under which no code stands for more than `largest`, and 0 where it did: those that were too
    large become the largest that are not.

    A weight near the largest number of a checkpoint's dtype would come back infinite otherwise: 127 scales of 516 hold
    65,504, and are more than fp16 knows.

    Args:
        zero: int8 [N, G]; None for the middle code.
        lowest, highest: of the codes.
    """
    reach = torch.full_like(scale, highest, dtype=torch.float64)
    if zero is not None:
        reach = torch.maximum(zero.double() - lowest, highest - zero.double())
    beyond = values(scale).double() * reach > largest
    if not beyond.any():
        return scale
    most = largest / reach
    found = (16 * most.log2()).to(torch.int16) if scale.dtype == torch.int16 else most.half()
    # As whole numbers both kinds rise with their values; rounding went one too far at most.
    found = found.view(torch.int16) - (values(found).double() * reach > largest).short()
    return torch.where(beyond, found.view(scale.dtype), scale)


def values(scale: Tensor) -> Tensor:
    """The fp32 values of stored scales, where they lie."""
    if scale.dtype != torch.int16:
        return scale.float()
    return POWERS.to(scale.device)[scale.int() + LARGEST_SIXTEENTHS]


def packed(scale: Tensor, zero: Tensor | None, size: int, grid: Grid) -> Steps | Groups:
    """Stored scales [N, G] of groups of `size` columns as what a file holds: one fp16 a row and no zero are `Steps`."""
    if grid.symmetric and grid.scales == "fp16" and scale.shape[1] == 1:
        return Steps(scale[:, 0])
    return Groups(scale, zero, size)
