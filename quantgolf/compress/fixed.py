"""Fixed integer widths: what the allocator, the user, or the same width everywhere chooses, solved once and kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from quantgolf.allocate import Cost, plan_of, widths_by_hand
from quantgolf.blob import pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.budget import fit
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.result import Compressed, Progress, stage
from quantgolf.compress.targets import coarsest
from quantgolf.errors import BudgetError
from quantgolf.ranks import Ranks
from quantgolf.solve import WIDTHS, SolveOptions, Solver
from quantgolf.types import BitPlan, WeightStats

# Bits that a code coded by its entropy takes below its width, and the fewest that one more bit of width adds: Gaussian
# rows at the clips that the search finds take 1.6, 2.6, 3.5 and 4.4 bits at widths of 2 to 5.
BELOW_WIDTH, LEAST_OF_A_BIT = 0.5, 0.7
FIRST_BITS, MOST_BITS = 4.0, 32.0  # of file a parameter: what is tried first for a promise, and at most


class FixedWidths:
    """Files of matrices at fixed widths; nothing is solved twice, however many files are asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        matrices: Matrices,
        kept: dict[str, str],
        stats: Mapping[str, WeightStats],
        solver: Solver,
        options: SolveOptions,
        code_bytes: int = 0,
        ranks: Ranks | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.checkpoint, self.matrices, self.kept, self.solver = checkpoint, matrices, kept, solver
        self.code_bytes, self.progress = code_bytes, progress
        self.candidates = Candidates(matrices, stats, solver, options, ranks)
        self.assembly = Assembly(checkpoint, self.candidates)

    @cached_property
    def costs(self) -> dict[str, dict[int, Cost]]:
        """Of every width of every matrix, predicted."""
        return self.candidates.predict(dict.fromkeys(self.matrices, WIDTHS), stage(self.progress, "predicting"))

    def within(self, max_bytes: int) -> Compressed:
        """The widths of the least predicted loss within `max_bytes`, code counted.

        Raises:
            BudgetError: no widths fit.
        """
        return self._compressed(self._fit(self.costs, max_bytes))

    def smallest(self, value_of: Callable[[Compressed], float], most: float) -> Compressed | None:
        """The smallest file found whose `value_of` is at most `most`; None where the widest codes do not keep it.

        Args:
            value_of: the same number on all ranks; see `coarsest`.
            most: above 0.
        """
        files: dict[int, tuple[Compressed, float]] = {}
        tried: dict[float, Compressed] = {}

        def value_at(saved: float) -> float:
            budget = int(-saved * self.checkpoint.parameters / 8) + self.code_bytes
            try:
                found = self.within(budget)
            except BudgetError as error:
                found = self.within(error.nearest)
            size = len(found.data)
            if size not in files:
                files[size] = found, value_of(found)
            tried[saved] = files[size][0]
            return files[size][1]

        # The value grows fourfold with every bit less.
        best = coarsest(value_at, most, -FIRST_BITS, -MOST_BITS, 0.0)
        return None if best is None else tried[best]

    def by_hand(self, rules: Sequence[tuple[str, int]], max_bytes: int | None = None) -> Compressed:
        """Widths by hand, refused where `max_bytes` are too few for them.

        Raises:
            BudgetError: they do not fit.
            QuantGolfError: as `widths_by_hand`.
        """
        chosen = widths_by_hand(rules, self.matrices)
        costs = self.candidates.predict(
            {name: (bits,) for name, bits in chosen.items()}, stage(self.progress, "predicting")
        )
        return self._compressed(plan_of(costs, chosen) if max_bytes is None else self._fit(costs, max_bytes))

    def uniform(self, max_bytes: int, kept_bytes: int) -> Compressed | None:
        """The widest width that fits everywhere, without a prediction first; None where the narrowest does not fit.

        Args:
            max_bytes: limit of file and code.
            kept_bytes: of them what is about spent on everything but codes.
        """
        numbers = sum(math.prod(self.matrices.size(name)) for name in self.matrices)
        guess = 8 * (max_bytes - self.code_bytes - kept_bytes) / numbers + BELOW_WIDTH
        bits = min(WIDTHS[-1], max(WIDTHS[0], int(guess)))
        best = self._everywhere(bits, max_bytes)
        while best is None and bits > WIDTHS[0]:
            bits -= 1
            best = self._everywhere(bits, max_bytes)
            if best is not None:
                return best
        while best is not None and bits < WIDTHS[-1]:
            if self.code_bytes + len(best.data) + LEAST_OF_A_BIT * numbers / 8 > max_bytes:
                break
            bits += 1
            wider = self._everywhere(bits, max_bytes)
            if wider is None:
                break
            best = wider
        return best

    def _everywhere(self, bits: int, max_bytes: int) -> Compressed | None:
        """All matrices at one width, where that fits."""
        widths = dict.fromkeys(self.matrices, bits)
        solved = self.candidates.solve(widths, stage(self.progress, "solving for the guard"))
        found = self._compressed(BitPlan(widths, 0, sum(each.report.loss for each in solved.values())))
        return found if self.code_bytes + len(found.data) <= max_bytes else None

    def _fit(self, costs: Mapping[str, Mapping[int, Cost]], max_bytes: int) -> BitPlan:
        def size_of(bits: Mapping[str, int]) -> int:
            return self.code_bytes + len(self.assembly.file(bits))

        return fit(self.candidates, costs, size_of, max_bytes, stage(self.progress, "solving"))

    def _compressed(self, plan: BitPlan) -> Compressed:
        solved = self.candidates.solve(plan.bits, stage(self.progress, "solving"))
        coded = self.assembly.coded(plan.bits)
        data = pack(coded, self.assembly.header.model)
        return Compressed(
            data=data,
            header=self.assembly.header,
            coded=coded,
            plan=BitPlan(plan.bits, len(data), plan.predicted_loss),
            reports={name: each.report for name, each in solved.items()},
            kept=self.kept,
            code_bytes=self.code_bytes,
            parameters=self.checkpoint.parameters,
        )
