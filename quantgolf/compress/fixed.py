"""Fixed integer widths, and groups of columns that share a scale: what the allocator, the user, or the same width
everywhere chooses, solved once and kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from quantgolf.allocate import Cost, plan_of, widths_by_hand
from quantgolf.blob import pack
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.budget import fit
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.result import Compressed, Progress, stage
from quantgolf.compress.shelf import Shelf
from quantgolf.compress.targets import coarsest
from quantgolf.encode import Codec
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.solve import WIDTHS, SolveOptions, Solver
from quantgolf.solve.grid import ROWS
from quantgolf.types import BitPlan, Choice, WeightStats

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
        group_sizes: Sequence[int | None] | None = None,
        codec: Codec = "auto",
        shelf: Shelf | None = None,
    ) -> None:
        self.checkpoint, self.matrices, self.kept, self.solver = checkpoint, matrices, kept, solver
        self.code_bytes, self.progress = code_bytes, progress
        self.group_sizes = sizes_of(options, group_sizes)
        plain = self.group_sizes == (None,) and options.grid == ROWS
        self.candidates = Candidates(matrices, stats, solver, options, ranks, codec, not plain, shelf)
        self.assembly = Assembly(checkpoint, self.candidates)

    @cached_property
    def costs(self) -> dict[str, dict[Choice, Cost]]:
        """Of every width of every matrix in every size of groups, predicted."""
        choices = [Choice(bits, size) for size in self.group_sizes for bits in WIDTHS]
        return self.candidates.predict(dict.fromkeys(self.matrices, choices), stage(self.progress, "predicting"))

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
        """Widths by hand, refused where `max_bytes` are too few for them; of several sizes of groups the best choice.

        Raises:
            BudgetError: they do not fit.
            QuantGolfError: as `widths_by_hand`; several sizes of groups and no limit.
        """
        widths = widths_by_hand(rules, self.matrices)
        if max_bytes is None:
            if len(self.group_sizes) > 1:
                raise QuantGolfError(
                    f"--bits gives widths, and of {len(self.group_sizes)} group sizes the best is chosen within a "
                    "limit, expected one size or a limit; give one --group-size, or --max-bytes"
                )
            return self.exactly({name: Choice(bits, self.group_sizes[0]) for name, bits in widths.items()})
        choices = {name: [Choice(bits, size) for size in self.group_sizes] for name, bits in widths.items()}
        costs = self.candidates.predict(choices, stage(self.progress, "predicting"))
        return self._compressed(self._fit(costs, max_bytes))

    def exactly(self, choices: Mapping[str, Choice]) -> Compressed:
        """Every matrix as it is told."""
        costs = self.candidates.predict(
            {name: (choice,) for name, choice in choices.items()}, stage(self.progress, "predicting")
        )
        return self._compressed(plan_of(costs, choices))

    def uniform(self, max_bytes: int, kept_bytes: int) -> Compressed | None:
        """The widest width that fits everywhere, in the largest groups, without a prediction first; None where the
        narrowest does not fit.

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
        choices = dict.fromkeys(self.matrices, Choice(bits, largest_group(self.group_sizes)))
        solved = self.candidates.solve(choices, stage(self.progress, "solving for the guard"))
        plan = plan_of({name: {choices[name]: Cost(0, each.report.loss)} for name, each in solved.items()}, choices)
        found = self._compressed(plan)
        return found if self.code_bytes + len(found.data) <= max_bytes else None

    def _fit(self, costs: Mapping[str, Mapping[Choice, Cost]], max_bytes: int) -> BitPlan:
        def size_of(choices: Mapping[str, Choice]) -> int:
            return self.code_bytes + len(self.assembly.file(choices))

        return fit(self.candidates, costs, size_of, max_bytes, stage(self.progress, "solving"))

    def _compressed(self, plan: BitPlan) -> Compressed:
        solved = self.candidates.solve(plan.choices, stage(self.progress, "solving"))
        coded = self.assembly.coded(plan.choices)
        data = pack(coded, self.assembly.header.model)
        return Compressed(
            data=data,
            header=self.assembly.header,
            coded=coded,
            expected=self.assembly.expected(plan.choices),
            plan=replace(plan, predicted_bytes=len(data)),
            reports={name: each.report for name, each in solved.items()},
            kept=self.kept,
            code_bytes=self.code_bytes,
            parameters=self.checkpoint.parameters,
        )


def sizes_of(options: SolveOptions, group_sizes: Sequence[int | None] | None) -> tuple[int | None, ...]:
    """The sizes of groups to choose from, each once; without any that of `options`.

    Raises:
        QuantGolfError: none, or one that is no size.
    """
    if group_sizes is None:
        return (options.grid.group_size,)
    if not group_sizes:
        raise QuantGolfError("there is no group size to choose from, expected at least one, for example (128, None)")
    return tuple(dict.fromkeys(replace(options.grid, group_size=size).group_size for size in group_sizes))


def largest_group(sizes: Sequence[int | None]) -> int | None:
    """The largest of some sizes of groups; None, which is a row, is larger than all others."""
    return None if None in sizes else max(size for size in sizes if size is not None)
