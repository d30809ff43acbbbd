"""Which tensors get a low-rank correction, if any: where it saves more loss than its bytes would anywhere else."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .low_rank import GROUP, RANK, TENSORS, LowRank, low_rank
from .solve import Solved, Solver, hessian

CANDIDATES = 12  # matrices of greatest predicted loss that a correction under H is tried on


@dataclass(frozen=True)
class Plan:
    """Corrections for the matrices `names`, their singular vectors those under H where `weighted` is on; `saves` is
    the predicted loss (nats a token) that they save beyond what their bytes are worth."""

    way: str
    names: tuple[str, ...] = ()
    weighted: bool = False
    saves: float = 0.0


def correct(solver: Solver, solved: Mapping[str, Solved], plan: Plan) -> dict[str, LowRank]:
    """The corrections of a plan for one solution."""
    return {name: _correction(solver, solved, name, plan.weighted) for name in plan.names}


def loss_of(solver: Solver, solved: Mapping[str, Solved], low: Mapping[str, LowRank]) -> float:
    """The rise of the loss that calibration predicts for a solution, nats a token."""
    return sum(_loss(solver, solved, name, low.get(name)) for name in solver.matrices)


def plans(solver: Solver, solved: Mapping[str, Solved]) -> list[Plan]:
    """Three ways, the best first: as published (the tensors of largest error), by predicted loss under H, and none.

    A byte is worth what it saves as bits of all weights: the loss falls by 2 ln 2 of itself for every bit a weight.
    """
    losses = {name: _loss(solver, solved, name, None) for name in solver.matrices}
    weights = sum(math.prod(solver.matrices.size(name)) for name in solver.matrices)
    price = sum(losses.values()) * 2 * math.log(2) * 8 / weights

    def saves(name: str, weighted: bool) -> float:
        after = _loss(solver, solved, name, _correction(solver, solved, name, weighted))
        return losses[name] - after - price * _bytes(*solver.matrices.size(name))

    far = {name: float(_error(solver, solved, name).norm()) for name in solver.matrices}
    largest = sorted(far, key=lambda name: -far[name])[:TENSORS]
    tried = {name: saves(name, True) for name in sorted(losses, key=lambda name: -losses[name])[:CANDIDATES]}
    chosen = [name for name in sorted(tried, key=lambda name: -tried[name])[:TENSORS] if tried[name] > 0]
    found = [
        Plan("none"),
        Plan("published", tuple(largest), False, sum(saves(name, False) for name in largest)),
        Plan("under H", tuple(chosen), True, sum(tried[name] for name in chosen)),
    ]
    return sorted(found, key=lambda plan: -plan.saves)


def _error(solver: Solver, solved: Mapping[str, Solved], name: str) -> Tensor:
    return solver.matrices[name] - solved[name].weight()


def _correction(solver: Solver, solved: Mapping[str, Solved], name: str, weighted: bool) -> LowRank:
    return low_rank(_error(solver, solved, name), hessian(solver.stats[name]) if weighted else None)


def _loss(solver: Solver, solved: Mapping[str, Solved], name: str, low: LowRank | None) -> float:
    error = _error(solver, solved, name)
    return solver.stats[name].loss(error if low is None else error - low.correction())


def _bytes(rows: int, columns: int) -> float:
    """Of a correction's factors and scales."""
    return RANK * (rows / 4 + columns / 2 + 2 * math.ceil(columns / GROUP)) + 2
