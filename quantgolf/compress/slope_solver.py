"""All matrices at one slope, on all threads, with the same levels for any number of them.

Where errors go across columns alone, rows are independent of each other, and segments of the trellis too, so such
matrices are cut into parts of whole segments and solved side by side, one thread each; others are solved whole. torch
itself has one thread meanwhile, because its sums depend on how many it has. Factors of Hessians are kept while they
fit into `KEPT`; they took 60% of a solve. On a GPU all this is another way (`slope_gpu`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.compress.matrices import Matrices
from quantgolf.compress.place import factor_bytes
from quantgolf.compress.slope_draft import Draft, Drafts, Levels, OnSlope, Solution, narrowed
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
Value = TypeVar("Value")
Found = TypeVar("Found")
Count = Callable[[int, int], None]


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
        self._jobs = self._divided()
        self._costs = [sum(self._cost(name) for name in names) for names in self._jobs]
        owners = zip(self._jobs, self.ranks.divide(self._costs), strict=True)
        self._mine = [name for names, owner in owners if owner == self.ranks.rank for name in names]
        self._grids: dict[str, Grid] = {}
        self._spreads: Spreads | None = None
        self._feedback: dict[str, Feedback] = {}

    def _divided(self) -> list[list[str]]:
        """What is solved by one rank at a time: the matrices, one by one."""
        return [[name] for name in self.names]

    def _cost(self, name: str) -> float:
        rows, columns = self.matrices.size(name)
        return float(rows * columns * columns)

    def grids(self, progress: Count | None = None) -> dict[str, Grid]:
        """The grid of every matrix; factors that are not kept are made again when they are needed."""
        if not self._grids:
            room, kept = self._room(), set()
            for name in self._mine:
                need = factor_bytes(*self.matrices.size(name))
                if need <= room:
                    kept.add(name)
                    room -= need

            def work(name: str) -> Grid:
                grid, feedback = self._prepared(name, self.matrices.there(name))
                if name in kept:
                    self._feedback[name] = feedback
                return grid

            self._grids = self._there(work, progress)
        return self._grids

    def _room(self) -> int:
        return KEPT

    def _prepared(self, name: str, weight: Tensor) -> tuple[Grid, Feedback]:
        return prepare_slope(weight, self.matrices.place.moved(self.stats[name]), self.options)

    def solve(self, slope: float, progress: Count | None = None) -> Solution:
        """Every matrix at this slope, and what that costs."""
        return self.priced(self.draft(slope, progress))

    def draft(self, slope: float, progress: Count | None = None) -> Drafts:
        """Every matrix at this slope."""

        def work(name: str, rows: Rows, levels: Levels, feedback: Feedback) -> Draft:
            return self._draft(name, slope, levels, feedback)

        def join(name: str, found: Iterator[Draft]) -> Draft:
            parts = list(found)
            return replace(parts[0], levels=np.concatenate([part.levels for part in parts]))

        return self._parts(slope, False, work, join, progress)

    def draft_of(self, name: str, slope: float) -> Draft:
        """One matrix at this slope; all ranks solve it."""
        row, column, _ = self.grids()[name].powers(slope)
        with _threads(self.workers):
            weight, feedback = self._loaded(name)
            levels = solve_slope(weight, feedback, row, column, self.trellis, self.options.block_size)
        return self._draft(name, slope, narrowed(levels), feedback)

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

        def lost(name: str) -> float:
            draft = drafts[name]
            steps = draft.exponents.steps()
            assert steps.column is not None
            weight = self.matrices.there(name)
            error = torch.from_numpy(draft.levels).to(weight.device).float()
            error *= steps.row.to(weight.device)[:, None] * steps.column.to(weight.device)
            error -= weight
            return self.matrices.place.moved(self.stats[name]).loss(error)

        losses = self._there(lost, progress)

        def work(name: str) -> OnSlope:
            draft = drafts[name]
            report = SolveReport(
                name, "slope", bits_of(draft.levels, self.trellis), losses[name], draft.damp, draft.retries, draft.dead
            )
            return OnSlope(draft.levels, draft.exponents, report, draft.diagonal)

        return self.each(work)

    def sampled(self, slope: float) -> tuple[float, Contexts]:
        """Bits of the stream of levels at this slope, and its tables, from one of `SAMPLED` segments of every matrix.

        What rows are in it is made up for by what `predicted_bits` says of them and of all.
        """

        def work(name: str, rows: Rows, levels: Levels, feedback: Feedback) -> tuple[Histogram, float]:
            row, column, spread = self.grids()[name].powers(slope)
            more = self.matrices.size(name)[0] / levels.shape[1]
            predicted = self._gaussian(_spreads_of(self.grids()[name], rows), slope)
            counted = histogram_of(levels.astype(np.int32, copy=False), row[rows], column, spread, self.trellis)
            return counted.times(more), predicted * more

        found = self._parts(slope, True, work, lambda name, parts: next(parts), None).values()
        bits, contexts = Histogram.sum([histogram for histogram, _ in found]).coded(self.trellis)
        return bits * self.predicted_bits(slope) / sum(predicted for _, predicted in found), contexts

    def _cut(self, name: str, sample: bool) -> Sequence[Rows]:
        """The parts a matrix is solved in."""
        rows, restart = self.matrices.size(name)[0], self.trellis.restart
        if not sample:
            return [slice(0, rows)] if self.grids()[name].diagonal else row_parts(rows, self.trellis)
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
        """`work` of every matrix on the CPU, by name, on all threads and ranks."""
        return self._spread(lambda pool, names: {name: pool.submit(work, name).result for name in names}, progress)

    def _there(self, work: Callable[[str], Value], progress: Count | None = None) -> dict[str, Value]:
        """`work` of every matrix where it is solved, by name."""
        return self.each(work, progress)

    def _parts(
        self,
        slope: float,
        sample: bool,
        work: Callable[[str, Rows, Levels, Feedback], Value],
        join: Callable[[str, Iterator[Value]], Found],
        progress: Count | None,
    ) -> dict[str, Found]:
        """`join` of what `work` makes of the levels of each part of each matrix at a slope.

        Args:
            sample: take some rows. Those that are not solved give no feedback to them, and so levels lie down columns
                then, [K, N] in memory.
        """
        grids = self.grids()

        def part(name: str, rows: Rows, loaded: Future[tuple[Tensor, Feedback]]) -> Value:
            weight, feedback = loaded.result()
            row, column, _ = grids[name].powers(slope)
            powers, options = (row[rows], column), (self.trellis, self.options.block_size)
            if sample:
                return work(name, rows, solve_rows(weight[rows], feedback.columns, *powers, *options), feedback)
            levels = narrowed(solve_slope(weight[rows], feedback, *powers, *options))
            return work(name, rows, levels, feedback)

        def start(pool: Executor, names: list[str]) -> dict[str, Callable[[], Found]]:
            # The pool takes them in this order, so that no part waits for what has not begun. What is loaded lives
            # as long as its parts: loading a few matrices ahead is all that is in memory beside kept factors.
            ahead = [pool.submit(self._loaded, name) for name in names[: self.workers]]
            started: dict[str, Callable[[], Found]] = {}
            for at, name in enumerate(names):
                loaded = ahead.pop(0)
                parts = [pool.submit(part, name, rows, loaded) for rows in self._cut(name, sample)]
                if at + self.workers < len(names):
                    ahead.append(pool.submit(self._loaded, names[at + self.workers]))
                started[name] = _joined(name, parts, join)
            return started

        return self._spread(start, progress)

    def _loaded(self, name: str) -> tuple[Tensor, Feedback]:
        weight = self.matrices.there(name)
        return weight, self._feedback.get(name) or self._prepared(name, weight)[1]

    def _spread(
        self, start: Callable[[Executor, list[str]], Mapping[str, Callable[[], Value]]], progress: Count | None
    ) -> dict[str, Value]:
        """Results by name of what `start` starts in a pool of threads, given this rank's matrices, dearest first."""
        with _threads(self.workers) as pool:
            started = dict(start(pool, sorted(self._mine, key=lambda name: -self._cost(name))))
            return self._by_job(lambda names: [started.pop(name)() for name in names], progress)

    def _by_job(self, work: Callable[[list[str]], list[Value]], progress: Count | None) -> dict[str, Value]:
        """Results by name of `work` of the matrices of each job, on all ranks."""
        total = len(self._jobs)
        done = None if progress is None else lambda count: progress(min(count, total), total)
        found = self.ranks.spread(self._costs, lambda job: work(self._jobs[job]), done)
        pairs = zip(self._jobs, found, strict=True)
        values = {name: value for names, each in pairs for name, value in zip(names, each, strict=True)}
        return {name: values[name] for name in self.names}


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
