"""What a GPU does, several matrices at once, against what the CPU does one by one.

Without a GPU the ops' plain torch bodies stand in for the kernels, which have tests of their own.
"""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions, Solver, diagonals, gptq, predict, prepare, slope, solve, solver
from quantgolf.solve.device import on_gpu
from quantgolf.solve.grid import Grid, Rounding
from quantgolf.solve.slope import prepare_slope, solve_slope, solve_slope_many
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Groups, Steps, WeightStats, WeightUse

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def case(rows: int, columns: int, seed: int, outputs: bool = False) -> tuple[Tensor, WeightStats]:
    """A weight whose inputs (and outputs) are correlated; input 2 is dead."""
    generator = torch.Generator().manual_seed(seed)

    def covariance(size: int) -> Tensor:
        mixing = torch.randn(size, size, generator=generator) * torch.logspace(0, -1.5, size)[:, None]
        samples = torch.randn(4 * size, size, generator=generator) @ mixing
        return samples.T @ samples / len(samples) + 1e-4 * torch.eye(size)

    inputs, felt = covariance(columns), covariance(rows)
    inputs[2], inputs[:, 2] = 0, 0
    use = WeightUse("linear", felt.diagonal().clone(), inputs, 4 * columns, felt if outputs else None)
    return torch.randn(rows, columns, generator=generator), WeightStats("w", (use,), tokens=4 * columns)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight is solved as if it were on a GPU."""
    modules: tuple[ModuleType, ...] = (gptq, slope, diagonals, solver)
    for module in modules:
        monkeypatch.setattr(module, "on_gpu", lambda weight: True)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("block_size", [1, 7, 128, 1000])
def test_codes_of_many_are_those_of_each(act_order: bool, block_size: int) -> None:
    weights, factors, roundings = [], [], []
    for seed in range(3):
        weight, stats = case(20, 150 if block_size > 100 else 24, seed)
        weights.append(weight)
        factors.append(gptq.factorise(stats.hessian(), 0.01, act_order, "w"))
        roundings.append(Rounding.rows((weight.abs().amax(1) / 12).half(), 7, weight.shape[1]))
    found = gptq.feed_back_many(torch.stack(weights), factors, roundings, block_size)
    assert found.dtype == torch.int8 and not found[:, :, 2].any() and found.abs().max() == 7
    for at in range(3):
        expected = gptq.feed_back(weights[at], factors[at], roundings[at], block_size)
        # fp64 against fp32 behind a block may settle a tie differently, and whatever follows in that row
        assert (found[at] != expected).any(1).sum() <= 1


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_in_groups_of_many_are_those_of_each(act_order: bool, size: int, symmetric: bool) -> None:
    options = SolveOptions(act_order=act_order, grid=Grid(size, symmetric))
    prepared = [prepare(*case(12, 150, seed), "gptq", options) for seed in range(2)]
    roundings = [Rounding.of(solver.steps_of(each, 4), 4, 150) for each in prepared]
    factors = [each.factor for each in prepared if each.factor is not None]
    found = gptq.feed_back_many(torch.stack([each.weight for each in prepared]), factors, roundings)
    for each, factor, rounding, codes in zip(prepared, factors, roundings, found, strict=True):
        expected = gptq.feed_back(each.weight, factor, rounding, 128)
        assert (codes != expected).any(1).sum() <= 1
        assert torch.equal(codes[:, 2], rounding.zero[:, 2 // size]) and codes.min() == rounding.lowest


@pytest.mark.parametrize("grid", [Grid(), Grid(7, False), Grid(50, scales="log")], ids=str)
@pytest.mark.parametrize("name", ["gptq", "gptq_lite", "rtn"])
def test_a_weight_is_solved_and_predicted(name: Solver, grid: Grid, request: pytest.FixtureRequest) -> None:
    weight, stats = case(12, 24, 0)
    options = SolveOptions(grid=grid)
    here, report = solve(prepare(weight, stats, name, options), 4)
    expected = predict(prepare(weight, stats, name, options), 4)
    request.getfixturevalue("everywhere")
    there = prepare(weight, stats, name, options)
    tensor, again = solve(there, 4)
    assert torch.equal(tensor.codes, here.codes) and torch.equal(tensor.dequantize(), here.dequantize())
    assert isinstance(tensor.steps, Steps if grid == Grid() else Groups)
    found = predict(there, 4)
    assert again.loss == report.loss and found.loss == expected.loss and np.array_equal(found.counts, expected.counts)


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("outputs", [True, False])
def test_levels_of_many_are_those_of_each(states: int, outputs: bool) -> None:
    trellis, weights, feedback, powers, expected = Trellis(states, 8), [], [], [], []
    for seed in range(2):
        weight, stats = case(19, 40, seed, outputs)
        grid, each = prepare_slope(weight, stats, SolveOptions())
        row, column, _ = grid.powers(0.05)
        weights.append(weight)
        feedback.append(each)
        powers.append((row, column))
        expected.append(solve_slope(weight, each, row, column, trellis))
    rows, columns = (np.stack(side) for side in zip(*powers, strict=True))
    found = solve_slope_many(torch.stack(weights), feedback, rows, columns, trellis)
    assert found.dtype == np.int32 and found.any() and (found == expected).mean() > 0.999
    if not outputs:
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("outputs", [True, False])
def test_one_matrix_takes_the_same_path(outputs: bool, everywhere: None) -> None:
    weight, stats = case(19, 40, 3, outputs)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    row, column, _ = grid.powers(0.05)
    levels = solve_slope(weight, feedback, row, column, Trellis(8, 8))
    many = solve_slope_many(weight[None], [feedback], row[None], column[None], Trellis(8, 8))
    assert np.array_equal(levels, many[0])
    assert np.abs(levels[:, 2]).max() <= (1 if outputs else 0)


def test_some_with_feedback_across_rows_and_some_without_are_refused() -> None:
    feedback = []
    for outputs in (True, False):
        weight, stats = case(6, 8, 0, outputs)
        grid, each = prepare_slope(weight, stats, SolveOptions())
        feedback.append(each)
    row, column, _ = grid.powers(0.05)
    with pytest.raises(QuantGolfError, match="1 of 2 matrices have feedback across rows, expected all or none"):
        solve_slope_many(
            torch.stack([weight] * 2), feedback, np.stack([row] * 2), np.stack([column] * 2), Trellis(8)
        )  # fmt: skip


def test_no_gpu_and_gpus_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not on_gpu(torch.ones(2))

    class Elsewhere:
        device = torch.device("cuda", 0)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="cuda:0: triton is not installed; weights are solved on the CPU"):
        assert not on_gpu(Elsewhere())  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    with pytest.warns(UserWarning, match=r"capability is 7.5, expected at least 8.0"):
        assert not on_gpu(Elsewhere())  # type: ignore[arg-type]
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    assert on_gpu(Elsewhere())  # type: ignore[arg-type]


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("outputs", [True, False])
def test_levels_on_a_gpu_are_those_of_the_cpu(outputs: bool) -> None:
    weight, stats = case(600, 300, 0, outputs)
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    row, column, _ = grid.powers(0.05)
    here = solve_slope(weight, feedback, row, column, Trellis())
    there = solve_slope(weight.cuda(), feedback, row, column, Trellis())
    losses = []
    for levels in (here, there):
        step = np.exp2((row[:, None] + column.astype(np.float64)) / 4)
        losses.append(stats.loss(torch.from_numpy(levels * step).float() - weight))
    if not outputs:
        assert (here == there).mean() > 0.9999
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    other, _ = prepare_slope(weight.cuda(), stats, SolveOptions())
    assert torch.allclose(other.row, grid.row, atol=1e-6) and torch.allclose(other.column, grid.column, atol=1e-6)


@pytest.mark.gpu
@GPU
def test_codes_on_a_gpu_are_those_of_the_cpu() -> None:
    weight, stats = case(600, 300, 0)
    found, expected = (solve(prepare(side, stats, "gptq", SolveOptions()), 4) for side in (weight.cuda(), weight))
    assert found[0].codes.device.type == "cpu"
    assert (found[0].codes != expected[0].codes).float().mean() < 0.01
    assert found[1].loss == pytest.approx(expected[1].loss, rel=0.01)
