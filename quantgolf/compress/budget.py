"""The byte budget: plan with predicted costs, solve and code what the plan chose, correct, plan again."""

from collections.abc import Callable, Mapping

from quantgolf.allocate import Cost, allocate
from quantgolf.compress.candidates import Candidates
from quantgolf.errors import BudgetError
from quantgolf.types import BitPlan

# On the demo and the golf model the plan stands still after two to five rounds.
ROUNDS = 12


def fit(
    candidates: Candidates,
    costs: Mapping[str, Mapping[int, Cost]],
    size_of: Callable[[Mapping[str, int]], int],
    max_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> BitPlan:
    """The plan with the least predicted loss whose complete file takes at most `max_bytes`.

    Each round solves and codes what the plan chose and replaces the predicted bytes by the real ones, until a
    plan stands whose every cost is real. Losses stay predicted: judging solved widths by their true loss and
    the others by a prediction would favour whichever the prediction flatters.

    Args:
        candidates: solves and codes on demand.
        costs: predicted, name → width → cost.
        size_of: bytes of the complete file of a plan (name → width), and whatever else counts towards the budget.
        max_bytes: for all of that.
        progress: called with (solved, to solve) of the round under way.

    Raises:
        BudgetError: no plan fits; `nearest` is the smallest size found.
    """
    known = {name: dict(choices) for name, choices in costs.items()}
    smallest = {name: min(choices, key=lambda bits: choices[bits].bytes) for name, choices in known.items()}
    overhead, best = 0, None
    for _ in range(ROUNDS):
        try:
            plan = allocate(known, max_bytes - overhead)
        except BudgetError:
            if best is not None:
                break
            _correct(candidates, known, smallest)
            nearest = size_of(smallest)
            if nearest > max_bytes:
                raise unreachable(max_bytes, nearest, smallest) from None
            plan = allocate({name: {bits: known[name][bits]} for name, bits in smallest.items()}, max_bytes)
        changed = _correct(candidates, known, plan.bits, progress)
        codes = sum(known[name][bits].bytes for name, bits in plan.bits.items())
        size = size_of(plan.bits)
        # Steps and header differ a little with the plan, so that this may have to be learned again.
        overhead = size - codes
        if size <= max_bytes:
            better = best is None or plan.predicted_loss < best.predicted_loss
            best = BitPlan(plan.bits, size, plan.predicted_loss) if better else best
            if not changed:
                break
    if best is None:
        _correct(candidates, known, smallest)
        raise unreachable(max_bytes, size_of(smallest), smallest)
    return best


def unreachable(max_bytes: int, nearest: int, bits: Mapping[str, int]) -> BudgetError:
    """The error for a budget below `nearest` bytes, the least that widths `bits` (name → width) take."""
    widths = sorted(set(bits.values()))
    which = f"{widths[0]} bits everywhere" if len(widths) == 1 else "the widths given"
    return BudgetError(
        f"budget of {max_bytes:,} bytes cannot be met: with {which} file and code take up to {nearest:,}; "
        f"give --max-bytes {nearest} or more, or a smaller model",
        nearest,
    )


def _correct(
    candidates: Candidates,
    known: dict[str, dict[int, Cost]],
    bits_of: Mapping[str, int],
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Puts real coded bytes in place of predicted ones for the widths of a plan; says whether any differed."""
    changed = False
    for name, solved in candidates.solve(bits_of, progress).items():
        bits, real = bits_of[name], len(solved.codes)
        changed |= real != known[name][bits].bytes
        known[name][bits] = Cost(real, known[name][bits].loss)
    return changed
