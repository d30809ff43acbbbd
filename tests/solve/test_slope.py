"""One slope against a slow reference in plain loops, and the promise it makes: every weight's error costs the same."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions
from quantgolf.solve.gptq import SMALL, factorise
from quantgolf.solve.slope import ROWS_AT_ONCE, prepare_slope, row_parts, solve_rows, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightStats, WeightUse


def case(rows: int = 24, columns: int = 20, seed: int = 0) -> tuple[Tensor, WeightStats]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -1.5, columns)[:, None]
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    felt = torch.rand(rows, generator=generator) ** 3
    use = WeightUse("linear", felt, inputs.T @ inputs / len(inputs), visits=len(inputs))
    return torch.randn(rows, columns, generator=generator), WeightStats("w", (use,), tokens=len(inputs))


def reference(
    weight: Tensor, order: list[int], upper: NDArray[np.float64], steps: NDArray[np.float64], trellis: Trellis
) -> NDArray[np.int32]:
    """GPTQ one number at a time."""
    rest = weight.double().numpy().copy()
    levels = np.zeros(rest.shape, dtype=np.int32)
    for at, j in enumerate(order):
        levels[:, j] = trellis.quantize(rest[:, j] / steps[:, j])
        error = (rest[:, j] - levels[:, j] * steps[:, j]) / upper[at, at]
        for later in range(at + 1, len(order)):
            rest[:, order[later]] -= upper[at, later] * error
    return levels


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("block_size", [1, 7, 128])
def test_levels_are_those_of_plain_loops(states: int, block_size: int) -> None:
    weight, stats = case()
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    row, column, _ = grid.powers(0.02)
    found = solve_slope(weight, feedback, row, column, Trellis(states, 10), block_size)
    steps = 2.0 ** ((row[:, None] + column[None, :].astype(np.int64)) / 4)
    expected = reference(
        weight, feedback.columns.order.tolist(), feedback.columns.upper.numpy(), steps, Trellis(states, 10)
    )
    assert (found == expected).mean() > 0.995  # the order of additions may tip a tie


def test_steps_are_those_of_the_design() -> None:
    """step = c · G_ii^(-1/2) · U_jj, to the nearest quarter octave, U in the order columns are processed."""
    weight, stats = case()
    grid, feedback = prepare_slope(weight, stats, SolveOptions(act_order=True))
    row, column, spread = grid.powers(0.5)
    felt = stats.row_weight().double().clamp(min=SolveOptions().least_row * float(stats.row_weight().mean()))
    u = torch.empty(20, dtype=torch.float64)
    u[feedback.columns.order] = feedback.columns.upper.diagonal().double()
    exact = torch.log2(0.5 * felt[:, None] ** -0.5 * u[None, :]) * 4
    assert (torch.from_numpy(row[:, None] + column[None, :].astype(np.int16)) - exact).abs().max() <= 1.0
    assert spread == round(4 * float(weight.double().square().mean().sqrt().log2()))
    assert not torch.equal(feedback.columns.order, torch.arange(20))


def test_half_the_slope_costs_a_bit_and_quarters_the_loss() -> None:
    weight, stats = case(128, 32)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    losses = []
    for slope in (0.02, 0.01):
        row, column, _ = grid.powers(slope)
        levels = solve_slope(weight, feedback, row, column, Trellis(8))
        restored = torch.from_numpy(levels * 2.0 ** ((row[:, None] + column[None, :].astype(np.int64)) / 4)).float()
        losses.append(stats.loss(restored - weight))
    assert losses[0] / losses[1] == pytest.approx(4, rel=0.15)


def test_dead_columns_are_zero_and_bad_weights_refused() -> None:
    weight, stats = case()
    use = stats.uses[0]
    column = use.column.clone()
    column[3], column[:, 3] = 0, 0
    silent = WeightStats("w", (WeightUse("linear", use.row, column, use.visits),), stats.tokens)
    grid, feedback = prepare_slope(weight, silent, SolveOptions())
    row, powers, _ = grid.powers(0.02)
    assert not solve_slope(weight, feedback, row, powers, Trellis(8))[:, 3].any()
    with pytest.raises(QuantGolfError, match="NaN or infinite"):
        prepare_slope(torch.full_like(weight, torch.nan), stats, SolveOptions())
    with pytest.raises(QuantGolfError, match="calibrate this model anew"):
        prepare_slope(weight[:5], stats, SolveOptions())


@pytest.mark.parametrize("rows", [1, 40, ROWS_AT_ONCE, ROWS_AT_ONCE + 60, 2 * ROWS_AT_ONCE + 1])
@pytest.mark.parametrize("restart", [40, 4 * ROWS_AT_ONCE])
def test_parts_are_whole_segments_and_all_rows(rows: int, restart: int) -> None:
    parts = row_parts(rows, Trellis(8, restart))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.start % restart == 0 for part in parts)
    assert max(part.stop - part.start for part in parts) <= max(ROWS_AT_ONCE, restart)


def test_rows_that_are_solved_alone_have_the_same_levels() -> None:
    weight, stats = case(100, 40)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    row, column, _ = grid.powers(0.02)
    trellis = Trellis(8, 16)
    whole = solve_slope(weight, feedback, row, column, trellis)
    some = np.r_[16:32, 64:80, 96:100]  # the last segment is a short one
    alone = solve_rows(weight[some], feedback.columns, row[some], column, trellis)
    assert alone.shape == (40, 36) and alone.any()
    assert np.array_equal(alone, whole[some].T)


@pytest.mark.parametrize("size", [SMALL - 1, SMALL + 1, 3 * SMALL + 5])
def test_large_factors_are_those_of_the_inverse(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2 * size, size, generator=generator) * torch.logspace(0, -2, size)
    hessian = inputs.T @ inputs / len(inputs)
    factor = factorise(hessian, 0.01, True, "w")
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(size, dtype=torch.float64)
    damped = damped[factor.order][:, factor.order]
    assert torch.equal(factor.upper, factor.upper.triu())
    assert torch.allclose(factor.upper.T @ factor.upper @ damped, torch.eye(size, dtype=torch.float64), atol=1e-9)


def test_exponents_of_zero_give_every_weight_the_same_step() -> None:
    weight, stats = case()
    plain, _ = prepare_slope(weight, stats, SolveOptions(row_exponent=0.0, column_exponent=0.0))
    row, column, _ = plain.powers(0.5)
    assert len(set(row.tolist())) == len(set(column.tolist())) == 1
    full, half = (prepare_slope(weight, stats, SolveOptions(row_exponent=e, column_exponent=e))[0] for e in (1.0, 0.5))
    assert torch.allclose(full.row, 2 * half.row) and torch.allclose(full.column, 2 * half.column)
    with pytest.raises(QuantGolfError, match=r"row_exponent is 3.0, expected 0"):
        SolveOptions(row_exponent=3.0)
    with pytest.raises(QuantGolfError, match=r"least_row is -1.0, expected a share"):
        SolveOptions(least_row=-1.0)
