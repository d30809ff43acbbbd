"""Feedback in both directions against plain loops, and against what it is for: less loss at the same steps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.solve import SolveOptions
from quantgolf.solve.diagonals import BLOCK, solve_diagonals
from quantgolf.solve.slope import prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis, label_of
from quantgolf.types import WeightStats, WeightUse


def covariance(size: int, generator: torch.Generator, falls: float = 1.5) -> Tensor:
    mixing = torch.randn(size, size, generator=generator) * torch.logspace(0, -falls, size)[:, None]
    samples = torch.randn(4 * size, size, generator=generator) @ mixing
    return samples.T @ samples / len(samples) + 1e-4 * torch.eye(size)


def case(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, WeightStats]:
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = covariance(rows, generator), covariance(columns, generator)
    use = WeightUse("linear", outputs.diagonal().clone(), inputs, 4 * columns, outputs)
    return torch.randn(rows, columns, generator=generator), WeightStats("w", (use,), tokens=4 * columns)


def path_of(levels: NDArray[np.int32], states: list[int], trellis: Trellis, first: int) -> bool:
    """Walks on from `states[0]` over the levels of rows `first`, …; whether each is allowed."""
    for row, level in enumerate(levels.tolist(), first):
        if row % trellis.restart == 0:
            states[0] = 0
        if trellis.states > 1 and level and level % 2 != states[0] % 2:
            return False
        states[0] = int(trellis.after[states[0], label_of(level)]) if trellis.states > 1 else 0
    return True


def in_plain_loops(
    weight: Tensor, upper: Tensor, across: Tensor, row: NDArray[np.float64], column: NDArray[np.float64],
    levels: NDArray[np.int32],
) -> NDArray[np.float64]:  # fmt: skip
    """What each weight should have been in units of its step, after the errors of all levels before it."""
    w, u, v = weight.double().numpy(), upper.double().numpy(), across.double().numpy()
    rows, columns = w.shape
    eta, aims = np.zeros(w.shape), np.zeros(w.shape)
    for i in range(rows):
        for j in range(columns):
            fed = sum(v[a, i] * eta[a, b] * u[b, j] for a in range(i + 1) for b in range(j + 1) if (a, b) != (i, j))
            aims[i, j] = (w[i, j] - fed) / (row[i] * column[j])
            eta[i, j] = (aims[i, j] - levels[i, j]) * row[i] * column[j] / (v[i, i] * u[j, j])
    assert np.allclose(v.T @ eta @ u, w - levels * row[:, None] * column)
    return aims


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (9, 1), (7, 12), (12, 7)])
@pytest.mark.parametrize(("states", "restart"), [(1, 5), (8, 5), (8, 100)])
def test_levels_are_the_best_path_to_what_plain_loops_ask_for(
    rows: int, columns: int, states: int, restart: int
) -> None:
    weight, stats = case(rows, columns)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    assert grid.diagonal and feedback.across is not None
    row, column = (np.exp2(side.astype(np.float64) / 4) for side in grid.powers(0.2)[:2])
    trellis = Trellis(states, restart)
    levels = solve_diagonals(weight, feedback.columns.upper, feedback.across, row, column, trellis)
    aims = in_plain_loops(weight, feedback.columns.upper, feedback.across, row, column, levels)
    for d in range(columns):
        state = [0]
        for first in range(0, rows, columns):  # the parts of column d of the rolled matrix, a diagonal each
            cut = d % columns + 1
            for part in (
                range(first, min(first + cut, rows)),
                range(min(first + cut, rows), min(first + columns, rows)),
            ):
                i = np.array(part, dtype=np.int64)
                if not len(i):
                    continue
                found, aim = levels[i, (d - i) % columns], aims[i, (d - i) % columns]
                begun = state[0]
                assert path_of(found, state, trellis, int(i[0]))
                if states == 1:
                    assert np.abs(found - aim).max() < 0.5001
                elif i[0] % restart == 0:
                    assert begun in range(states)
                    best = trellis.quantize(aim)
                    assert np.square(found - aim).sum() == pytest.approx(np.square(best - aim).sum(), abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 3 * BLOCK), columns=st.integers(1, 3 * BLOCK), restart=st.sampled_from([1, 7, 33, 256]))
def test_blocks_change_nothing(rows: int, columns: int, restart: int) -> None:
    """Far errors come in matrix products, near ones one by one: together all that plain products say."""
    weight, stats = case(rows, columns, seed=rows + 100 * columns)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    assert feedback.across is not None
    row, column = (np.exp2(side.astype(np.float64) / 4) for side in grid.powers(0.1)[:2])
    levels = solve_diagonals(weight, feedback.columns.upper, feedback.across, row, column, Trellis(1, restart))
    u, v = feedback.columns.upper.double(), feedback.across.double()
    error = weight.double() - torch.from_numpy(levels * row[:, None] * column)
    eta = torch.linalg.solve_triangular(
        u, torch.linalg.solve_triangular(v.T, error, upper=False), upper=True, left=False
    )
    rounding = eta * v.diagonal()[:, None] * u.diagonal() / torch.from_numpy(row[:, None] * column)
    assert rounding.abs().max() < 0.501  # a scalar quantizer never errs by more than half a step


@pytest.mark.parametrize("states", [1, 32])
def test_rows_that_know_of_each_other_lose_less_at_the_same_bits(states: int) -> None:
    weight, stats = case(96, 64)
    losses = []
    for options in (SolveOptions(), SolveOptions(across_rows=False)):
        grid, feedback = prepare_slope(weight, stats, options)
        # The same mean step for both, so that they take about the same bits.
        mean = float((grid.row.mean() + grid.column.mean()).exp2())
        row, column, _ = grid.powers(0.1 / mean)
        levels = solve_slope(weight, feedback, row, column, Trellis(states))
        steps = np.exp2((row[:, None] + column[None].astype(np.float64)) / 4)
        losses.append(stats.loss(torch.from_numpy(levels * steps).float() - weight))
    assert losses[0] < 0.7 * losses[1]


def test_what_calibration_never_felt_keeps_coarse_weights() -> None:
    weight, stats = case(20, 24)
    use = stats.uses[0]
    assert use.outputs is not None
    column, outputs = use.column.clone(), use.outputs.clone()
    column[3], column[:, 3], outputs[5], outputs[:, 5] = 0, 0, 0, 0
    silent = WeightStats("w", (WeightUse("linear", outputs.diagonal().clone(), column, 96, outputs),), 96)
    grid, feedback = prepare_slope(weight, silent, SolveOptions())
    assert grid.row.isfinite().all() and grid.column.isfinite().all()
    row, powers, _ = grid.powers(0.02)
    assert row[5] > np.median(row) and powers[3] > np.median(powers)
    levels = solve_slope(weight, feedback, row, powers, Trellis(8))
    restored = levels * np.exp2((row[:, None] + powers[None].astype(np.float64)) / 4)
    assert np.isfinite(restored).all() and np.abs(restored[:, 3]).max() < 10 * float(weight.abs().max())
