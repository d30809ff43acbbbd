"""Feedback in both directions against plain loops, and against what it is for: less loss at the same steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
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


def best_path(aims: NDArray[np.float64], first: int, state: int, trellis: Trellis) -> float:
    """Viterbi with a dictionary a row, begun in `state` at row `first`: the least summed squared distance."""
    paths = {state: 0.0}
    for row, aim in enumerate(aims.tolist(), first):
        if row % trellis.restart == 0:
            paths = {0: min(paths.values())}
        reached: dict[int, float] = {}
        for at, cost in paths.items():
            for level in {*range(int(aim // 1) - 4, int(aim // 1) + 6), -3, -1, 0, 1, 3}:
                if trellis.states == 1 or level == 0 or level % 2 == at % 2:
                    to = int(trellis.after[at, label_of(level)]) if trellis.states > 1 else 0
                    reached[to] = min(reached.get(to, np.inf), cost + (level - aim) ** 2)
        paths = reached
    return min(paths.values())


def walked(levels: NDArray[np.int32], first: int, state: int, trellis: Trellis) -> int:
    """The state after these levels of rows `first`, …, each of which has to be allowed."""
    for row, level in enumerate(levels.tolist(), first):
        state = 0 if row % trellis.restart == 0 else state
        if trellis.states > 1:
            assert level == 0 or level % 2 == state % 2
            state = int(trellis.after[state, label_of(level)])
    return state


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
    levels = solve_diagonals(weight, feedback.columns.upper, feedback.across.upper, row, column, trellis)
    aims = in_plain_loops(weight, feedback.columns.upper, feedback.across.upper, row, column, levels)
    for d in range(columns):  # column d of the rolled matrix: the diagonals d, d + columns, …
        state, first = 0, 0
        for last in range(d + 1, rows + columns, columns):
            i = np.arange(first, min(last, rows))
            found, aim = levels[i, (d - i) % columns], aims[i, (d - i) % columns]
            if len(i):
                best = best_path(aim, first, state, trellis)
                assert np.square(found - aim).sum() == pytest.approx(best, abs=1e-3)
            state, first = walked(found, first, state, trellis), min(last, rows)
        assert first == rows


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 3 * BLOCK), columns=st.integers(1, 3 * BLOCK), restart=st.sampled_from([1, 7, 33, 256]))
def test_blocks_change_nothing(rows: int, columns: int, restart: int) -> None:
    """Far errors come in matrix products, near ones one by one: together all that plain products say."""
    weight, stats = case(rows, columns, seed=rows + 100 * columns)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    assert feedback.across is not None
    row, column = (np.exp2(side.astype(np.float64) / 4) for side in grid.powers(0.1)[:2])
    levels = solve_diagonals(weight, feedback.columns.upper, feedback.across.upper, row, column, Trellis(1, restart))
    u, v = feedback.columns.upper.double(), feedback.across.upper.double()
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


def test_what_calibration_never_felt() -> None:
    weight, stats = case(20, 24)
    use = stats.uses[0]
    assert use.outputs is not None
    column, outputs = use.column.clone(), use.outputs.clone()
    column[3], column[:, 3], outputs[5], outputs[:, 5] = 0, 0, 0, 0
    silent = WeightStats("w", (WeightUse("linear", outputs.diagonal().clone(), column, 96, outputs),), 96)
    grid, feedback = prepare_slope(weight, silent, SolveOptions())
    assert grid.row.isfinite().all() and feedback.columns.dead.tolist() == [j == 3 for j in range(24)]
    row, powers, _ = grid.powers(0.02)
    assert row[5] > np.median(row) and powers[3] == powers.max()
    levels = solve_slope(weight, feedback, row, powers, Trellis(8))
    # A path may pass through a 1 where it aims at zero, but for the sake of others alone.
    assert levels.any() and np.abs(levels[:, 3]).max() <= 1 and (levels[:, 3] != 0).sum() < 5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_statistics_that_are_not_finite_are_named(bad: float) -> None:
    weight, stats = case(6, 5)
    use = stats.uses[0]
    broken = WeightStats("w", (replace(use, column=use.column * bad),), stats.tokens)
    with pytest.raises(QuantGolfError, match="statistics of w have values that are NaN or infinite"):
        prepare_slope(weight, broken, SolveOptions())


def test_damping_of_either_side_is_reported() -> None:
    weight, stats = case(12, 8)
    use = stats.uses[0]
    assert use.outputs is not None
    crooked = use.outputs.clone()
    crooked[0, 1] = crooked[1, 0] = 3 * float(use.outputs.diagonal().max())  # not positive definite
    _, feedback = prepare_slope(weight, WeightStats("w", (replace(use, outputs=crooked),), 32), SolveOptions())
    assert feedback.columns.retries == 0 and feedback.retries > 0 and feedback.damp > feedback.columns.damp
