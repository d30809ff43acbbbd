"""Steps against searches written out in float64."""

import numpy as np
import pytest
import torch

from quantgolf.errors import QuantGolfError
from quantgolf.solve.grid import RATIOS, SMALLEST, absmax_steps, as_steps, nearest, searched_steps, top_level


def weight(rows: int = 9, columns: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize("bits", range(2, 9))
def test_rtn_is_the_nearest_level(bits: int) -> None:
    w, top = weight(), 2 ** (bits - 1) - 1
    assert top_level(bits) == top
    step = absmax_steps(w, bits)
    codes = nearest(w, step, bits)
    assert step.dtype == torch.float16 and codes.dtype == torch.int8
    for i in range(len(w)):
        levels = np.arange(-top, top + 1)
        grid = levels * float(step[i])
        expected = [levels[np.abs(grid - float(x)).argmin()] for x in w[i]]
        assert codes[i].tolist() == expected
        # fp16 keeps 11 bits of the step, so that the largest weight is within that of the last level
        assert abs(float(w[i].abs().max()) / float(step[i]) - top) <= top * 2**-11


@pytest.mark.parametrize("bits", range(2, 9))
def test_clips_are_the_best_of_the_grid(bits: int) -> None:
    w = weight()
    importance = torch.rand(40, generator=torch.Generator().manual_seed(1))
    chosen = searched_steps(w, bits, importance)
    top = 2 ** (bits - 1) - 1
    for i in range(len(w)):
        row, column = w[i].double().numpy(), importance.double().numpy()

        def loss(step: float, row: np.ndarray = row, column: np.ndarray = column) -> float:
            error = row - np.clip(np.round(row / step), -top, top) * step
            return float((column * error**2).sum())

        largest = float(np.float16(float(w[i].abs().max()) / top))
        assert loss(float(chosen[i])) <= min(loss(float(np.float16(largest * r))) for r in RATIOS) * (1 + 1e-3)


def test_rows_of_zeros_get_a_step_and_huge_rows_are_refused() -> None:
    w = torch.zeros(2, 4)
    assert absmax_steps(w, 4).tolist() == [SMALLEST, SMALLEST]
    assert not nearest(w, absmax_steps(w, 4), 4).any()
    tiny = torch.linspace(-1e-4, 1e-4, 50)[None]
    step = absmax_steps(tiny, 8)
    assert float((nearest(tiny, step, 8) * step.float() - tiny).abs().max()) < 2e-6
    with pytest.raises(QuantGolfError, match=r"needs the step 1e\+06, expected at most 65504"):
        as_steps(torch.tensor([1.0, 1e6]))
