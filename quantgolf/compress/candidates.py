"""Every (matrix, choice) a plan may take: its cost as predicted, and its solved and coded self on demand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantgolf.allocate import Cost
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.place import AT_ONCE, batches
from quantgolf.compress.readback import solved_digest
from quantgolf.compress.shelf import Shelf
from quantgolf.compress.sizes import predicted_bytes
from quantgolf.encode import Codec, encode_codes, side_bytes
from quantgolf.ranks import Ranks
from quantgolf.solve import Prepared, SolveOptions, Solver, predict, prepare, solve
from quantgolf.solve.gptq import feed_back_many
from quantgolf.solve.grid import Rounding
from quantgolf.solve.solver import reported, steps_of
from quantgolf.types import Choice, Groups, QTensor, SolveReport, Steps, WeightStats


@dataclass(frozen=True)
class Solved:
    """A matrix solved one way.

    Attributes:
        steps: fp16 [N], or scales and zeros of groups.
        codes: as they will lie in the file.
        size: bytes of them there, and those that scales should take where they are counted.
        weights: digest of what codes and steps stand for, from before they were coded (`readback.solved_digest`).
    """

    steps: Tensor | Groups
    codes: bytes
    size: int
    report: SolveReport
    weights: str

    def stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors by name and facts that JSON holds."""
        tensors = {"codes": torch.frombuffer(bytearray(self.codes), dtype=torch.uint8)} if self.codes else {}
        facts = {"size": self.size, "report": asdict(self.report), "weights": self.weights, "group_size": None}
        if not isinstance(self.steps, Groups):
            return tensors | {"steps": self.steps}, facts
        zero = {} if self.steps.zero is None else {"zero": self.steps.zero}
        return tensors | {"scale": self.steps.scale} | zero, facts | {"group_size": self.steps.size}

    @staticmethod
    def from_stored(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> "Solved":
        """What `stored` gave."""
        size = facts["group_size"]
        steps = tensors["steps"] if size is None else Groups(tensors["scale"], tensors.get("zero"), size)
        codes = tensors["codes"].numpy().tobytes() if "codes" in tensors else b""
        return Solved(steps, codes, facts["size"], SolveReport(**facts["report"]), facts["weights"])


class Candidates:
    """Solves lazily and keeps what it solved, because the budget loop asks for most choices never or twice.

    One matrix is prepared at a time, so that memory holds one factor and the coded results; on a GPU, where `place`
    says that matrices are solved, a batch of equal shapes and choices where there is feedback to wait for. Codes are
    counted and coded on the CPU. With several ranks each does a share of the work and all know all results.

    Scales and zeros share streams, so that what they take is predicted (`count_scales`). Steps of rows that are the
    only choice are not counted: they take the same at any width.
    """

    def __init__(
        self,
        matrices: Matrices,
        stats: Mapping[str, WeightStats],
        solver: Solver,
        options: SolveOptions,
        ranks: Ranks | None = None,
        codec: Codec = "auto",
        count_scales: bool = False,
        shelf: Shelf | None = None,
    ) -> None:
        self.matrices, self.stats, self.solver, self.options = matrices, stats, solver, options
        self.ranks, self.codec, self.count_scales, self.shelf = ranks or Ranks(), codec, count_scales, shelf
        self._prepared: tuple[str, Prepared] | None = None
        self._solved: dict[tuple[str, Choice], Solved] = {}

    def predict(
        self, choices: Mapping[str, Iterable[Choice]], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, dict[Choice, Cost]]:
        """Costs without solving: codes from nearest rounding, loss from the solver's own error model."""
        names = list(choices)

        def work(job: int) -> dict[Choice, Cost]:
            costs = {}
            for choice in choices[names[job]]:
                found = predict(self._prepare(names[job], choice), choice.bits)
                costs[choice] = Cost(predicted_bytes(found.counts, self.codec) + self._side(found.steps), found.loss)
            return costs

        found = self.ranks.spread([self._effort(name) for name in names], work, _counted(progress, len(names)))
        return dict(zip(names, found, strict=True))

    def solve(
        self, choices: Mapping[str, Choice], progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Solved]:
        """The real thing, for the choices of a plan."""
        missing = [item for item in choices.items() if item not in self._solved and not self._kept(*item)]
        jobs = [[each] for each in missing]
        if self.solver == "gptq" and self.matrices.place.batched:
            most = min(self.ranks.gather(self.matrices.place.room(AT_ONCE)))
            alike = {choice: at for at, choice in enumerate(dict.fromkeys(choices.values()))}
            jobs = batches(missing, lambda each: (*self.matrices.size(each[0]), alike[each[1]]), most)

        def work(job: int) -> list[Solved]:
            names, choice = [name for name, _ in jobs[job]], jobs[job][0][1]
            with self.matrices.place.entered():
                if len(names) == 1:
                    found = [solve(self._prepare(names[0], choice), choice.bits)]
                else:
                    found = solve_many([self._prepare(name, choice) for name in names], choice.bits)
            solved = [self._coded(*each) for each in found]
            for item, each in zip(jobs[job], solved, strict=True):
                if self.shelf is not None:
                    self.shelf.keep(self._decided(*item), *each.stored())
            return solved

        efforts = [sum(self._effort(name) for name, _ in job) for job in jobs]
        found = self.ranks.spread(efforts, work, _counted(progress, len(jobs)))
        for job, solved in zip(jobs, found, strict=True):
            self._solved.update(zip(job, solved, strict=True))
        return {name: self._solved[name, choice] for name, choice in choices.items()}

    def _kept(self, name: str, choice: Choice) -> bool:
        """Whether an earlier run has solved it; then it is known from here on."""
        found = None if self.shelf is None else self.shelf.find(*self._decided(name, choice))
        if found is not None:
            self._solved[name, choice] = Solved.from_stored(*found)
        return found is not None

    def _decided(self, name: str, choice: Choice) -> tuple[object, ...]:
        """All that decides how a matrix is solved and coded."""
        place = self.matrices.place
        return name, choice, self.solver, self.options, self.codec, self.count_scales, place.device.type, place.batched

    def _coded(self, tensor: QTensor, report: SolveReport) -> Solved:
        codes = encode_codes(tensor.codes, self.codec)
        size, weights = len(codes) + self._side(tensor.steps), solved_digest(tensor.codes, tensor.steps)
        return Solved(as_coded(tensor.steps), codes, size, report, weights)

    def _side(self, steps: Steps | Groups) -> int:
        return side_bytes(as_coded(steps)) if self.count_scales else 0

    def _prepare(self, name: str, choice: Choice) -> Prepared:
        if self._prepared is None or self._prepared[0] != name:
            self._prepared = None  # the last one goes before the next one comes
            stats = self.matrices.place.moved(self.stats[name])
            weight, dtype = self.matrices.there(name), self.matrices.dtype(name)
            self._prepared = name, prepare(weight, stats, self.solver, self.options, dtype)
        options = replace(self.options, grid=replace(self.options.grid, group_size=choice.group_size))
        return replace(self._prepared[1], options=options)

    def _effort(self, name: str) -> float:
        """What a matrix costs to solve, in arbitrary units: feedback over rows, and factoring the Hessian."""
        rows, columns = self.matrices.size(name)
        return float(rows + columns) * columns**2


def as_coded(steps: Steps | Groups) -> Tensor | Groups:
    """Steps as they are coded."""
    return steps.row if isinstance(steps, Steps) else steps


def _counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(min(done, total), total)


def solve_many(prepared: Sequence[Prepared], bits: int) -> list[tuple[QTensor, SolveReport]]:
    """What `solve` gives for matrices of equal shape on a GPU, whose columns wait for each other in step."""
    steps = [steps_of(each, bits) for each in prepared]
    roundings = [Rounding.of(each, bits, prepared[0].weight.shape[1]) for each in steps]
    factors = [each.factor for each in prepared if each.factor is not None]
    weights = torch.stack([each.weight for each in prepared])
    codes = feed_back_many(weights, factors, roundings, prepared[0].options.block_size)
    return [reported(each, QTensor(one, step, bits)) for each, step, one in zip(prepared, steps, codes, strict=True)]
