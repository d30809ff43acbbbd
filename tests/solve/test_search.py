"""The search for scales and zeros against searches written out in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.solve import search
from quantgolf.solve.grid import Grid, Rounding, nearest, range_steps
from quantgolf.solve.search import RATIOS, rounded_costs, searched_steps
from quantgolf.types import Groups, QTensor, Steps

GRIDS = [
    Grid(size, symmetric, scales)
    for size in (None, 16, 7, 1)
    for symmetric in (True, False)
    for scales in ("fp16", "log")
]


def case(rows: int = 9, columns: int = 40, seed: int = 0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.05 + shift, torch.rand(columns, generator=generator)


def loss_of(w: Tensor, importance: Tensor, steps: Steps | Groups, bits: int) -> np.ndarray:
    """Of each row, by way of the weights that the codes stand for, in float64."""
    codes = nearest(w, Rounding.of(steps, bits, w.shape[1]))
    error = QTensor(codes, steps, bits).dequantize().double() - w.double()
    return (error**2 @ importance.double()).numpy()


@pytest.mark.parametrize("bits", range(2, 9))
def test_clips_of_rows_are_the_best_of_the_grid(bits: int) -> None:
    w, importance = case()
    chosen = searched_steps(w, bits, importance, Grid())
    assert isinstance(chosen, Steps)
    top = 2 ** (bits - 1) - 1
    for i in range(len(w)):
        row, column = w[i].double().numpy(), importance.double().numpy()

        def loss(step: float, row: np.ndarray = row, column: np.ndarray = column) -> float:
            error = row - np.clip(np.round(row / step), -top, top) * step
            return float((column * error**2).sum())

        largest = float(np.float16(float(w[i].abs().max()) / top))
        assert loss(float(chosen.row[i])) <= min(loss(float(np.float16(largest * r))) for r in RATIOS) * (1 + 1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_are_searched_each_by_itself(bits: int) -> None:
    """Symmetric groups of 16 of 40 columns are what rows of 16, 16 and 8 columns would be."""
    w, importance = case()
    whole = searched_steps(w, bits, importance, Grid(16))
    assert isinstance(whole, Groups) and whole.scale.shape == (9, 3)
    for g, (start, stop) in enumerate([(0, 16), (16, 32), (32, 40)]):
        part = searched_steps(w[:, start:stop].contiguous(), bits, importance[start:stop].contiguous(), Grid())
        assert isinstance(part, Steps) and torch.equal(whole.scale[:, g], part.row)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 0.04, -0.2])
def test_zeros_are_nearly_the_best_there_are(bits: int, shift: float) -> None:
    """Every zero with every scale that is tried, in float64."""
    w, importance = case(4, 24, seed=1, shift=shift)
    found = loss_of(w, importance, searched_steps(w, bits, importance, Grid(None, False)), bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for i in range(len(w)):
        row, counts = w[i].double().numpy(), importance.double().numpy()
        spread = max(row.max(), 0) - min(row.min(), 0)
        best = np.inf
        for ratio in RATIOS:
            step = float(np.float16(np.float16(spread / (2**bits - 1)) * ratio))
            zeros = np.arange(low, high + 1)[:, None]
            codes = np.clip(np.rint(row / step) + zeros, low, high)
            best = min(best, float((((codes - zeros) * step - row) ** 2 @ counts).min()))
        assert found[i] <= best * (1.12 if bits == 2 else 1.06)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bits", [2, 4])
def test_a_search_is_never_worse_than_the_range_and_costs_are_those_of_its_codes(grid: Grid, bits: int) -> None:
    w, importance = case(6, 37, shift=0.02)
    steps = searched_steps(w, bits, importance, grid)
    found, plain = (loss_of(w, importance, each, bits) for each in (steps, range_steps(w, bits, grid)))
    assert (found <= plain * (1 + 1e-4) + 1e-12).all()
    rounding = Rounding.of(steps, bits, 37)
    counts, losses = rounded_costs(w, rounding, importance)
    codes = nearest(w, rounding).numpy().astype(np.int64)
    assert losses == pytest.approx(found, rel=1e-3, abs=1e-12)
    lowest, highest = grid.code_range(bits)
    assert np.array_equal(counts, np.bincount(codes.ravel() - lowest, minlength=highest - lowest + 1))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_searched_elsewhere_is_the_same(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain torch of a GPU, and candidates that take more memory than is lent, against the CPU's loops."""
    w, importance = case(11, 30, seed=3)
    expected = searched_steps(w, 3, importance, grid)
    monkeypatch.setattr(search, "AT_ONCE", 1)
    parts = searched_steps(w, 3, importance, grid)
    monkeypatch.undo()
    monkeypatch.setattr(search, "_search", in_torch)
    there = searched_steps(w, 3, importance, grid)
    for found in (parts, there):
        if isinstance(expected, Steps):
            assert isinstance(found, Steps) and torch.equal(found.row, expected.row)
            continue
        assert isinstance(found, Groups) and torch.equal(found.scale, expected.scale)
        assert found.zero is expected.zero or torch.equal(found.zero, expected.zero)  # type: ignore[arg-type]


def in_torch(
    weight: np.ndarray, importance: np.ndarray, size: int, step: np.ndarray, zero: np.ndarray, lowest: int,
    highest: int, chosen: np.ndarray,
) -> None:  # fmt: skip
    sides = (torch.from_numpy(each) for each in (weight, importance))
    candidates = (torch.from_numpy(each) for each in (step, zero))
    chosen[:] = search._best_in_torch(*sides, size, *candidates, lowest, highest).numpy()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(1, 12), size=st.integers(1, 14), bits=st.integers(2, 8),
    symmetric=st.booleans(), log=st.booleans(),
    kind=st.sampled_from(["normal", "positive", "constant", "zeros", "tiny"]),
)  # fmt: skip
def test_any_group_can_be_searched(
    rows: int, columns: int, size: int, bits: int, symmetric: bool, log: bool, kind: str
) -> None:
    w, importance = case(rows, columns, seed=columns)
    w = {"normal": w, "positive": w.abs(), "constant": torch.full_like(w, 0.3), "zeros": w * 0, "tiny": w * 1e-12}[kind]
    grid = Grid(size, symmetric, "log" if log else "fp16")
    steps = searched_steps(w, bits, importance, grid)
    assert (
        loss_of(w, importance, steps, bits) <= loss_of(w, importance, range_steps(w, bits, grid), bits) + 1e-9
    ).all()
    if kind == "zeros":
        assert not nearest(w, Rounding.of(steps, bits, columns)).any() or not symmetric
        assert not loss_of(w, importance, steps, bits).any()


def test_columns_that_count_nothing_still_get_a_scale() -> None:
    w, _ = case(3, 8)
    for grid in (Grid(), Grid(3, False, "log")):
        steps = searched_steps(w, 4, torch.zeros(8), grid)
        codes = nearest(w, Rounding.of(steps, 4, 8))
        assert QTensor(codes, steps, 4).dequantize().isfinite().all()
