"""One slope against a slow reference in plain loops, and the promise it makes: every weight's error costs the same."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions
from quantgolf.solve.slope import LEAST_ROW, prepare_slope, solve_slope
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
    grid, factor = prepare_slope(weight, stats, SolveOptions())
    row, column, _ = grid.powers(0.02)
    found = solve_slope(weight, factor, row, column, Trellis(states, 10), block_size)
    steps = 2.0 ** ((row[:, None] + column[None, :].astype(np.int64)) / 4)
    expected = reference(weight, factor.order.tolist(), factor.upper.numpy(), steps, Trellis(states, 10))
    assert (found == expected).mean() > 0.995  # the order of additions may tip a tie


def test_steps_are_those_of_the_design() -> None:
    """step = c · G_ii^(-1/2) · U_jj, to the nearest quarter octave, U in the order columns are processed."""
    weight, stats = case()
    grid, factor = prepare_slope(weight, stats, SolveOptions(act_order=True))
    row, column, spread = grid.powers(0.5)
    felt = stats.row_weight().double().clamp(min=LEAST_ROW * float(stats.row_weight().mean()))
    u = torch.empty(20, dtype=torch.float64)
    u[factor.order] = factor.upper.diagonal()
    exact = torch.log2(0.5 * felt[:, None] ** -0.5 * u[None, :]) * 4
    assert (torch.from_numpy(row[:, None] + column[None, :].astype(np.int16)) - exact).abs().max() <= 1.0
    assert spread == round(4 * float(weight.double().square().mean().sqrt().log2()))
    assert not torch.equal(factor.order, torch.arange(20))


def test_half_the_slope_costs_a_bit_and_quarters_the_loss() -> None:
    weight, stats = case(128, 32)
    grid, factor = prepare_slope(weight, stats, SolveOptions())
    losses = []
    for slope in (0.02, 0.01):
        row, column, _ = grid.powers(slope)
        levels = solve_slope(weight, factor, row, column, Trellis(8))
        restored = torch.from_numpy(levels * 2.0 ** ((row[:, None] + column[None, :].astype(np.int64)) / 4)).float()
        losses.append(stats.loss(restored - weight))
    assert losses[0] / losses[1] == pytest.approx(4, rel=0.15)


def test_dead_columns_are_zero_and_bad_weights_refused() -> None:
    weight, stats = case()
    use = stats.uses[0]
    column = use.column.clone()
    column[3], column[:, 3] = 0, 0
    silent = WeightStats("w", (WeightUse("linear", use.row, column, use.visits),), stats.tokens)
    grid, factor = prepare_slope(weight, silent, SolveOptions())
    row, powers, _ = grid.powers(0.02)
    assert not solve_slope(weight, factor, row, powers, Trellis(8))[:, 3].any()
    with pytest.raises(QuantGolfError, match="NaN or infinite"):
        prepare_slope(torch.full_like(weight, torch.nan), stats, SolveOptions())
    with pytest.raises(QuantGolfError, match="calibrate this model anew"):
        prepare_slope(weight[:5], stats, SolveOptions())
