"""Every (matrix, width) a plan may choose: its cost as predicted, and its solved and coded self on demand."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from quantgolf.allocate import Cost
from quantgolf.compress.matrices import Matrices
from quantgolf.encode import coded_bytes, encode_codes
from quantgolf.ranks import Ranks
from quantgolf.solve import Prepared, SolveOptions, Solver, predict, prepare, solve
from quantgolf.types import SolveReport, WeightStats


@dataclass(frozen=True)
class Solved:
    """A matrix solved at one width: steps [N] fp16, and its codes as they will lie in the file."""

    row: Tensor
    codes: bytes
    report: SolveReport


class Candidates:
    """Solves lazily and keeps what it solved, because the budget loop asks for most widths never or twice.

    One matrix is prepared at a time, so that memory holds one factor and the coded results. With several ranks each
    does a share of the work and all know all results.
    """

    def __init__(
        self,
        matrices: Matrices,
        stats: Mapping[str, WeightStats],
        solver: Solver,
        options: SolveOptions,
        ranks: Ranks | None = None,
    ) -> None:
        self.matrices, self.stats, self.solver, self.options = matrices, stats, solver, options
        self.ranks = ranks or Ranks()
        self._prepared: tuple[str, Prepared] | None = None
        self._solved: dict[tuple[str, int], Solved] = {}

    def predict(
        self, widths: Mapping[str, Iterable[int]], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, dict[int, Cost]]:
        """Costs without solving: codes from nearest rounding, loss from the solver's own error model."""
        names = list(widths)

        def work(job: int) -> dict[int, Cost]:
            prepared = self._prepare(names[job])
            costs = {}
            for bits in widths[names[job]]:
                counts, loss = predict(prepared, bits)
                costs[bits] = Cost(coded_bytes(counts), loss)
            return costs

        found = self.ranks.spread([self._effort(name) for name in names], work, _counted(progress, len(names)))
        return dict(zip(names, found, strict=True))

    def solve(
        self, bits_of: Mapping[str, int], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Solved]:
        """The real thing, for the widths of a plan."""
        missing = [(name, bits) for name, bits in bits_of.items() if (name, bits) not in self._solved]

        def work(job: int) -> Solved:
            name, bits = missing[job]
            tensor, report = solve(self._prepare(name), bits)
            return Solved(tensor.steps.row, encode_codes(tensor.codes), report)

        found = self.ranks.spread([self._effort(name) for name, _ in missing], work, _counted(progress, len(missing)))
        self._solved.update(zip(missing, found, strict=True))
        return {name: self._solved[name, bits] for name, bits in bits_of.items()}

    def _prepare(self, name: str) -> Prepared:
        if self._prepared is None or self._prepared[0] != name:
            self._prepared = None  # the last one goes before the next one comes
            self._prepared = name, prepare(self.matrices[name], self.stats[name], self.solver, self.options)
        return self._prepared[1]

    def _effort(self, name: str) -> float:
        """What a matrix costs to solve, in arbitrary units: feedback over rows, and factoring the Hessian."""
        rows, columns = self.matrices.size(name)
        return float(rows + columns) * columns**2


def _counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(min(done, total), total)
