"""What statistics say an error costs, against the trace in float64."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import quantgolf.types
from quantgolf.types import WeightStats, WeightUse


@pytest.fixture(autouse=True)
def few_rows_at_once() -> Iterator[None]:
    """Errors are priced some rows at a time; here seldom more than three."""
    before, quantgolf.types.ROWS_AT_ONCE = quantgolf.types.ROWS_AT_ONCE, 24
    yield
    quantgolf.types.ROWS_AT_ONCE = before


def second_moment(size: int, seed: int) -> Tensor:
    drawn = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed))
    return drawn.T @ drawn / (2 * size)


def use_of(rows: int, columns: int, seed: int, known: bool = True) -> WeightUse:
    outputs = second_moment(rows, seed)
    column = second_moment(columns, seed + 1)
    return WeightUse("linear", outputs.diagonal().clone(), column, 2 * rows, outputs if known else None)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.lists(st.booleans(), min_size=1, max_size=3), st.integers(0, 99))
def test_loss_is_the_trace(rows: int, columns: int, known: list[bool], seed: int) -> None:
    uses = tuple(use_of(rows, columns, seed + 2 * index, each) for index, each in enumerate(known))
    error = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    expected = 0.0
    for use in uses:
        felt = use.row.double().diag() if use.outputs is None else use.outputs.double()
        expected += 0.5 * float((felt @ error.double() @ use.column.double() @ error.double().T).trace())
    assert WeightStats("w", uses, 1).loss(error) == pytest.approx(expected, rel=1e-4)
    assert WeightStats("w", uses, 1).loss(error.half().to(torch.bfloat16)) == pytest.approx(expected, rel=0.1)


def test_errors_of_rows_that_go_together_cost_more_or_less_than_apart() -> None:
    """Two rows whose gradients are the same: errors that cancel cost nothing."""
    both = WeightUse("linear", torch.ones(2), torch.eye(3), 9, torch.ones(2, 2))
    apart = WeightUse("linear", torch.ones(2), torch.eye(3), 9)
    error = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 2.0, -0.5]])
    assert WeightStats("w", (both,), 1).loss(error) == 0
    assert WeightStats("w", (both,), 1).loss(error.abs()) == 2 * WeightStats("w", (apart,), 1).loss(error) > 0


@settings(deadline=None)  # the first comparison imports what it needs
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(1e-12, 1e12))
def test_outputs_have_the_row_weights_on_their_diagonal(rows: int, columns: int, seed: int, scale: float) -> None:
    use = use_of(rows, columns, seed)
    assert use.outputs is not None
    scaled = WeightUse("linear", scale * use.row, use.column, use.visits, scale * use.outputs)
    stats = WeightStats("w", (scaled,), 1)
    outputs = stats.outputs()
    assert outputs is not None and outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.diagonal(), stats.row_weight(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(outputs, use.outputs / use.row.mean(), rtol=1e-4, atol=1e-6)
    assert float(outputs.trace()) == pytest.approx(rows, rel=1e-5)


def test_outputs_that_serve_no_solver_are_none() -> None:
    use = use_of(4, 3, 0)
    silent = WeightUse("linear", torch.zeros(4), use.column, 9, torch.zeros(4, 4))
    unseen = WeightUse("linear", use.row, torch.zeros(3, 3), 9, use.outputs)
    for uses in ((use, use), (use_of(4, 3, 0, known=False),), (silent,), (unseen,)):
        assert WeightStats("w", uses, 1).outputs() is None
    assert WeightStats("w", (use,), 1).outputs() is not None


@settings(deadline=None)
@given(st.integers(-36, 36), st.integers(-36, 36), st.integers(-30, 30), st.booleans(), st.integers(0, 99))
def test_sizes_that_fp32_does_not_hold(felt: int, moment: int, weight: int, known: bool, seed: int) -> None:
    """Products of numbers that fp32 holds each: nothing is lost, infinite or NaN; shares are those of plain ones."""
    plain = use_of(4, 6, seed, known)
    column = plain.column * 10.0**moment
    row, outputs = (None if s is None else s * 10.0**felt for s in (plain.row, plain.outputs))
    if felt < 0 and float(plain.row.min()) * 10.0**felt < 1e-37:
        return  # subnormal: its digits are gone before anybody multiplies
    assert row is not None
    stats = WeightStats("w", (WeightUse("linear", row, column, 9, outputs),), 1)
    error = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) * 10.0**weight
    whole = row.double().diag() if outputs is None else outputs.double()
    expected = 0.5 * float((whole @ error.double() @ column.double() @ error.double().T).trace())
    assert stats.loss(error) == pytest.approx(expected, rel=1e-3)
    hessian = row.double().mean() * column.double()
    torch.testing.assert_close(stats.hessian().double(), hessian, rtol=1e-5, atol=1e-6 * float(hessian.max()))
    felt_by = WeightStats("w", (plain,), 1)
    torch.testing.assert_close(stats.row_weight(), felt_by.row_weight())
    if known:
        torch.testing.assert_close(stats.outputs(), felt_by.outputs())
