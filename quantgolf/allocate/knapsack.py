"""Widths and groups under a byte budget: a multiple-choice knapsack, solved exactly on a fine grid of bytes.

One choice must be taken for each weight; its price is what codes and scales take in the file once entropy-coded, its
worth the loss it avoids. The Lagrangian relaxation (Shoham & Gersho 1988) only reaches the corners of the
convex hull and leaves a gap before the limit; with a few hundred weights the dynamic program is as fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.types import BitPlan, Choice

CELLS = 1 << 16


@dataclass(frozen=True)
class Cost:
    """What one choice for one weight costs: bytes in the file, and rise of the loss in nats per token."""

    bytes: int
    loss: float


def allocate(costs: Mapping[str, Mapping[Choice, Cost]], max_bytes: int) -> BitPlan:
    """The choices with the least summed loss among those that take at most `max_bytes`.

    Bytes are rounded up to a grid of `CELLS` cells of the span between the smallest and the largest plan, so
    the answer never exceeds the budget and is optimal to within one cell a weight.

    Args:
        costs: name → choice → cost, at least one choice each.
        max_bytes: for all codes and scales together; what else the file holds is the caller's to subtract.

    Raises:
        BudgetError: even the smallest choices take more; `nearest` tells their bytes.
        QuantGolfError: a weight without choices, or a cost that is not a number.
    """
    for name, choices in costs.items():
        if not choices:
            raise QuantGolfError(f"allocation: {name} has no width to choose from, expected at least one")
        for choice, cost in choices.items():
            if not np.isfinite(cost.loss):
                raise QuantGolfError(
                    f"allocation: {name} at {choice.bits} bits costs {cost.loss} nats, expected a number"
                )
    smallest = {name: min(cost.bytes for cost in choices.values()) for name, choices in costs.items()}
    largest = {name: max(cost.bytes for cost in choices.values()) for name, choices in costs.items()}
    room = min(max_bytes, sum(largest.values())) - sum(smallest.values())
    if room < 0:
        raise BudgetError(
            f"{max_bytes:,} bytes are too few for the codes: the smallest widths take {sum(smallest.values()):,}",
            nearest=sum(smallest.values()),
        )
    cell = max(1, -(-room // CELLS))
    cells = room // cell
    # best[c]: least loss with at most c cells above the smallest bytes; chosen: which choice reached it.
    best = np.zeros(cells + 1)
    chosen: dict[str, np.ndarray] = {}
    for name, choices in costs.items():
        updated = np.full(cells + 1, np.inf)
        which = np.zeros(cells + 1, dtype=np.uint16)
        for at, cost in enumerate(choices.values()):
            extra = -(-(cost.bytes - smallest[name]) // cell)
            if extra > cells:
                continue
            candidate = best[: cells + 1 - extra] + cost.loss
            better = candidate < updated[extra:]
            updated[extra:][better] = candidate[better]
            which[extra:][better] = at
        best, chosen[name] = updated, which
    found: dict[str, Choice] = {}
    left = cells
    for name in reversed(list(costs)):
        found[name] = list(costs[name])[chosen[name][left]]
        left -= -(-(costs[name][found[name]].bytes - smallest[name]) // cell)
    return plan_of(costs, {name: found[name] for name in costs})


def plan_of(costs: Mapping[str, Mapping[Choice, Cost]], choices: Mapping[str, Choice]) -> BitPlan:
    """The plan of the given choices, with the bytes and the loss that `costs` says they have."""
    taken = [costs[name][choice] for name, choice in choices.items()]
    bits = {name: choice.bits for name, choice in choices.items()}
    groups = {name: choice.group_size for name, choice in choices.items()}
    return BitPlan(bits, sum(cost.bytes for cost in taken), sum(cost.loss for cost in taken), groups)
