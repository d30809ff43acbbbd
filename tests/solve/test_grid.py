"""Grids, ranges and rounding against levels written out in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve.grid import SMALLEST, Grid, Rounding, nearest, range_steps, stored, top_level, values
from quantgolf.types import Groups, QTensor, Steps

GRIDS = [
    Grid(size, symmetric, scales) for size in (None, 7) for symmetric in (True, False) for scales in ("fp16", "log")
]


def weight(rows: int = 9, columns: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def levels_of(steps: Steps | Groups, bits: int, row: int, column: int) -> np.ndarray:
    """Every number that the codes of a width stand for at one place, lowest first, as the fields say."""
    if isinstance(steps, Steps):
        top = 2 ** (bits - 1) - 1
        return np.arange(-top, top + 1) * float(steps.row[row])
    g = column // steps.size
    e = steps.scale[row, g]
    scale = 2.0 ** (int(e) / 16) if steps.scale.dtype == torch.int16 else float(e)
    if steps.zero is None:
        top = 2 ** (bits - 1) - 1
        return np.arange(-top, top + 1) * scale
    return (np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) - int(steps.zero[row, g])) * scale


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_ranges_are_held_and_codes_are_the_nearest(grid: Grid, bits: int) -> None:
    w = weight() + (0.03 if not grid.symmetric else 0.0)
    steps = range_steps(w, bits, grid)
    codes = nearest(w, Rounding.of(steps, bits, 40))
    assert codes.dtype == torch.int8
    tensor = QTensor(codes, steps, bits)
    for i in range(len(w)):
        for j in range(40):
            levels = levels_of(steps, bits, i, j)
            found, target = float(tensor.dequantize()[i, j]), float(w[i, j])
            assert np.abs(levels - found).min() <= abs(found) * 1e-6 + 1e-12  # it is one of them
            step = levels[1] - levels[0]
            assert abs(found - target) <= np.abs(levels - target).min() + 1e-4 * step
            # Up to half a step beyond the last level, and as much as rounding the scale takes off the last.
            beyond = step * (0.5 + (0.5 if not grid.symmetric else 0) + len(levels) * 2**-11) + 1e-9
            assert levels[0] - beyond <= target <= levels[-1] + beyond


def test_one_fp16_scale_a_row_is_steps_and_everything_else_groups() -> None:
    w = weight(3, 10)
    for size in (None, 10, 99):
        steps = range_steps(w, 4, Grid(size))
        assert isinstance(steps, Steps) and steps.row.dtype == torch.float16 and steps.column is None
        assert torch.equal(steps.row, (w.abs().amax(1) / 7).half())
    for grid in (Grid(4), Grid(9), Grid(1), Grid(None, False), Grid(None, scales="log"), Grid(99, False)):
        steps = range_steps(w, 4, grid)
        assert isinstance(steps, Groups) and steps.size == min(grid.group_size or 10, 10)
        assert steps.scale.shape == (3, math.ceil(10 / steps.size))
        assert steps.scale.dtype == (torch.float16 if grid.scales == "fp16" else torch.int16)
        assert (steps.zero is None) == grid.symmetric and (steps.zero is None or steps.zero.dtype == torch.int8)


@pytest.mark.parametrize("scales", ["fp16", "log"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_of_one_sign_of_one_value_and_of_nothing(bits: int, scales: str) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    w = torch.tensor([[1.0, 2, 3, -1, -2, -3, 5, 5, 5, -5, -5, -5, 0, 0, 0, 0.25]])
    steps = range_steps(w, bits, Grid(3, False, scales))  # type: ignore[arg-type]
    assert isinstance(steps, Groups) and steps.zero is not None
    assert steps.zero[0, [0, 2, 4, 5]].tolist() == [low, low, 0, low]
    # A larger scale than was asked for leaves codes at the end to spare: at most 2^(1/16), which is 4.4%.
    assert high - 0.04 * 2**bits <= int(steps.zero[0, [1, 3]].min()) <= int(steps.zero[0, [1, 3]].max()) <= high
    codes = nearest(w, Rounding.of(steps, bits, 16))
    assert codes[0, 12:15].tolist() == [0, 0, 0]
    found = QTensor(codes, steps, bits).dequantize()
    assert torch.equal(found[0, 12:15], torch.zeros(3))
    # A group of one value has it, but for how its scale is rounded.
    places = torch.tensor([6, 7, 8, 9, 10, 11, 15])
    torch.testing.assert_close(found[0, places], w[0, places], rtol=2**-10 if scales == "fp16" else 0.03, atol=0)
    nothing = torch.zeros(2, 6)
    for symmetric in (True, False):
        steps = range_steps(nothing, bits, Grid(4, symmetric, scales))  # type: ignore[arg-type]
        codes = nearest(nothing, Rounding.of(steps, bits, 6))
        assert not codes.any() and not QTensor(codes, steps, bits).dequantize().any()


def test_rows_of_zeros_get_a_step_and_huge_ones_are_refused() -> None:
    zeros = torch.zeros(2, 4)
    steps = range_steps(zeros, 4, Grid())
    assert isinstance(steps, Steps) and steps.row.tolist() == [SMALLEST, SMALLEST]
    tiny = torch.linspace(-1e-4, 1e-4, 50)[None]
    steps = range_steps(tiny, 8, Grid())
    found = QTensor(nearest(tiny, Rounding.of(steps, 8, 50)), steps, 8).dequantize()
    assert float((found - tiny).abs().max()) < 2e-6
    with pytest.raises(QuantGolfError, match=r"needs the scale 1e\+06, expected at most 65504"):
        range_steps(torch.tensor([[7e6]]), 4, Grid())
    steps = range_steps(torch.tensor([[7e6, -7e6]]), 4, Grid(1, scales="log"))
    assert isinstance(steps, Groups) and steps.scale.tolist() == [[319, 319]]  # 16 log2(1e6) = 318.9
    with pytest.raises(QuantGolfError, match=r"expected at most 6\.65e\+35: scale the weight down"):
        range_steps(torch.tensor([[3e38]]), 2, Grid(scales="log"))
    small = range_steps(torch.tensor([[1e-30, 1.0, 0.0]]), 4, Grid(1, scales="log"))
    assert isinstance(small, Groups) and small.scale.tolist()[0][0] == round(16 * math.log2(1e-30 / 7))


@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=20), st.sampled_from([1, 3, 7, 127, 255]))
def test_logarithmic_scales_are_near_and_hold_the_last_level(scales: list[float], levels: int) -> None:
    exact = torch.tensor(scales)
    found = stored(exact, "log", levels)
    assert found.dtype == torch.int16
    ratio = values(found).double() / exact.double()
    assert (ratio >= levels / (levels + 0.5) * (1 - 1e-6)).all() and (ratio <= 2 ** (1 / 16) + 1e-6).all()
    assert torch.equal(values(found), Groups(found[None], None, len(scales)).scales()[0])


@settings(max_examples=50)
@given(
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from(["fp16", "log"]),
    st.integers(0, 99),
)
def test_any_size_of_groups_gives_codes_within_their_range(
    columns: int, size: int, bits: int, symmetric: bool, scales: str, seed: int
) -> None:
    w = weight(3, columns, seed) + seed % 3 - 1
    grid = Grid(size, symmetric, scales)  # type: ignore[arg-type]
    steps = range_steps(w, bits, grid)
    codes = nearest(w, Rounding.of(steps, bits, columns))
    lowest, highest = grid.code_range(bits)
    assert (lowest, highest) == (-(2 ** (bits - 1)) + symmetric, 2 ** (bits - 1) - 1) and highest == top_level(bits)
    assert lowest <= int(codes.min()) <= int(codes.max()) <= highest
    if isinstance(steps, Groups) and steps.zero is not None:
        assert lowest <= int(steps.zero.min()) <= int(steps.zero.max()) <= highest
    error = (QTensor(codes, steps, bits).dequantize() - w).abs().max()
    assert float(error) <= 2 * float(w.abs().max()) / (2 ** (bits - 1) - 1) * 0.51 + 1e-6 or bits == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 0}, "group_size is 0, expected a whole number of columns from 1 on"),
        ({"group_size": -4}, "group_size is -4"),
        ({"group_size": 1.5}, "group_size is 1.5"),
        ({"scales": "bf16"}, "scales is 'bf16', expected 'fp16' or 'log'"),
    ],
)
def test_grids_that_are_none_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        Grid(**arguments)  # type: ignore[arg-type]
