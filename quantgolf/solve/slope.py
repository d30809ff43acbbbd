"""One slope: every step of every matrix from one number, and GPTQ's feedback on the grid that makes.

An error of weight (i, j) costs the loss row_i · ℓ_j² / 2 once feedback has spread what it can (ℓ_j² = 1 / U_jj², the
pivot of column j in processing order). With the step c · row_i^(-1/2) · U_jj every weight's rounding error costs the
same: reverse water-filling (Cover & Thomas, 10.3.3) for all matrices at once, so that c is the one knob of the file's
size. U has to be that of the order in which columns are processed: steps from another order cost up to 40% and raise
no error.

Steps are powers of 2^(1/4). A file stores the powers, about 3 bits a row and a column.
"""

from dataclasses import dataclass, replace

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
LARGEST_POWER = 1 << 12
# Solved together. A core at [4096, 1536] with 256, 512, 1,024, 2,048, 4,096: 10.7, 14.2, 14.9, 13.6, 13.4 M weights/s.
ROWS_AT_ONCE = 1024
PANEL = 4  # columns whose errors are added up before they go to others of a block


@dataclass(frozen=True)
class Grid:
    """The steps of a matrix but for the slope, in log2: the step of (i, j) is 2^(row[i] + column[j]) · c.

    Attributes:
        row, column: fp64 [N] and [K].
        spread: log2 of the root mean square of the weights.
        spreads: the same of each row, fp64 [N].
    """

    row: Tensor
    column: Tensor
    spread: float
    spreads: Tensor

    def powers(self, slope: float) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
        """Rows [N] and columns [K] and the spread as whole powers of 2^(1/4); the slope goes to the rows."""
        row = ((self.row + np.log2(slope)) * RESOLUTION).round().clamp(-LARGEST_POWER, LARGEST_POWER)
        column = (self.column * RESOLUTION).round().clamp(-LARGEST_POWER, LARGEST_POWER)
        return row.numpy().astype(np.int16), column.numpy().astype(np.int16), round(self.spread * RESOLUTION)


def prepare_slope(weight: Tensor, stats: WeightStats, options: SolveOptions) -> tuple[Grid, Factor]:
    """The grid of a matrix [N, K] and the factor of its Hessian, which has the processing order; U in fp32.

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
    felt = felt.clamp(min=max(options.least_row * float(felt.mean()), torch.finfo(torch.float32).tiny))
    column = torch.empty(len(factor.order), dtype=torch.float64)
    column[factor.order] = factor.upper.diagonal().log2()
    tiny = torch.finfo(torch.float32).tiny
    squares = weight.double().square().mean(1).cpu()
    spread = float(squares.mean().clamp(min=tiny).sqrt().log2())
    row, column = -options.row_exponent / 2 * felt.log2(), options.column_exponent * column
    grid = Grid(row, column, spread, squares.clamp(min=tiny).log2() / 2)
    return grid, replace(factor, upper=factor.upper.float())


def solve_slope(
    weight: Tensor, factor: Factor, row: NDArray[np.int16], column: NDArray[np.int16], trellis: Trellis,
    block_size: int = 128,
) -> NDArray[np.int32]:  # fmt: skip
    """Levels int32 [N, K] of GPTQ on the grid 2^((row + column) / 4), each column quantized by the trellis.

    They lie column after column in memory, as the coder takes them.

    Args:
        weight: [N, K].
        factor: of its Hessian, whose order columns are processed in.
        row, column: powers of 2^(1/4), [N] and [K].
        trellis: runs down the rows of a column, so that feedback across columns is that of GPTQ.
        block_size: columns between two updates of the rest; speed, not result.
    """
    levels = np.empty((weight.shape[1], weight.shape[0]), dtype=np.int32)
    for part in row_parts(len(weight), trellis):
        levels[:, part] = solve_rows(weight[part], factor, row[part], column, trellis, block_size)
    return levels.T


def row_parts(rows: int, trellis: Trellis) -> list[slice]:
    """Rows cut where the trellis begins again, about `ROWS_AT_ONCE` a part: each can be solved without the others."""
    step = max(1, ROWS_AT_ONCE // trellis.restart) * trellis.restart
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def solve_rows(
    weight: Tensor, factor: Factor, row: NDArray[np.int16], column: NDArray[np.int16], trellis: Trellis,
    block_size: int = 128,
) -> NDArray[np.int32]:  # fmt: skip
    """As `solve_slope`, of all rows at once: levels int32 [K, N], transposed.

    Rows are cut and solved side by side without a change of any level, as long as each part begins where the trellis
    does and torch has one thread: the sums of a matrix product depend on how many it has.
    """
    order = factor.order.numpy()
    rest = weight.detach().cpu()[:, factor.order].T.to(torch.float64).contiguous()
    columns, rows = rest.shape
    rows_steps = np.exp2(row.astype(np.float64) / RESOLUTION)
    column_steps = np.exp2(column.astype(np.float64) / RESOLUTION)[order]
    levels = np.empty((columns, rows), dtype=np.int32)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty(stop - start, rows, dtype=torch.float64)
        upper = factor.upper[start:stop].double()
        _solve_block(
            rest[start:stop].numpy(), upper[:, start:stop].contiguous().numpy(), rows_steps,
            column_steps[start:stop], trellis.arrivals, trellis.restart, levels[start:stop], errors.numpy(),
        )  # fmt: skip
        if stop < columns:
            rest[stop:].addmm_(upper[:, stop:].T, errors, alpha=-1)
    levels[factor.dead.numpy()[order]] = 0
    result = np.empty_like(levels)
    result[order] = levels
    return result


@numba.njit(cache=True, nogil=True)
def _solve_block(
    weight: NDArray[np.float64],
    upper: NDArray[np.float64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    arrivals: NDArray[np.int64],
    restart: int,
    levels: NDArray[np.int32],
    errors: NDArray[np.float64],
) -> None:
    """Solves a block of columns in place: weight, levels and errors [columns, N], upper [columns, columns].

    An error goes at once to the columns of its panel, and those of a whole panel together to the columns behind it.
    """
    columns, rows = weight.shape
    targets = np.empty(rows)
    for first in range(0, columns, PANEL):
        end = min(first + PANEL, columns)
        for j in range(first, end):
            for i in range(rows):
                targets[i] = weight[j, i] / (row[i] * column[j])
            quantize_column(targets, arrivals, restart, levels[j])
            for i in range(rows):
                errors[j, i] = (weight[j, i] - levels[j, i] * (row[i] * column[j])) / upper[j, j]
            for k in range(j + 1, end):
                factor = upper[j, k]
                for i in range(rows):
                    weight[k, i] -= factor * errors[j, i]
        for k in range(end, columns):  # a panel with columns behind it is a whole one
            a, b, c, d = upper[first, k], upper[first + 1, k], upper[first + 2, k], upper[first + 3, k]
            for i in range(rows):
                near = a * errors[first, i] + b * errors[first + 1, i]
                weight[k, i] -= near + (c * errors[first + 2, i] + d * errors[first + 3, i])
