"""Next to the largest numbers of a dtype nothing is restored as infinite, and elsewhere nothing is touched."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.encode.levels import Levels, encode_levels
from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions, Solver, prepare, solve
from quantgolf.solve.finite import finite_levels
from quantgolf.solve.grid import LARGEST, Grid, Rounding, lowered, range_steps, values
from quantgolf.solve.search import searched_steps
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Exponents, WeightStats, WeightUse

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES), bits=st.integers(2, 8), symmetric=st.booleans(), log=st.booleans(),
    size=st.sampled_from([None, 3]), seed=st.integers(0, 999), share=st.sampled_from([1.0, 0.999, 0.3]),
)  # fmt: skip
def test_no_code_of_a_grid_stands_for_what_a_dtype_does_not_know(
    dtype: torch.dtype, bits: int, symmetric: bool, log: bool, size: int | None, seed: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    most = torch.finfo(dtype).max if dtype == torch.float16 or log else 65504.0 * (2 ** (bits - 1) - 1)
    most = min(most, 1e34)
    weight = (torch.rand(4, 7, generator=generator) * 2 - 1) * share * most
    weight[1, 2], weight[3] = -share * most, weight[3].abs()
    grid, largest = Grid(size, symmetric, "log" if log else "fp16"), min(torch.finfo(dtype).max, most)
    for steps in (range_steps(weight, bits, grid, largest), searched_steps(weight, bits, torch.ones(7), grid, largest)):
        rounding = Rounding.of(steps, bits, 7)
        for code in (rounding.lowest, rounding.highest):
            restored = (code - rounding.zero.float()) * rounding.step
            assert restored.to(dtype).isfinite().all() and restored.abs().max() <= largest


def test_scales_that_are_lowered_are_the_largest_that_hold_and_others_stay() -> None:
    scale = torch.tensor([[515.0, 516.0, 700.0]]).half()
    found = lowered(scale, None, -127, 127, 65504.0)
    assert found.tolist() == [[515.0, 515.5, 515.5]]  # 127 · 516 is 65,532
    assert torch.equal(lowered(scale, None, -127, 127, LARGEST), scale)
    exponents = torch.tensor([[0, 16 * 9, 16 * 12]], dtype=torch.int16)
    found = lowered(exponents, torch.tensor([[0, 0, -128]], dtype=torch.int8), -128, 127, 65504.0)
    assert found[0, 0] == 0 and found.dtype == torch.int16
    for at, reach in ((1, 128), (2, 255)):
        assert float(values(found)[0, at]) * reach <= 65504 < float(values(found + 1)[0, at]) * reach


@settings(deadline=None, max_examples=40)
@given(
    states=st.sampled_from([1, 4, 8, 128]), diagonal=st.booleans(), seed=st.integers(0, 999),
    power=st.integers(-4, 68), dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_levels_become_finite_and_stay_paths(
    states: int, diagonal: bool, seed: int, power: int, dtype: torch.dtype
) -> None:
    """The coder takes no level that the trellis does not allow."""
    trellis, generator = Trellis(states, 6), np.random.default_rng(seed)
    largest = torch.finfo(dtype).max
    row = (generator.integers(-3, 4, 20) + power + 4 * (dtype == torch.bfloat16) * 100).astype(np.int16)
    column = generator.integers(-3, 4, 9).astype(np.int16)
    steps = 2.0 ** ((row[:, None] + column.astype(np.int64)) / 4)
    aims = largest * generator.uniform(-1.02, 1.02, (20, 9)) / steps
    if np.abs(aims).max() > 2**27:
        aims *= 2**27 / np.abs(aims).max()
    turn = np.arange(20) * diagonal  # row i is rolled by i, so that diagonals are columns
    down = np.stack([np.roll(aims[i], turn[i]) for i in range(20)])
    paths = np.stack([trellis.quantize(down[:, j]) for j in range(9)], 1)
    levels = np.stack([np.roll(paths[i], -turn[i]) for i in range(20)])
    exponents = Exponents(torch.from_numpy(row), torch.from_numpy(column), 0)
    before = levels.copy()
    found = finite_levels(levels, exponents, dtype, trellis, diagonal)
    fp32 = exponents.steps()
    assert fp32.column is not None and np.array_equal(levels, before)
    restored, was = (torch.from_numpy(each).float() * (fp32.row[:, None] * fp32.column) for each in (found, before))
    assert restored.to(dtype).isfinite().all()
    touched = torch.from_numpy(found != before)
    assert (was.abs()[touched] > largest * (1 - 1e-6)).all() or 2 * steps.max() > largest
    encode_levels([Levels(found, 0, row, column, diagonal)], trellis)


def test_levels_of_ordinary_weights_are_the_same_array() -> None:
    levels = np.array([[7, -300], [0, 12]], dtype=np.int16)
    exponents = Exponents(torch.tensor([-8, 3], dtype=torch.int16), torch.tensor([0, 5], dtype=torch.int16), 0)
    assert finite_levels(levels, exponents, torch.float16, Trellis(8), False) is levels


@pytest.mark.parametrize("solver", ["gptq_lite", "gptq"])
def test_searched_clips_stop_at_the_largest_scale_and_ranges_are_refused_by_name(solver: Solver) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 16, generator=generator)
    weight[0, 0] = 1e6
    stats = WeightStats("blocks.0.w", (WeightUse("linear", torch.ones(4), torch.eye(16), 1),), 1)
    tensor, report = solve(prepare(weight, stats, solver, SolveOptions()), 2)
    assert float(tensor.dequantize().abs().max()) <= 65504 and report.loss > 0.4 * 9e5**2
    with pytest.raises(QuantGolfError, match=r"blocks.0.w at 2 bits: a row or group needs the scale 1e\+06"):
        solve(prepare(weight, stats, "rtn", SolveOptions()), 2)


def test_a_weights_own_dtype_counts_where_none_is_told() -> None:
    stats = WeightStats("w", (WeightUse("linear", torch.ones(1), torch.eye(16), 1),), 1)
    weight = torch.full((1, 16), 65504.0)
    for given_, dtype in ((weight.half(), None), (weight, torch.float16)):
        tensor, _ = solve(prepare(given_, stats, "rtn", SolveOptions(), dtype), 8)
        assert tensor.dequantize().half().isfinite().all()
    tensor, _ = solve(prepare(weight, stats, "rtn", SolveOptions()), 8)
    assert float(tensor.dequantize().max()) == 127 * 516
