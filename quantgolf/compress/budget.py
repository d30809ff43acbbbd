"""The byte budget: plan with predicted costs, solve and code what the plan chose, correct, plan again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from quantgolf.allocate import Cost, allocate, plan_of
from quantgolf.compress.candidates import Candidates
from quantgolf.errors import BudgetError
from quantgolf.types import BitPlan, Choice

# On the demo and the golf model the plan stands still after two to five rounds.
ROUNDS = 12
HOPEFUL = 6  # rounds after which predictions that no file has kept so far are taken for too low


def fit(
    candidates: Candidates,
    costs: Mapping[str, Mapping[Choice, Cost]],
    size_of: Callable[[Mapping[str, Choice]], int],
    max_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> BitPlan:
    """The plan with the least predicted loss whose complete file takes at most `max_bytes`.

    Each round solves and codes what the plan chose and replaces the predicted bytes by the real ones, until a
    plan stands whose every cost is real. Where none fits after `HOPEFUL` rounds, what is not solved yet is taken to be
    as much larger than predicted as the worst that is. Losses stay predicted: judging what is solved by its true loss
    and the others by a prediction would favour whichever the prediction flatters.

    Args:
        candidates: solves and codes on demand.
        costs: predicted, name → choice → cost.
        size_of: bytes of the complete file of a plan (name → choice), and whatever else counts towards the budget.
        max_bytes: for all of that.
        progress: called with (solved, to solve) of the round under way.

    Raises:
        BudgetError: no plan fits; `nearest` is the smallest size found.
    """
    known = {name: dict(choices) for name, choices in costs.items()}
    smallest = {name: min(choices, key=lambda choice: choices[choice].bytes) for name, choices in known.items()}
    overhead, best = 0, None
    for tried in range(ROUNDS):
        try:
            plan = allocate(known if tried < HOPEFUL or best else _wary(costs, known), max_bytes - overhead)
        except BudgetError:
            if best is not None:
                break
            _correct(candidates, known, smallest)
            nearest = size_of(smallest)
            if nearest > max_bytes:
                raise unreachable(max_bytes, nearest, smallest) from None
            plan = allocate({name: {choice: known[name][choice]} for name, choice in smallest.items()}, max_bytes)
        changed = _correct(candidates, known, plan.choices, progress)
        codes = sum(known[name][choice].bytes for name, choice in plan.choices.items())
        size = size_of(plan.choices)
        # Steps, which share a stream, and header differ a little with the plan: this may have to be learned again.
        overhead = size - codes
        if size <= max_bytes:
            better = best is None or plan.predicted_loss < best.predicted_loss
            best = replace(plan, predicted_bytes=size) if better else best
            if not changed:
                break
    if best is None:
        _correct(candidates, known, smallest)
        nearest = size_of(smallest)
        if nearest > max_bytes:
            raise unreachable(max_bytes, nearest, smallest)
        best = replace(plan_of(known, smallest), predicted_bytes=nearest)
    return best


def unreachable(max_bytes: int, nearest: int, choices: Mapping[str, Choice]) -> BudgetError:
    """The error for a budget below `nearest` bytes, the least that these choices (name → choice) take."""
    widths, sizes = {choice.bits for choice in choices.values()}, {choice.group_size for choice in choices.values()}
    which = f"{min(widths)} bits everywhere" if len(widths) == 1 else "the widths given"
    if sizes - {None}:
        which += " and scales of " + " or ".join(
            "rows" if size is None else f"{size} columns" for size in sorted(sizes, key=lambda size: size or 0)
        )
    return BudgetError(
        f"budget of {max_bytes:,} bytes cannot be met: with {which} file and code take up to {nearest:,}; "
        f"give --max-bytes {nearest} or more, or a smaller model",
        nearest,
    )


def _wary(
    costs: Mapping[str, Mapping[Choice, Cost]], known: Mapping[str, Mapping[Choice, Cost]]
) -> dict[str, dict[Choice, Cost]]:
    """What is known, and of what is not (its cost is still the predicted one) a cost that is surely not too low."""
    ratio = max(
        (
            each.bytes / max(1, costs[name][choice].bytes)
            for name, some in known.items()
            for choice, each in some.items()
        ),
        default=1.0,
    )

    def wary(name: str, choice: Choice, cost: Cost) -> Cost:
        return Cost(math.ceil(cost.bytes * ratio), cost.loss) if cost is costs[name][choice] else cost

    return {name: {c: wary(name, c, cost) for c, cost in some.items()} for name, some in known.items()}


def _correct(
    candidates: Candidates,
    known: dict[str, dict[Choice, Cost]],
    choices: Mapping[str, Choice],
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Puts real coded bytes in place of predicted ones for the choices of a plan; says whether any differed."""
    changed = False
    for name, solved in candidates.solve(choices, progress).items():
        choice = choices[name]
        changed |= solved.size != known[name][choice].bytes
        known[name][choice] = Cost(solved.size, known[name][choice].loss)
    return changed
