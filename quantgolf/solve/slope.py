"""One slope: every step of every matrix from one number, and GPTQ's feedback on the grid that makes.

An error of weight (i, j) costs the loss row_i · ℓ_j² / 2 once feedback has spread what it can (ℓ_j² = 1 / U_jj², the
pivot of column j in processing order). With the step c · row_i^(-1/2) · U_jj every weight's rounding error costs the
same: reverse water-filling (Cover & Thomas, 10.3.3) for all matrices at once, so that c is the one knob of the file's
size. U has to be that of the order in which columns are processed: steps from another order cost up to 40% and raise
no error.

Steps are powers of 2^(1/4). A file stores the powers, about 3 bits a row and a column.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve.gptq import Factor, factorise
from quantgolf.solve.solver import SolveOptions
from quantgolf.solve.trellis import Trellis, quantize_column
from quantgolf.types import WeightStats

RESOLUTION = 4  # powers an octave
# Rows that calibration hardly felt keep a finite step: no row counts less than this share of the mean one. KL of the
# demo at 3.2 bits by share 0.001, 0.01, 0.05, 0.2: 0.131, 0.055, 0.049, 0.049 from 4,096 tokens, which miss many pieces
# of the vocabulary, and 0.051, 0.039, 0.039, 0.038 from 16,384.
LEAST_ROW = 0.05
LARGEST_POWER = 1 << 12


@dataclass(frozen=True)
class Grid:
    """The steps of a matrix but for the slope, in log2: the step of (i, j) is 2^(row[i] + column[j]) · c.

    Attributes:
        row, column: fp64 [N] and [K].
        spread: log2 of the root mean square of the weights.
    """

    row: Tensor
    column: Tensor
    spread: float

    def powers(self, slope: float) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
        """Rows [N] and columns [K] and the spread as whole powers of 2^(1/4); the slope goes to the rows."""
        row = ((self.row + np.log2(slope)) * RESOLUTION).round().clamp(-LARGEST_POWER, LARGEST_POWER)
        column = (self.column * RESOLUTION).round().clamp(-LARGEST_POWER, LARGEST_POWER)
        return row.numpy().astype(np.int16), column.numpy().astype(np.int16), round(self.spread * RESOLUTION)


def prepare_slope(weight: Tensor, stats: WeightStats, options: SolveOptions) -> tuple[Grid, Factor]:
    """The grid of a matrix [N, K] and the factor of its Hessian, which has the processing order.

    Raises:
        QuantGolfError: a weight that is not finite, statistics of another shape, or a Hessian that no damping makes
            positive definite.
    """
    if not weight.isfinite().all():
        raise QuantGolfError(f"{stats.name} has values that are NaN or infinite, expected finite weights")
    if stats.uses[0].row.shape != weight.shape[:1] or stats.uses[0].column.shape[:1] != weight.shape[1:]:
        raise QuantGolfError(
            f"{stats.name} is {list(weight.shape)}, but its statistics are of another shape: calibrate this model anew"
        )
    factor = factorise(stats.hessian(), options.damp, options.act_order, stats.name)
    felt = stats.row_weight().double().cpu()
    felt = felt.clamp(min=max(LEAST_ROW * float(felt.mean()), torch.finfo(torch.float32).tiny))
    column = torch.empty(len(factor.order), dtype=torch.float64)
    column[factor.order] = factor.upper.diagonal().log2()
    spread = float(weight.double().square().mean().clamp(min=torch.finfo(torch.float32).tiny).sqrt().log2())
    return Grid(felt.log2() / -2, column, spread), factor


def solve_slope(
    weight: Tensor, factor: Factor, row: NDArray[np.int16], column: NDArray[np.int16], trellis: Trellis,
    block_size: int = 128,
) -> NDArray[np.int32]:  # fmt: skip
    """Levels int32 [N, K] of GPTQ on the grid 2^((row + column) / 4), each column quantized by the trellis.

    Args:
        weight: [N, K].
        factor: of its Hessian, whose order columns are processed in.
        row, column: powers of 2^(1/4), [N] and [K].
        trellis: runs down the rows of a column, so that feedback across columns is that of GPTQ.
        block_size: columns between two updates of the rest; speed, not result.
    """
    order = factor.order.numpy()
    rest = weight.detach().cpu().double()[:, factor.order].T.contiguous()
    columns, rows = rest.shape
    upper = factor.upper
    rows_steps = np.exp2(row.astype(np.float64) / RESOLUTION)
    column_steps = np.exp2(column.astype(np.float64) / RESOLUTION)[order]
    levels = np.empty((columns, rows), dtype=np.int32)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty(stop - start, rows, dtype=torch.float64)
        _solve_block(
            rest[start:stop].numpy(), upper[start:stop, start:stop].contiguous().numpy(), rows_steps,
            column_steps[start:stop], trellis.after, trellis.restart, levels[start:stop], errors.numpy(),
        )  # fmt: skip
        if stop < columns:
            rest[stop:] -= upper[start:stop, stop:].T @ errors
    levels[factor.dead.numpy()[order]] = 0
    result = np.empty((rows, columns), dtype=np.int32)
    result[:, order] = levels.T
    return result


@numba.njit(cache=True, nogil=True)
def _solve_block(
    weight: NDArray[np.float64],
    upper: NDArray[np.float64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    after: NDArray[np.int64],
    restart: int,
    levels: NDArray[np.int32],
    errors: NDArray[np.float64],
) -> None:
    """Solves a block of columns in place: weight, levels and errors [columns, N], upper [columns, columns]."""
    columns, rows = weight.shape
    targets = np.empty(rows)
    for j in range(columns):
        for i in range(rows):
            targets[i] = weight[j, i] / (row[i] * column[j])
        quantize_column(targets, after, restart, levels[j])
        for i in range(rows):
            errors[j, i] = (weight[j, i] - levels[j, i] * row[i] * column[j]) / upper[j, j]
        for k in range(j + 1, columns):
            factor = upper[j, k]
            for i in range(rows):
                weight[k, i] -= factor * errors[j, i]
