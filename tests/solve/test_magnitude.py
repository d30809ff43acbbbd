"""Weights and Hessians of any size are solved as those near 1 are: powers of two change no decision."""

import numpy as np
import pytest
import torch
from torch import Tensor

from quantgolf.solve import SolveOptions, Solver, predict, prepare, solve
from quantgolf.solve.grid import Grid
from quantgolf.solve.magnitude import RANGE, difference, out_of_range, rows_out_of_range
from quantgolf.solve.slope import LEVEL_BITS, MOST_OCTAVES, STEP_OCTAVES, prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightStats, WeightUse


def case(power: float = 0, felt: float = 0) -> tuple[Tensor, WeightStats]:
    """A weight, H times 2^power and row weights times 2^felt."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 20, generator=generator) * torch.logspace(0, -1, 20)
    rows = torch.rand(12, generator=generator) * 2.0**felt
    return torch.randn(12, 20, generator=generator), WeightStats(
        "w", (WeightUse("linear", rows, x.T @ x / 60 * 2.0**power, 60),), 60
    )


@pytest.mark.parametrize("solver", ["gptq_lite", "gptq"])
@pytest.mark.parametrize(("power", "felt"), [(100, 0), (-100, 0), (120, 100), (-110, -100), (-140, 0)])
def test_codes_do_not_depend_on_the_size_of_statistics(solver: Solver, power: int, felt: int) -> None:
    weight, plain = case()
    _, scaled = case(power, felt)
    if power == -140:  # subnormal: some digits are gone
        plain = WeightStats("w", (WeightUse("linear", plain.uses[0].row, scaled.uses[0].column.double().mul(
            2.0**140).float(), 60),), 60)  # fmt: skip
    expected, report = solve(prepare(weight, plain, solver, SolveOptions()), 3)
    prepared = prepare(weight, scaled, solver, SolveOptions())
    found, scaled_report = solve(prepared, 3)
    assert torch.equal(found.codes, expected.codes)
    unit = 2.0**power * 2.0**felt
    assert scaled_report.loss == pytest.approx(report.loss * unit, rel=1e-4)
    assert predict(prepared, 3).loss == pytest.approx(
        predict(prepare(weight, plain, solver, SolveOptions()), 3).loss * unit, rel=1e-4
    )


@pytest.mark.parametrize("solver", ["rtn", "gptq_lite", "gptq"])
@pytest.mark.parametrize("power", [-90, -70, 70, 90])
def test_codes_do_not_depend_on_the_size_of_weights(solver: Solver, power: int) -> None:
    weight, stats = case()
    options = SolveOptions(grid=Grid(5, scales="log"))
    expected, report = solve(prepare(weight, stats, solver, options), 4)
    prepared = prepare(weight * 2.0**power, stats, solver, options)
    found, scaled = solve(prepared, 4)
    assert torch.equal(found.codes, expected.codes)
    assert scaled.loss == pytest.approx(report.loss * 4.0**power, rel=1e-4)
    assert predict(prepared, 4).loss == pytest.approx(
        predict(prepare(weight, stats, solver, options), 4).loss * 4.0**power, rel=1e-4
    )


@pytest.mark.parametrize("power", [-120, -80, 80, 120])
def test_one_slope_takes_any_size_of_statistics(power: int) -> None:
    weight, plain = case()
    _, scaled = case(power)
    trellis, found = Trellis(8), []
    for stats, slope in ((plain, 0.05), (scaled, 0.05 * 2.0 ** (power / 2))):
        grid, feedback = prepare_slope(weight, stats, SolveOptions())
        row, column, _ = grid.powers(slope)
        assert abs(float(grid.column.mean())) < MOST_OCTAVES
        found.append((solve_slope(weight, feedback, row, column, trellis), row[:, None] + column.astype(np.int64)))
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])


def test_steps_are_neither_so_fine_nor_so_coarse_that_levels_or_weights_overflow() -> None:
    weight, stats = case()
    weight[3, 4] = 1e6
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    row, column, _ = grid.powers(2.0**-40)
    assert row[3] > row[[0, 1, 2]].max() + 40  # the row of the outlier alone
    levels = solve_slope(weight, feedback, row, column, Trellis(8))
    assert 2 ** (LEVEL_BITS - 4) < np.abs(levels[3].astype(np.int64)).max() < 2**30
    restored = levels[3] * 2.0 ** ((row[3] + column.astype(np.int64)) / 4)
    assert restored == pytest.approx(weight[3].double().numpy(), abs=1.0)
    row, column, _ = grid.powers(2.0**500)
    assert (row.max() + column.max()) / 4 <= STEP_OCTAVES + 0.5
    assert not solve_slope(weight, feedback, row, column, Trellis(8)).any()


def test_what_is_out_of_range() -> None:
    assert out_of_range(0.0) == out_of_range(1.0) == out_of_range(2.0 ** (RANGE - 1)) == 0
    assert out_of_range(2.0**100) == 101 and out_of_range(2.0**-100) == -99
    assert rows_out_of_range(torch.tensor([[1.0, -5.0], [0.0, 0.0]])) is None
    found = rows_out_of_range(torch.tensor([[1.0, -(2.0**90)], [2.0**-90, 0.0], [1.0, 2.0]]))
    assert found is not None and found.tolist() == [91, -89, 0]
    largest = torch.finfo(torch.float32).max
    error = difference(torch.tensor([[largest]]), torch.tensor([[-largest]]))
    assert error.dtype == torch.float64 and float(error) == 2 * largest
    assert difference(torch.tensor([[3.0]]), torch.tensor([[1.0]])).tolist() == [[2.0]]
