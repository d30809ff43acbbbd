"""The dynamic program against all plans of small problems."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.allocate import Cost, allocate
from quantgolf.allocate import knapsack as room
from quantgolf.errors import BudgetError, QuantGolfError

choices = st.dictionaries(
    st.integers(2, 8), st.builds(Cost, st.integers(0, 500), st.floats(0, 10)), min_size=1, max_size=4
)
problems = st.lists(choices, min_size=1, max_size=4).map(lambda some: {f"w{i}": c for i, c in enumerate(some)})


def least_loss(costs: dict[str, dict[int, Cost]], max_bytes: int) -> float | None:
    plans = [[costs[n][b] for n, b in zip(costs, bits, strict=True)] for bits in product(*costs.values())]
    fitting = [sum(c.loss for c in plan) for plan in plans if sum(c.bytes for c in plan) <= max_bytes]
    return min(fitting, default=None)


@given(problems, st.integers(0, 2000))
def test_optimal_and_within_budget(costs: dict[str, dict[int, Cost]], max_bytes: int) -> None:
    expected = least_loss(costs, max_bytes)
    if expected is None:
        with pytest.raises(BudgetError) as caught:
            allocate(costs, max_bytes)
        assert allocate(costs, caught.value.nearest).predicted_bytes == caught.value.nearest
        return
    plan = allocate(costs, max_bytes)
    assert plan.predicted_bytes <= max_bytes
    assert plan.predicted_loss == pytest.approx(expected)
    assert plan.predicted_loss == pytest.approx(sum(costs[n][b].loss for n, b in plan.bits.items()))


@given(problems, st.integers(0, 2000), st.integers(2, 40))
def test_coarse_cells_never_exceed_the_budget(costs: dict[str, dict[int, Cost]], max_bytes: int, cells: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CELLS", cells)
        try:
            assert allocate(costs, max_bytes).predicted_bytes <= max_bytes
        except BudgetError as error:
            assert error.nearest > max_bytes


def test_nonsense_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="no width"):
        allocate({"w": {}}, 10)
    with pytest.raises(QuantGolfError, match="nan nats"):
        allocate({"w": {2: Cost(1, float("nan"))}}, 10)
