"""All matrices at one slope, on all threads, with the same levels for any number of them.

Rows are independent of each other in GPTQ's feedback, and segments of the trellis too, so matrices are cut into parts
of whole segments and solved side by side, one thread each. torch itself has one thread meanwhile, because its sums
depend on how many it has. Factors of Hessians are kept while they fit into `KEPT`; they took 60% of a solve.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.compress.matrices import Matrices
from quantgolf.compress.slope_size import (
    Histogram,
    Spreads,
    gaussian_bits,
    histogram_of,
    predicted_spreads,
    summed_spreads,
)
from quantgolf.encode.contexts import Contexts
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions
from quantgolf.solve.gptq import Factor
from quantgolf.solve.slope import RESOLUTION, Grid, prepare_slope, row_parts, solve_rows
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Exponents, SolveReport, WeightStats

KEPT = 1 << 28  # bytes of factors that stay in memory: those of 36M weights
SAMPLED = 8  # one segment of so many is solved to learn how large a file will be

Rows = slice | NDArray[np.int64]
Levels = NDArray[np.int32] | NDArray[np.int16]
Value = TypeVar("Value")
Found = TypeVar("Found")
Count = Callable[[int, int], None]


@dataclass(frozen=True)
class Draft:
    """A matrix solved on the grid of one slope.

    Attributes:
        levels: int16, or int32 where they need it, [N, K]; column after column in memory.
        exponents: of its steps.
        damp, retries, dead: of its factor, for the report.
    """

    levels: Levels
    exponents: Exponents
    damp: float
    retries: int
    dead: int


@dataclass(frozen=True)
class OnSlope:
    """A matrix solved on the grid of one slope, and what that costs: levels int32 or int16 [N, K], and its steps."""

    levels: Levels
    exponents: Exponents
    report: SolveReport


Drafts = dict[str, Draft]
Solution = dict[str, OnSlope]


class SlopeSolver:
    """Solves all matrices at any slope; with several ranks each does a share and all know all results.

    It uses as many threads as torch has when it is made.
    """

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
        self.workers = torch.get_num_threads()
        self._costs = [float(math.prod(matrices.size(name)) * matrices.size(name)[1]) for name in self.names]
        owners = self.ranks.divide(self._costs)
        self._mine = [name for name, owner in zip(self.names, owners, strict=True) if owner == self.ranks.rank]
        self._grids: dict[str, Grid] = {}
        self._spreads: Spreads | None = None
        self._factors: dict[str, Factor] = {}

    def grids(self, progress: Count | None = None) -> dict[str, Grid]:
        """The grid of every matrix; factors that are not kept are made again when they are needed."""
        if not self._grids:
            room, kept = KEPT, set()
            for name in self._mine:
                room -= 4 * self.matrices.size(name)[1] ** 2
                if room >= 0:
                    kept.add(name)

            def work(name: str) -> Grid:
                grid, factor = prepare_slope(self.matrices[name], self.stats[name], self.options)
                if name in kept:
                    self._factors[name] = factor
                return grid

            self._grids = self.each(work, progress)
        return self._grids

    def solve(self, slope: float, progress: Count | None = None) -> Solution:
        """Every matrix at this slope, and what that costs."""
        return self.priced(self.draft(slope, progress))

    def draft(self, slope: float, progress: Count | None = None) -> Drafts:
        """Every matrix at this slope."""
        powers = {name: grid.powers(slope) for name, grid in self.grids().items()}

        def work(name: str, rows: Rows, weight: Tensor, factor: Factor) -> tuple[Levels, Factor]:
            row, column, _ = powers[name]
            levels = solve_rows(weight, factor, row[rows], column, self.trellis, self.options.block_size)
            largest = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
            return levels.astype(np.int16) if largest < 2**15 else levels, factor

        def join(name: str, found: Iterator[tuple[Levels, Factor]]) -> Draft:
            parts = list(found)
            factor = parts[0][1]
            levels = np.concatenate([part for part, _ in parts], axis=1).T
            row, column, spread = powers[name]
            exponents = Exponents(torch.from_numpy(row), torch.from_numpy(column), spread)
            return Draft(levels, exponents, factor.damp, factor.retries, int(factor.dead.sum()))

        return self._parts(lambda name: row_parts(self.matrices.size(name)[0], self.trellis), work, join, progress)

    def empty(self, slope: float) -> Drafts:
        """Every matrix on the grid of this slope with levels that are all zero."""
        found = {}
        for name, grid in self.grids().items():
            row, column, spread = grid.powers(slope)
            levels = np.zeros((len(column), len(row)), dtype=np.int16).T
            found[name] = Draft(levels, Exponents(torch.from_numpy(row), torch.from_numpy(column), spread), 0.0, 0, 0)
        return found

    def priced(self, drafts: Mapping[str, Draft], progress: Count | None = None) -> Solution:
        """Drafts, or rows of several of them, with what they cost."""

        def work(name: str) -> OnSlope:
            draft = drafts[name]
            steps = draft.exponents.steps()
            assert steps.column is not None
            error = torch.from_numpy(draft.levels).float()
            error *= steps.row[:, None] * steps.column
            error -= self.matrices[name].cpu()
            report = SolveReport(
                name, "slope", bits_of(draft.levels, self.trellis), self.stats[name].loss(error),
                draft.damp, draft.retries, draft.dead,
            )  # fmt: skip
            return OnSlope(draft.levels, draft.exponents, report)

        return self.each(work, progress)

    def sampled(self, slope: float) -> tuple[float, Contexts]:
        """Bits of the stream of levels at this slope, and its tables, from one of `SAMPLED` segments of every matrix.

        What rows are in it is made up for by what `predicted_bits` says of them and of all.
        """
        powers = {name: grid.powers(slope) for name, grid in self.grids().items()}

        def work(name: str, rows: Rows, weight: Tensor, factor: Factor) -> tuple[Histogram, float]:
            row, column, spread = powers[name]
            levels = solve_rows(weight, factor, row[rows], column, self.trellis, self.options.block_size)
            more = self.matrices.size(name)[0] / len(weight)
            predicted = self._gaussian(_spreads_of(self.grids()[name], rows), slope)
            return histogram_of(levels, row[rows], column, spread, self.trellis).times(more), predicted * more

        found = self._parts(self._sample, work, lambda name, parts: next(parts), None).values()
        bits, contexts = Histogram.sum([histogram for histogram, _ in found]).coded(self.trellis)
        return bits * self.predicted_bits(slope) / sum(predicted for _, predicted in found), contexts

    def _sample(self, name: str) -> list[Rows]:
        rows, restart = self.matrices.size(name)[0], self.trellis.restart
        segments = -(-rows // restart)
        taken = -(-segments // SAMPLED)
        chosen = [(2 * at + 1) * segments // (2 * taken) for at in range(taken)]
        return [np.concatenate([np.arange(at * restart, min(rows, (at + 1) * restart)) for at in chosen])]

    def predicted_bits(self, slope: float) -> float:
        """Bits of all codes at a slope, as if weights were Gaussian with the spread of their row."""
        if self._spreads is None:
            self._spreads = summed_spreads([_spreads_of(grid, slice(None)) for grid in self.grids().values()])
        return self._gaussian(self._spreads, slope)

    def _gaussian(self, spreads: Spreads, slope: float) -> float:
        lowest, many = spreads
        spread = lowest + np.arange(len(many)) - RESOLUTION * math.log2(slope)
        return float(many @ gaussian_bits(spread, self.trellis))

    def each(self, work: Callable[[str], Value], progress: Count | None = None) -> dict[str, Value]:
        """`work` of every matrix, by name, on all threads and ranks."""
        return self._spread(lambda pool, names: {name: pool.submit(work, name).result for name in names}, progress)

    def _parts(
        self,
        cut: Callable[[str], Sequence[Rows]],
        work: Callable[[str, Rows, Tensor, Factor], Value],
        join: Callable[[str, Iterator[Value]], Found],
        progress: Count | None,
    ) -> dict[str, Found]:
        """`join` of what `work` makes of each part of each matrix, given its rows of the weight."""

        def load(name: str) -> tuple[Tensor, Factor]:
            weight = self.matrices[name]
            factor = self._factors.get(name)
            return weight, factor or prepare_slope(weight, self.stats[name], self.options)[1]

        def part(name: str, rows: Rows, loaded: Future[tuple[Tensor, Factor]]) -> Value:
            weight, factor = loaded.result()
            return work(name, rows, weight[rows], factor)

        def start(pool: Executor, names: list[str]) -> dict[str, Callable[[], Found]]:
            # The pool takes them in this order, so that no part waits for what has not begun. What is loaded lives
            # as long as its parts: loading a few matrices ahead is all that is in memory beside kept factors.
            ahead = [pool.submit(load, name) for name in names[: self.workers]]
            started: dict[str, Callable[[], Found]] = {}
            for at, name in enumerate(names):
                loaded = ahead.pop(0)
                parts = [pool.submit(part, name, rows, loaded) for rows in cut(name)]
                if at + self.workers < len(names):
                    ahead.append(pool.submit(load, names[at + self.workers]))
                started[name] = _joined(name, parts, join)
            return started

        return self._spread(start, progress)

    def _spread(
        self, start: Callable[[Executor, list[str]], Mapping[str, Callable[[], Value]]], progress: Count | None
    ) -> dict[str, Value]:
        """Results by name of what `start` starts in a pool of threads, given this rank's matrices, dearest first."""
        total = len(self.names)
        done = None if progress is None else lambda count: progress(min(count, total), total)
        cost = dict(zip(self.names, self._costs, strict=True))
        with _threads(self.workers) as pool:
            started = dict(start(pool, sorted(self._mine, key=lambda name: -cost[name])))
            found = self.ranks.spread(self._costs, lambda job: started.pop(self.names[job])(), done)
        return dict(zip(self.names, found, strict=True))


def _spreads_of(grid: Grid, rows: Rows) -> Spreads:
    """How many weights of these rows have each spread in steps of slope 1, in quarter octaves."""
    row, column = (RESOLUTION * (grid.row - grid.spreads)[rows]).round(), (RESOLUTION * grid.column).round()
    return predicted_spreads(row.numpy().astype(np.int64), column.numpy().astype(np.int64), 0)


def _joined(
    name: str, parts: list[Future[Value]], join: Callable[[str, Iterator[Value]], Found]
) -> Callable[[], Found]:
    return lambda: join(name, (part.result() for part in parts))


@contextmanager
def _threads(workers: int) -> Iterator[Executor]:
    """A pool of threads in which, as in this one, torch computes with a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def bits_of(levels: Levels, trellis: Trellis) -> float:
    """Entropy of what is coded of levels, by one histogram, bits a weight; the file's contexts take less."""
    magnitude = np.abs(levels.astype(np.int32))
    magnitude = magnitude if trellis.states == 1 else (magnitude + 1) >> 1
    coded = np.where(levels < 0, -magnitude, magnitude).ravel(order="K")
    most = int(magnitude.max(initial=0))
    counts = np.bincount(coded + most) if most < 2**20 else np.unique(coded, return_counts=True)[1]
    share = counts[counts > 0] / max(1, levels.size)
    return float(-(share * np.log2(share)).sum())
