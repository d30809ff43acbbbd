"""All matrices at one slope on a GPU: batches of equal shapes, one after another, from one thread.

Batches are the same for any number of ranks, which have a share of them each. A rank solves a matrix once and all of
them know its levels, so that they agree even where their GPUs would not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from quantgolf.compress.place import AT_ONCE, batches
from quantgolf.compress.slope_draft import Draft, Levels, narrowed
from quantgolf.compress.slope_solver import Count, Found, Rows, SlopeSolver, Value
from quantgolf.solve.slope import Feedback, solve_slope_many

KEPT = 16 << 30  # bytes of factors that stay in a GPU's memory where it has room: those of two billion weights


class GpuSlopeSolver(SlopeSolver):
    """As `SlopeSolver`; weights, factors and losses are the GPU's, histograms and bits those of the CPU's threads."""

    def draft_of(self, name: str, slope: float) -> Draft:
        """One matrix at this slope; one rank solves it."""

        def work(_: int) -> Draft:
            with self.matrices.place.entered():
                return super(GpuSlopeSolver, self).draft_of(name, slope)

        return self.ranks.spread([1.0], work)[0]

    def _divided(self) -> list[list[str]]:
        most = min(self.ranks.gather(self.matrices.place.room(AT_ONCE)))  # one plan for all of them
        return batches(self.names, self.matrices.size, most)

    def _room(self) -> int:
        return self.matrices.place.room(KEPT)

    def _there(self, work: Callable[[str], Value], progress: Count | None = None) -> dict[str, Value]:
        def run(names: list[str]) -> list[Value]:
            with self.matrices.place.entered():
                return [work(name) for name in names]

        return self._by_job(run, progress)

    def _parts(
        self,
        slope: float,
        sample: bool,
        work: Callable[[str, Rows, Levels, Feedback], Value],
        join: Callable[[str, Iterator[Value]], Found],
        progress: Count | None,
        known: Mapping[str, Found] | None = None,
    ) -> dict[str, Found]:
        grids, known = self.grids(), known or {}

        def run(names: list[str]) -> list[Found]:
            found = {name: known[name] for name in names if name in known}
            for diagonal in (False, True):  # these are solved in different ways
                alike = [name for name in names if name not in found and grids[name].diagonal is diagonal]
                if alike:
                    rows = self._cut(alike[0], sample)[0] if sample else slice(None)
                    for name, levels, feedback in self._together(alike, rows, slope, sample):
                        found[name] = join(name, iter([work(name, rows, levels, feedback)]))
            return [found[name] for name in names]

        return self._by_job(run, progress)

    def _together(
        self, names: list[str], rows: Rows, slope: float, sample: bool
    ) -> Iterator[tuple[str, Levels, Feedback]]:
        """These rows of matrices of equal shape, solved at once."""
        powers = [self.grids()[name].powers(slope) for name in names]
        row, column = np.stack([each[0][rows] for each in powers]), np.stack([each[1] for each in powers])
        with self.matrices.place.entered():
            loaded = [self._loaded(name) for name in names]
            feedback = [replace(each, across=None) if sample else each for _, each in loaded]
            taken = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(loaded[0][0].device)
            weights = torch.stack([weight[taken] for weight, _ in loaded])
            found = solve_slope_many(weights, feedback, row, column, self.trellis, self.options.block_size)
        for name, levels, each in zip(names, found, feedback, strict=True):
            yield name, _down_columns(levels) if sample else narrowed(levels), each


def _down_columns(levels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Levels [N, K] as [K, N]."""
    return np.ascontiguousarray(levels.T)
