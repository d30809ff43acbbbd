"""All matrices at one slope, on all threads, with the same levels for any number of them.

Where errors go across columns alone, rows are independent of each other, and segments of the trellis too, so such
matrices are cut into parts of whole segments and solved side by side, one thread each; others are solved whole. torch
itself has one thread meanwhile, because its sums depend on how many it has. Factors of Hessians are kept while they
fit into `KEPT`; they took 60% of a solve.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.compress.matrices import Matrices
from quantgolf.compress.slope_size import (
    Histogram,
    Spreads,
    bits_of,
    gaussian_bits,
    histogram_of,
    predicted_spreads,
    summed_spreads,
)
from quantgolf.encode.contexts import Contexts
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions
from quantgolf.solve.slope import RESOLUTION, Feedback, Grid, prepare_slope, row_parts, solve_rows, solve_slope
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
        self._feedback: dict[str, Feedback] = {}

    def grids(self, progress: Count | None = None) -> dict[str, Grid]:
        """The grid of every matrix; factors that are not kept are made again when they are needed."""
        if not self._grids:
            room, kept = KEPT, set()
            for name in self._mine:
                room -= 4 * sum(side**2 for side in self.matrices.size(name))
                if room >= 0:
                    kept.add(name)

            def work(name: str) -> Grid:
                grid, feedback = prepare_slope(self.matrices[name], self.stats[name], self.options)
                if name in kept:
                    self._feedback[name] = feedback
                return grid

            self._grids = self.each(work, progress)
        return self._grids

    def solve(self, slope: float, progress: Count | None = None) -> Solution:
        """Every matrix at this slope, and what that costs."""
        return self.priced(self.draft(slope, progress))

    def draft(self, slope: float, progress: Count | None = None) -> Drafts:
        """Every matrix at this slope."""
        grids = self.grids()

        def cut(name: str) -> list[slice]:
            rows = self.matrices.size(name)[0]
            return [slice(0, rows)] if grids[name].diagonal else row_parts(rows, self.trellis)

        def work(name: str, rows: Rows, weight: Tensor, feedback: Feedback) -> Draft:
            row, column, _ = grids[name].powers(slope)
            return self._draft(name, slope, self._levels(weight, feedback, row[rows], column), feedback)

        def join(name: str, found: Iterator[Draft]) -> Draft:
            parts = list(found)
            return replace(parts[0], levels=np.concatenate([part.levels for part in parts]))

        return self._parts(cut, work, join, progress)

    def draft_of(self, name: str, slope: float) -> Draft:
        """One matrix at this slope; all ranks solve it."""
        row, column, _ = self.grids()[name].powers(slope)
        with _threads(self.workers):
            weight, feedback = self._loaded(name)
            return self._draft(name, slope, self._levels(weight, feedback, row, column), feedback)

    def _levels(self, weight: Tensor, feedback: Feedback, row: NDArray[np.int16], column: NDArray[np.int16]) -> Levels:
        levels = solve_slope(weight, feedback, row, column, self.trellis, self.options.block_size)
        largest = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
        return levels.astype(np.int16) if largest < 2**15 else levels

    def _draft(self, name: str, slope: float, levels: Levels, feedback: Feedback | None) -> Draft:
        grid = self.grids()[name]
        row, column, spread = grid.powers(slope)
        exponents = Exponents(torch.from_numpy(row), torch.from_numpy(column), spread)
        if feedback is None:
            return Draft(levels, exponents, 0.0, 0, 0, grid.diagonal)
        dead = int(feedback.columns.dead.sum())
        return Draft(levels, exponents, feedback.damp, feedback.retries, dead, grid.diagonal)

    def empty(self, slope: float) -> Drafts:
        """Every matrix on the grid of this slope with levels that are all zero."""
        zeros = {name: np.zeros(self.matrices.size(name), dtype=np.int16) for name in self.grids()}
        return {name: self._draft(name, slope, levels, None) for name, levels in zeros.items()}

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
            return OnSlope(draft.levels, draft.exponents, report, draft.diagonal)

        return self.each(work, progress)

    def sampled(self, slope: float) -> tuple[float, Contexts]:
        """Bits of the stream of levels at this slope, and its tables, from one of `SAMPLED` segments of every matrix.

        What rows are in it is made up for by what `predicted_bits` says of them and of all.
        """
        powers = {name: grid.powers(slope) for name, grid in self.grids().items()}

        def work(name: str, rows: Rows, weight: Tensor, feedback: Feedback) -> tuple[Histogram, float]:
            row, column, spread = powers[name]
            # Rows that are not solved give no feedback to these, and so all are coded down columns here.
            factor = feedback.columns
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
        work: Callable[[str, Rows, Tensor, Feedback], Value],
        join: Callable[[str, Iterator[Value]], Found],
        progress: Count | None,
    ) -> dict[str, Found]:
        """`join` of what `work` makes of each part of each matrix, given its rows of the weight."""

        def part(name: str, rows: Rows, loaded: Future[tuple[Tensor, Feedback]]) -> Value:
            weight, feedback = loaded.result()
            return work(name, rows, weight[rows], feedback)

        def start(pool: Executor, names: list[str]) -> dict[str, Callable[[], Found]]:
            # The pool takes them in this order, so that no part waits for what has not begun. What is loaded lives
            # as long as its parts: loading a few matrices ahead is all that is in memory beside kept factors.
            ahead = [pool.submit(self._loaded, name) for name in names[: self.workers]]
            started: dict[str, Callable[[], Found]] = {}
            for at, name in enumerate(names):
                loaded = ahead.pop(0)
                parts = [pool.submit(part, name, rows, loaded) for rows in cut(name)]
                if at + self.workers < len(names):
                    ahead.append(pool.submit(self._loaded, names[at + self.workers]))
                started[name] = _joined(name, parts, join)
            return started

        return self._spread(start, progress)

    def _loaded(self, name: str) -> tuple[Tensor, Feedback]:
        weight = self.matrices[name]
        return weight, self._feedback.get(name) or prepare_slope(weight, self.stats[name], self.options)[1]

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
