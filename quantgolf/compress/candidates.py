"""Every (matrix, width) a plan may choose: its cost as predicted, and its solved and coded self on demand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantgolf.allocate import Cost
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.place import AT_ONCE, batches
from quantgolf.encode import coded_bytes, encode_codes
from quantgolf.ranks import Ranks
from quantgolf.solve import Prepared, SolveOptions, Solver, predict, prepare, solve
from quantgolf.solve.gptq import feed_back_many
from quantgolf.solve.grid import top_level
from quantgolf.solve.solver import steps_of
from quantgolf.types import QTensor, SolveReport, Steps, WeightStats


@dataclass(frozen=True)
class Solved:
    """A matrix solved at one width: steps [N] fp16, and its codes as they will lie in the file."""

    row: Tensor
    codes: bytes
    report: SolveReport


class Candidates:
    """Solves lazily and keeps what it solved, because the budget loop asks for most widths never or twice.

    One matrix is prepared at a time, so that memory holds one factor and the coded results; on a GPU, where `place`
    says that matrices are solved, a batch of equal shapes and widths where there is feedback to wait for. Codes are
    counted and coded on the CPU. With several ranks each does a share of the work and all know all results.
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

        jobs = [[each] for each in missing]
        if self.solver == "gptq" and self.matrices.place.batched:
            most = min(self.ranks.gather(self.matrices.place.room(AT_ONCE)))
            jobs = batches(missing, lambda each: (*self.matrices.size(each[0]), each[1]), most)

        def work(job: int) -> list[Solved]:
            names, bits = [name for name, _ in jobs[job]], jobs[job][0][1]
            with self.matrices.place.entered():
                if len(names) == 1:
                    found = [solve(self._prepare(names[0]), bits)]
                else:
                    found = solve_many([self._prepare(name) for name in names], bits)
            return [Solved(tensor.steps.row, encode_codes(tensor.codes), report) for tensor, report in found]

        efforts = [sum(self._effort(name) for name, _ in job) for job in jobs]
        found = self.ranks.spread(efforts, work, _counted(progress, len(jobs)))
        for job, solved in zip(jobs, found, strict=True):
            self._solved.update(zip(job, solved, strict=True))
        return {name: self._solved[name, bits] for name, bits in bits_of.items()}

    def _prepare(self, name: str) -> Prepared:
        if self._prepared is None or self._prepared[0] != name:
            self._prepared = None  # the last one goes before the next one comes
            stats = self.matrices.place.moved(self.stats[name])
            self._prepared = name, prepare(self.matrices.there(name), stats, self.solver, self.options)
        return self._prepared[1]

    def _effort(self, name: str) -> float:
        """What a matrix costs to solve, in arbitrary units: feedback over rows, and factoring the Hessian."""
        rows, columns = self.matrices.size(name)
        return float(rows + columns) * columns**2


def _counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(min(done, total), total)


def solve_many(prepared: Sequence[Prepared], bits: int) -> list[tuple[QTensor, SolveReport]]:
    """What `solve` gives for matrices of equal shape on a GPU, whose columns wait for each other in step."""
    steps = [steps_of(each, bits) for each in prepared]
    factors = [each.factor for each in prepared if each.factor is not None]
    weights = torch.stack([each.weight for each in prepared])
    codes = feed_back_many(weights, factors, torch.stack(steps), top_level(bits), prepared[0].options.block_size)
    found = []
    for each, factor, step, one in zip(prepared, factors, steps, codes, strict=True):
        loss = each.stats.loss(QTensor(one, Steps(step), bits).dequantize() - each.weight)
        report = SolveReport(
            each.stats.name, each.solver, bits, loss, factor.damp, factor.retries, int(factor.dead.sum())
        )
        found.append((QTensor(one.cpu(), Steps(step.cpu()), bits), report))
    return found
