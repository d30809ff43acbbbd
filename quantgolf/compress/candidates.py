"""Every (weight, width) a plan may choose: its cost as predicted, and its solved and coded self on demand."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quantgolf.allocate import Cost
from quantgolf.encode import coded_bytes, encode_codes
from quantgolf.solve import Prepared, SolveOptions, Solver, predict, prepare, solve
from quantgolf.types import QTensor, SolveReport, WeightStats


@dataclass(frozen=True)
class Solved:
    """A weight solved at one width, and its codes as they will lie in the file."""

    tensor: QTensor
    report: SolveReport
    codes: bytes


class Candidates:
    """Solves lazily and keeps what it solved, because the budget loop asks for most widths never or twice."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        stats: Mapping[str, WeightStats],
        solver: Solver,
        options: SolveOptions,
    ) -> None:
        self.weights, self.stats, self.solver, self.options = weights, stats, solver, options
        self._prepared: dict[str, Prepared] = {}
        self._solved: dict[tuple[str, int], Solved] = {}

    def predict(self, name: str, bits: int) -> Cost:
        """Cost without solving: codes from nearest rounding, loss from the solver's own error model."""
        counts, loss = predict(self._prepare(name), bits)
        return Cost(coded_bytes(counts), loss)

    def solve(self, name: str, bits: int) -> Solved:
        """The real thing."""
        if (name, bits) not in self._solved:
            tensor, report = solve(self._prepare(name), bits)
            self._solved[name, bits] = Solved(tensor, report, encode_codes(tensor.codes))
        return self._solved[name, bits]

    def _prepare(self, name: str) -> Prepared:
        if name not in self._prepared:
            self._prepared[name] = prepare(self.weights[name], self.stats[name], self.solver, self.options)
        return self._prepared[name]
