"""The dynamic program against all plans of small problems."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.allocate import Cost, allocate
from quantgolf.allocate import knapsack as room
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.types import BitPlan, Choice

some = st.builds(Choice, st.integers(2, 8), st.sampled_from([None, 32, 128]))
choices = st.dictionaries(some, st.builds(Cost, st.integers(0, 500), st.floats(0, 10)), min_size=1, max_size=4)
problems = st.lists(choices, min_size=1, max_size=4).map(lambda some: {f"w{i}": c for i, c in enumerate(some)})


def least_loss(costs: dict[str, dict[Choice, Cost]], max_bytes: int) -> float | None:
    plans = [[costs[n][c] for n, c in zip(costs, chosen, strict=True)] for chosen in product(*costs.values())]
    fitting = [sum(c.loss for c in plan) for plan in plans if sum(c.bytes for c in plan) <= max_bytes]
    return min(fitting, default=None)


@given(problems, st.integers(0, 2000))
def test_optimal_and_within_budget(costs: dict[str, dict[Choice, Cost]], max_bytes: int) -> None:
    expected = least_loss(costs, max_bytes)
    if expected is None:
        with pytest.raises(BudgetError) as caught:
            allocate(costs, max_bytes)
        assert allocate(costs, caught.value.nearest).predicted_bytes == caught.value.nearest
        return
    plan = allocate(costs, max_bytes)
    assert plan.predicted_bytes <= max_bytes
    assert plan.predicted_loss == pytest.approx(expected)
    assert plan.predicted_loss == pytest.approx(sum(costs[n][c].loss for n, c in plan.choices.items()))
    assert plan.predicted_bytes == sum(costs[n][c].bytes for n, c in plan.choices.items())
    assert plan.choices == {n: Choice(plan.bits[n], plan.groups[n]) for n in costs}


@given(problems, st.integers(0, 2000), st.integers(2, 40))
def test_coarse_cells_never_exceed_the_budget(costs: dict[str, dict[Choice, Cost]], max_bytes: int, cells: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CELLS", cells)
        try:
            assert allocate(costs, max_bytes).predicted_bytes <= max_bytes
        except BudgetError as error:
            assert error.nearest > max_bytes


def test_groups_are_chosen_where_they_pay() -> None:
    """Of one width each: smaller groups cost bytes and save loss, and go where they save most."""
    sizes = {None: (100, 8.0), 128: (120, 5.0), 32: (180, 4.0)}
    costs = {
        name: {Choice(4, size): Cost(taken, loss * weight) for size, (taken, loss) in sizes.items()}
        for name, weight in (("a", 1.0), ("b", 3.0))
    }
    found = {limit: allocate(costs, limit).groups for limit in (200, 220, 240, 300, 999)}
    assert found == {
        200: {"a": None, "b": None}, 220: {"a": None, "b": 128}, 240: {"a": 128, "b": 128}, 300: {"a": 128, "b": 32},
        999: {"a": 32, "b": 32},
    }  # fmt: skip
    assert allocate(costs, 999).bits == {"a": 4, "b": 4}


def test_a_plan_without_groups_is_one_of_rows() -> None:
    assert BitPlan({"w": 3}, 0, 0.0).choices == {"w": Choice(3)}


def test_nonsense_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="no width"):
        allocate({"w": {}}, 10)
    with pytest.raises(QuantGolfError, match="w at 2 bits costs nan nats"):
        allocate({"w": {Choice(2): Cost(1, float("nan"))}}, 10)
