"""One slope, asked for bytes, or for a promise: then models are solved at some slopes and none is fitted to bytes.

`slope_solver` solves all matrices at a slope, on a GPU `slope_gpu` does, `slope_size` says what levels will take,
`slope_budget` finds the slope, `slope_tuned` moves what stays continuous.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from quantgolf.blob import VERSION, pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.readback import expected_of, solved_digest
from quantgolf.compress.result import Compressed, Progress, TuneReport, stage
from quantgolf.compress.shelf import Shelf
from quantgolf.compress.slope_budget import NEXT_TO_NOTHING, SlopeFit, power_for
from quantgolf.compress.slope_draft import Draft, OnSlope
from quantgolf.compress.slope_gpu import GpuSlopeSolver
from quantgolf.compress.slope_solver import SlopeSolver
from quantgolf.compress.slope_tuned import TunedFit
from quantgolf.compress.student import Tuned
from quantgolf.compress.targets import coarsest
from quantgolf.compress.tune import Tuning
from quantgolf.encode import Entry, Leveled, encode_model
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions
from quantgolf.solve.finite import finite_levels
from quantgolf.solve.trellis import Trellis
from quantgolf.types import BitPlan, BlobHeader, CodedModel, WeightStats

# Bits a weight: what is tried first, and at most: files of 14 have a KL of 4e-7 on an untrained model.
FIRST, MOST = 4.0, 14.0

Solved = Mapping[str, Draft | OnSlope]


class OneSlope:
    """Files of matrices on the grid of one slope."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        matrices: Matrices,
        kept: dict[str, str],
        stats: Mapping[str, WeightStats],
        options: SolveOptions,
        trellis: Trellis,
        code_bytes: int = 0,
        ranks: Ranks | None = None,
        progress: Progress | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.checkpoint, self.matrices, self.kept, self.stats = checkpoint, matrices, kept, stats
        self.options, self.trellis, self.code_bytes = options, trellis, code_bytes
        self.ranks, self.progress, self.shelf = ranks, progress, shelf

    def within(self, max_bytes: int, tuning: Tuning | None = None) -> Compressed:
        """The file that fills `max_bytes`, code counted, or as much of them as has a use.

        Args:
            max_bytes: of file and code.
            tuning: of what stays continuous, after the solve; None for none.

        Raises:
            BudgetError: no slope fits.
        """
        useful = self.code_bytes + useful_bytes(self.checkpoint, self.matrices)
        limit = min(max_bytes, useful)
        solver = self._solver
        fit = SlopeFit(solver, stage(self.progress, "solving"))
        drafts, tuned, report = fit.within(limit, self.size), None, None
        if tuning is not None:
            tuned_fit = TunedFit(self, fit, limit, tuning, self.ranks or Ranks())
            drafts, tuned, report = tuned_fit.from_plain(drafts)
        result = self._file(solver.priced(drafts), tuned, report)
        if max_bytes <= useful:
            return result
        return replace(
            result, notes=(f"the limit leaves room for more than {MOST:g} bits a weight, which buys nothing",)
        )

    def smallest(self, value_of: Callable[[Compressed], float], most: float) -> Compressed | None:
        """The smallest file found whose `value_of` is at most `most`; None where no file keeps it.

        Args:
            value_of: the same number on all ranks; see `coarsest`.
            most: above 0.
        """
        solver = self._solver
        files: dict[float, Compressed] = {}

        def value_at(power: float) -> float:
            solution = solver.solve(2.0**power, stage(self.progress, f"solving, try {len(files) + 1}"))
            files[power] = self._file(solution)
            return value_of(files[power])

        numbers = sum(math.prod(self.matrices.size(name)) for name in self.matrices)
        start, low, high = (power_for(solver, bits * numbers) for bits in (FIRST, MOST, NEXT_TO_NOTHING))
        best = coarsest(value_at, most, start, low, high)
        return None if best is None else files[best]

    @cached_property
    def _solver(self) -> SlopeSolver:
        """Solves the same at a slope whatever it has solved before."""
        way = GpuSlopeSolver if self.matrices.place.batched else SlopeSolver
        solver = way(self.matrices, self.stats, self.options, self.trellis, self.ranks, self.shelf)
        solver.grids(stage(self.progress, "pricing"))
        return solver

    def _coded(self, solution: Solved, tuned: Tuned | None = None) -> CodedModel:
        return encode_model(self._entries(solution, tuned), self.trellis)

    def _entries(self, solution: Solved, tuned: Tuned | None) -> list[Entry]:
        inside: dict[str, list[Leveled]] = {}
        for name, solved in solution.items():
            block, levels, exponents = self.matrices.blocks[name], solved.levels.astype(np.int32), solved.exponents
            if tuned is not None:
                fine = tuned.fine_row.get(name), tuned.fine_column.get(name)
                exponents = replace(exponents, fine_row=fine[0], fine_column=fine[1])
                # Steps that tuning made longer may reach beyond the dtype's largest number.
                kind = self.matrices.dtype(name), self.trellis, solved.diagonal
                levels = finite_levels(levels, exponents, *kind).astype(np.int32)
            leveled = Leveled(block, exponents, torch.from_numpy(levels), solved.diagonal)
            inside.setdefault(block.parameter, []).append(leveled)
        kept = {} if tuned is None else tuned.kept
        return [
            Entry(name, kept.get(name, tensor), tuple(inside.get(name, ())), self.checkpoint.aliases.get(name, ()))
            for name, tensor in self.checkpoint.tensors.items()
        ]

    def size(self, solution: Solved, tuned: Tuned | None = None) -> int:
        """Bytes of the complete file and the code."""
        return self.code_bytes + len(pack(self._coded(solution, tuned), self.checkpoint.description))

    def _file(
        self, solution: Mapping[str, OnSlope], tuned: Tuned | None = None, report: TuneReport | None = None
    ) -> Compressed:
        entries = self._entries(solution, tuned)
        coded = encode_model(entries, self.trellis)
        data = pack(coded, self.checkpoint.description)
        weights = {
            part.block: solved_digest(part.levels, part.exponents.steps())
            for entry in entries for part in entry.quantized if isinstance(part, Leveled)
        }  # fmt: skip
        reports = {name: solved.report for name, solved in solution.items()}
        return Compressed(
            data=data,
            header=BlobHeader(VERSION, self.checkpoint.description),
            coded=coded,
            expected=expected_of(entries, weights),
            plan=BitPlan({}, len(data), sum(report.loss for report in reports.values())),
            reports=reports,
            kept=self.kept,
            code_bytes=self.code_bytes,
            parameters=self.checkpoint.parameters,
            tuning=report,
        )


def useful_bytes(checkpoint: Checkpoint, matrices: Matrices) -> int:
    """Bytes beyond which a file gains nothing: `MOST` bits a weight, and what is kept as the checkpoint has it."""
    numbers: dict[str, int] = {}
    for name, block in matrices.blocks.items():
        numbers[block.parameter] = numbers.get(block.parameter, 0) + math.prod(matrices.size(name))
    whole = sum(t.nbytes - numbers.get(name, 0) * t.element_size() for name, t in checkpoint.tensors.items())
    return whole + math.ceil(MOST / 8 * sum(numbers.values()))
