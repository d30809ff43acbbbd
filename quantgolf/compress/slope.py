"""One slope under a byte budget: the one number c that all steps share is found so that the file just fits.

The size predicted from the steps alone gives the first c; two or three real solves and encodes correct it. In the end
a solution just under the budget and one just over it are mixed, matrix by matrix, which spends most of the bytes that
are left.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from quantgolf.blob import VERSION, pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.result import Compressed, Progress, stage
from quantgolf.encode import Entry, Leveled, encode_model
from quantgolf.errors import BudgetError
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions
from quantgolf.solve.slope import RESOLUTION, Grid, prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import BitPlan, BlobHeader, CodedModel, Exponents, SolveReport, WeightStats

ROUNDS = 8
NEXT_TO_NOTHING = 0.02  # bits a weight: the least that is tried
ENOUGH = 2e-5  # of the budget: so little left is not worth another encode
CLOSE = 2e-3  # of the budget: solutions this near to it, one on each side, are worth mixing
WIDEST = 4 * 40  # predicted spreads beyond this many quarter octaves cost a bit for every four more


@dataclass(frozen=True)
class OnSlope:
    """A matrix solved on the grid of one slope: levels int32 or int16 [N, K], and its steps."""

    levels: NDArray[np.int32] | NDArray[np.int16]
    exponents: Exponents
    report: SolveReport


Solution = dict[str, OnSlope]
Value = TypeVar("Value")
Size = Callable[[Mapping[str, OnSlope]], int]


class SlopeSolver:
    """Solves all matrices at any slope; with several ranks each does a share and all know all results."""

    def __init__(
        self,
        matrices: Matrices,
        stats: Mapping[str, WeightStats],
        options: SolveOptions,
        trellis: Trellis,
        ranks: Ranks | None = None,
    ) -> None:
        self.matrices, self.stats, self.options, self.trellis = matrices, stats, options, trellis
        self.ranks, self.names = ranks or Ranks(), list(matrices)
        self._grids: dict[str, Grid] = {}

    def grids(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Grid]:
        """The grid of every matrix; factors are made again when they are needed, one at a time."""
        if not self._grids:
            found = self._spread(
                lambda name: prepare_slope(self.matrices[name], self.stats[name], self.options)[0], progress
            )
            self._grids = dict(zip(self.names, found, strict=True))
        return self._grids

    def solve(self, slope: float, progress: Callable[[int, int], None] | None = None) -> Solution:
        """Every matrix at this slope."""
        grids = self.grids()

        def work(name: str) -> OnSlope:
            weight, stats = self.matrices[name], self.stats[name]
            _, factor = prepare_slope(weight, stats, self.options)
            row, column, spread = grids[name].powers(slope)
            levels = solve_slope(weight, factor, row, column, self.trellis, self.options.block_size)
            exponents = Exponents(torch.from_numpy(row), torch.from_numpy(column), spread)
            steps = exponents.steps()
            assert steps.column is not None
            restored = torch.from_numpy(levels).float() * (steps.row[:, None] * steps.column)
            report = SolveReport(
                name, "slope", bits_of(levels, self.trellis), stats.loss(restored - weight),
                factor.damp, factor.retries, int(factor.dead.sum()),
            )  # fmt: skip
            narrow = levels.astype(np.int16) if np.abs(levels).max(initial=0) < 2**15 else levels
            return OnSlope(narrow, exponents, report)

        return dict(zip(self.names, self._spread(work, progress), strict=True))

    def predicted_bits(self, slope: float) -> float:
        """Bits of all codes at a slope, as if weights were Gaussian with their matrix' spread."""
        return sum(self._bits(grid, slope) for grid in self.grids().values())

    def _bits(self, grid: Grid, slope: float) -> float:
        row, column, spread = grid.powers(slope)
        rows, columns = (np.bincount(side.astype(np.int64) - side.min()) for side in (row, column))
        sums = np.convolve(rows, columns)
        ratio = spread - (int(row.min()) + int(column.min())) - np.arange(len(sums))
        # A trellis chooses among levels two apart; with one state they are one apart.
        return float(sums @ gaussian_bits(ratio - (RESOLUTION if self.trellis.states > 1 else 0)))

    def _spread(self, work: Callable[[str], Value], progress: Callable[[int, int], None] | None) -> list[Value]:
        costs = [float(sum(self.matrices.size(name))) * self.matrices.size(name)[1] ** 2 for name in self.names]
        total = len(self.names)
        done = None if progress is None else lambda count: progress(min(count, total), total)
        return self.ranks.spread(costs, lambda job: work(self.names[job]), done)


def gaussian_bits(power: NDArray[np.int64]) -> NDArray[np.float64]:
    """Entropy of Gaussian numbers with standard deviation 2^(power / 4), rounded to integers."""
    table = _gaussian_bits()
    beyond = np.maximum(0, power - 40)
    found: NDArray[np.float64] = table[np.clip(power, -WIDEST, 40) + WIDEST] + beyond / RESOLUTION
    return found


@cache
def _gaussian_bits() -> NDArray[np.float64]:
    """`gaussian_bits` of the powers -WIDEST to 40."""
    table = np.empty(WIDEST + 41)
    for index in range(len(table)):
        share = np.diff(ndtr((np.arange(-9000, 9001) + 0.5) / 2 ** ((index - WIDEST) / RESOLUTION)))
        share = share[share > 0]
        table[index] = -(share * np.log2(share)).sum()
    return table


def bits_of(levels: NDArray[np.int32], trellis: Trellis) -> float:
    """Entropy of what is coded of levels, by one histogram, bits a weight; the file's contexts take less."""
    coded = levels if trellis.states == 1 else np.sign(levels) * ((np.abs(levels) + 1) // 2)
    counts = np.unique(coded, return_counts=True)[1] / max(1, levels.size)
    return float(-(counts * np.log2(counts)).sum())


def fit_slope(
    solver: SlopeSolver, size_of: Size, max_bytes: int, progress: Callable[[int, int], None] | None = None
) -> Solution:
    """The solution whose complete file takes at most `max_bytes` and little less.

    Args:
        solver: of all matrices.
        size_of: bytes of the complete file of a solution, and whatever else counts towards the budget.
        max_bytes: for all of that.
        progress: called with (solved, to solve) of the round under way.

    Raises:
        BudgetError: no slope fits.
    """
    sizes = {name: math.prod(solver.matrices.size(name)) for name in solver.names}
    least = NEXT_TO_NOTHING * sum(sizes.values())
    power = _slope_for(solver, max(8.0 * max_bytes, least))
    under: tuple[float, Solution, int] | None = None
    over: tuple[float, Solution, int] | None = None
    for _ in range(ROUNDS):
        solution = solver.solve(2.0**power, progress)
        size = size_of(solution)
        if size <= max_bytes:
            under = (power, solution, size) if under is None or size > under[2] else under
        else:
            over = (power, solution, size) if over is None or size < over[2] else over
        if under is not None and over is not None and over[2] - under[2] <= 2 * CLOSE * max_bytes:
            break
        aim = max_bytes * (1 + (CLOSE / 2 if over is None else -CLOSE / 2))
        # The codes' bits change as predicted from here, whatever the file's size is in itself.
        before, power = power, _slope_for(solver, max(least, solver.predicted_bits(2.0**power) - 8 * (size - aim)))
        if power == before:  # no fewer bits are asked for
            break
    if under is None:
        assert over is not None
        nearest = over[2]
        raise BudgetError(
            f"budget of {max_bytes:,} bytes cannot be met: with next to no bits for the weights file and code take "
            f"{nearest:,}; give --max-bytes {nearest} or more, or a smaller model",
            nearest,
        )
    return under[1] if over is None else _mixed(under[1], over[1], size_of, max_bytes, sizes)


def _slope_for(solver: SlopeSolver, bits: float) -> float:
    """log2 of the slope at which codes should take so many bits."""
    low, high = -60.0, 60.0
    for _ in range(50):
        middle = (low + high) / 2
        if solver.predicted_bits(2.0**middle) > bits:
            low = middle
        else:
            high = middle
    return high


def _mixed(under: Solution, over: Solution, size_of: Size, max_bytes: int, sizes: Mapping[str, int]) -> Solution:
    """As much of the larger solution as fits: as many of the largest matrices, then what smaller ones still do."""
    names = sorted(under, key=lambda name: -sizes[name])
    fits, too_many, best = 0, len(names), under
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        mixed = {name: (over if name in names[:count] else under)[name] for name in under}
        if size_of(mixed) <= max_bytes:
            fits, best = count, mixed
        else:
            too_many = count
    room = max_bytes - size_of(best)
    for name in names[fits:]:
        # By the histograms of both; what would not fit by them is not tried.
        if sizes[name] * (over[name].report.bits - under[name].report.bits) > 8 * room:
            continue
        mixed = {**best, name: over[name]}
        size = size_of(mixed)
        if size <= max_bytes:
            best, room = mixed, max_bytes - size
        if room <= max_bytes * ENOUGH:
            break
    return best


def compress_by_slope(
    checkpoint: Checkpoint,
    matrices: Matrices,
    kept: dict[str, str],
    stats: Mapping[str, WeightStats],
    *,
    max_bytes: int,
    options: SolveOptions,
    trellis: Trellis,
    code_bytes: int = 0,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compresses chosen matrices of a checkpoint into at most `max_bytes` with one slope; see `compress`.

    Raises:
        BudgetError: no slope fits.
    """
    solver = SlopeSolver(matrices, stats, options, trellis, ranks)
    solver.grids(stage(progress, "pricing"))
    inside: dict[str, list[str]] = {}
    for name, block in matrices.blocks.items():
        inside.setdefault(block.parameter, []).append(name)

    def coded(solution: Mapping[str, OnSlope]) -> CodedModel:
        entries = []
        for parameter, tensor in checkpoint.tensors.items():
            leveled = tuple(
                Leveled(
                    matrices.blocks[name],
                    solution[name].exponents,
                    torch.from_numpy(solution[name].levels.astype(np.int32)),
                )
                for name in inside.get(parameter, ())
            )
            entries.append(Entry(parameter, tensor, leveled, checkpoint.aliases.get(parameter, ())))
        return encode_model(entries, trellis)

    def size_of(solution: Mapping[str, OnSlope]) -> int:
        return code_bytes + len(pack(coded(solution), checkpoint.description))

    solution = fit_slope(solver, size_of, max_bytes, stage(progress, "solving"))
    result = coded(solution)
    data = pack(result, checkpoint.description)
    reports = {name: solved.report for name, solved in solution.items()}
    return Compressed(
        data=data,
        header=BlobHeader(VERSION, checkpoint.description),
        coded=result,
        plan=BitPlan({}, len(data), sum(report.loss for report in reports.values())),
        reports=reports,
        kept=kept,
        code_bytes=code_bytes,
        parameters=checkpoint.parameters,
    )
