"""All matrices at one slope, on all threads, with the same levels for any number of them.

Where errors go across columns alone, rows are independent of each other, and segments of the trellis too, so such
matrices are cut into parts of whole segments and solved side by side, one thread each; others are solved whole. torch
itself has one thread meanwhile, because its sums depend on how many it has. Factors of Hessians are kept while they
fit into `KEPT`; they took 60% of a solve. On a GPU all this is another way (`slope_gpu`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.compress.matrices import Matrices
from quantgolf.compress.place import factor_bytes
from quantgolf.compress.shelf import Shelf
from quantgolf.compress.slope_draft import Draft, Drafts, Levels, OnSlope, Solution, narrowed
from quantgolf.compress.slope_size import (
    Histogram,
    Spreads,
    bits_of,
    gaussian_bits,
    histogram_of,
    spreads_of,
    summed_spreads,
)
from quantgolf.compress.threads import joined, pool_of
from quantgolf.encode.contexts import Contexts
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions
from quantgolf.solve.finite import finite_levels
from quantgolf.solve.magnitude import difference
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
        shelf: Shelf | None = None,
    ) -> None:
        self.matrices, self.stats, self.options, self.trellis, self.shelf = matrices, stats, options, trellis, shelf
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
            draft = replace(parts[0], levels=np.concatenate([part.levels for part in parts]))
            return self._keep(name, slope, draft)

        known = {name: draft for name in self._mine if (draft := self._kept(name, slope)) is not None}
        return self._parts(slope, False, work, join, progress, known)

    def draft_of(self, name: str, slope: float) -> Draft:
        """One matrix at this slope; all ranks solve it."""
        if (known := self._kept(name, slope)) is not None:
            return known
        row, column, _ = self.grids()[name].powers(slope)
        with pool_of(self.workers):
            weight, feedback = self._loaded(name)
            levels = solve_slope(weight, feedback, row, column, self.trellis, self.options.block_size)
        return self._keep(name, slope, self._draft(name, slope, narrowed(levels), feedback))

    def _kept(self, name: str, slope: float) -> Draft | None:
        """A matrix that an earlier run has solved."""
        found = None if self.shelf is None else self.shelf.find(*self._decided(name, slope))
        return None if found is None else Draft.from_stored(*found)

    def _keep(self, name: str, slope: float, draft: Draft) -> Draft:
        levels = finite_levels(draft.levels, draft.exponents, self.matrices.dtype(name), self.trellis, draft.diagonal)
        draft = replace(draft, levels=levels)
        if self.shelf is not None:
            self.shelf.keep(self._decided(name, slope), *draft.stored())
        return draft

    def _decided(self, name: str, slope: float) -> tuple[object, ...]:
        return name, slope, self.options, self.trellis, self.matrices.place.device.type

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
            steps = drafts[name].exponents.steps()
            assert steps.column is not None
            weight = self.matrices.there(name)
            step = steps.row.to(weight.device)[:, None] * steps.column.to(weight.device)
            restored = torch.from_numpy(drafts[name].levels).to(weight.device).float().mul_(step)
            return self.matrices.place.moved(self.stats[name]).loss(difference(restored, weight))

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
            predicted = self._gaussian(spreads_of(self.grids()[name], rows), slope)
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
            self._spreads = summed_spreads([spreads_of(grid, slice(None)) for grid in self.grids().values()])
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
        known: Mapping[str, Found] | None = None,
    ) -> dict[str, Found]:
        """`join` of what `work` makes of the levels of each part of each matrix at a slope.

        Args:
            sample: take some rows. Those that are not solved give no feedback to them, and so levels lie down columns
                then, [K, N] in memory.
            known: matrices that need no more work.
        """
        grids, known = self.grids(), known or {}

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
            started: dict[str, Callable[[], Found]] = {n: partial(known.__getitem__, n) for n in names if n in known}
            names = [name for name in names if name not in known]
            ahead = [pool.submit(self._loaded, name) for name in names[: self.workers]]
            for at, name in enumerate(names):
                loaded = ahead.pop(0)
                parts = [pool.submit(part, name, rows, loaded) for rows in self._cut(name, sample)]
                if at + self.workers < len(names):
                    ahead.append(pool.submit(self._loaded, names[at + self.workers]))
                started[name] = joined(name, parts, join)
            return started

        return self._spread(start, progress)

    def _loaded(self, name: str) -> tuple[Tensor, Feedback]:
        weight = self.matrices.there(name)
        return weight, self._feedback.get(name) or self._prepared(name, weight)[1]

    def _spread(
        self, start: Callable[[Executor, list[str]], Mapping[str, Callable[[], Value]]], progress: Count | None
    ) -> dict[str, Value]:
        """Results by name of what `start` starts in a pool of threads, given this rank's matrices, dearest first."""
        with pool_of(self.workers) as pool:
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
