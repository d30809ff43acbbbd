"""One slope: every step of every matrix from one number, and GPTQ's feedback on the grid that makes.

An error of weight (i, j) costs the loss row_i · ℓ_j² / 2 once feedback has spread what it can (ℓ_j² = 1 / U_jj², the
pivot of column j in processing order). With the step c · row_i^(-1/2) · U_jj every weight's rounding error costs the
same: reverse water-filling (Cover & Thomas, 10.3.3) for all matrices at once, so that c is the one knob of the file's
size. U has to be that of the order in which columns are processed: steps from another order cost up to 40% and raise
no error. Where the covariance of output gradients G is known the same is done across rows (`diagonals`), and V_ii of
(G + damping)⁻¹ = Vᵀ V stands in the place of row_i^(-1/2). Columns and rows are taken as they stand then: the file has
to tell the order in which the trellis runs, and without clipping another one is worth little: ordered by the diagonal
of H, KL is 1 and 7% more on the golf model at 3.5 and 2.5 bits, 1 and 2.5% less on the demo.

A weight on a GPU is solved there, without waiting for the CPU in between. Down columns (`trellis_block` of
quantgolf_kernels) everything is fp64 as on the CPU, and only what blocks leave to columns behind them is summed in
another order: levels differ where a target lies within 1e-13 or so of what tips a path. Along diagonals that is fp32.

Steps are powers of 2^(1/4). A file stores the powers, about 3 bits a row and a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve.device import on_gpu
from quantgolf.solve.diagonals import solve_diagonals, solve_diagonals_many
from quantgolf.solve.gptq import Factor, factorise
from quantgolf.solve.rows import WIDEST, solve_rows_many
from quantgolf.solve.solver import SolveOptions, refuse_unfit
from quantgolf.solve.trellis import Trellis, quantize_run
from quantgolf.types import WeightStats

RESOLUTION = 4  # powers an octave
LARGEST_POWER = 1 << 12
DAMP = 0.03
MOST_OCTAVES = 50  # of columns' steps from 1; what is beyond goes to the rows', since fp32 holds both by themselves
LEVEL_BITS = 28  # of the largest weight's level; feedback may ask for some more
STEP_OCTAVES = 120  # of the largest step; a matrix that wants more is all zeros under this one as well
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
        diagonal: whether levels are paths of the trellis along diagonals instead of down columns.
        finest: fp64 [N], the least log2 of each row's step, slope and all: levels are int32, and hold no more.
        coarsest: the largest log2 of any, so that no step is infinite.
    """

    row: Tensor
    column: Tensor
    spread: float
    spreads: Tensor
    diagonal: bool
    finest: Tensor
    coarsest: float

    def powers(self, slope: float) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
        """Rows [N] and columns [K] and the spread as whole powers of 2^(1/4); the slope goes to the rows."""
        row = torch.maximum(self.row + np.log2(slope), self.finest).clamp(max=self.coarsest)
        row = (row * RESOLUTION).round().clamp(-LARGEST_POWER, LARGEST_POWER)
        column = (self.column * RESOLUTION).round().clamp(-LARGEST_POWER, LARGEST_POWER)
        return row.numpy().astype(np.int16), column.numpy().astype(np.int16), round(self.spread * RESOLUTION)


@dataclass(frozen=True)
class Feedback:
    """Where the errors of a matrix [N, K] go.

    Attributes:
        columns: factor of H, which has the processing order; U in fp32.
        across: that of G, V fp32 [N, N] in the rows' own order; None where rows do not know of each other.
    """

    columns: Factor
    across: Factor | None

    @property
    def damp(self) -> float:
        """The larger share of a mean diagonal that was added."""
        return max(self.columns.damp, self.across.damp if self.across else 0.0)

    @property
    def retries(self) -> int:
        """How often damping had to grow, on the side where that was more often."""
        return max(self.columns.retries, self.across.retries if self.across else 0)


def prepare_slope(weight: Tensor, stats: WeightStats, options: SolveOptions) -> tuple[Grid, Feedback]:
    """The grid of a matrix [N, K] and its feedback.

    Raises:
        QuantGolfError: weights or statistics that are not finite, statistics of another shape, or a Hessian that no
            damping makes positive definite.
    """
    refuse_unfit(weight, stats)
    hessian, outputs = stats.hessian(), stats.outputs() if options.across_rows else None
    damp, tiny = options.damp or DAMP, torch.finfo(torch.float32).tiny
    across, device = None, weight.device if on_gpu(weight) else None
    if outputs is None:
        felt = stats.row_weight().double().cpu()
        row = -felt.clamp(min=max(options.least_row * float(felt.mean()), tiny)).log2() / 2
    else:
        name = f"the outputs of {stats.name}"
        across = _fp32(factorise(_raised(outputs, options.least_row), damp, False, name, device))
        row = across.spreads()
    columns = _fp32(factorise(hessian, damp, options.act_order and outputs is None, stats.name, device))
    column = columns.spreads()
    if (
        columns.dead.any() and not columns.dead.all()
    ):  # their levels are about zero, which takes hardly a bit under a wide step
        column[columns.dead] = column[~columns.dead].max() + 1
    row, column = options.row_exponent * row, options.column_exponent * column
    if abs(far := round(float(column.mean()))) > MOST_OCTAVES:
        row, column = row + far, column - far
    squares = weight.double().square().mean(1).cpu()
    squares = squares.where(squares > 0, tiny)
    finest = weight.abs().amax(1).double().cpu().log2() - LEVEL_BITS - column.min()
    grid = Grid(
        row, column, float(squares.mean().log2()) / 2, squares.log2() / 2, across is not None, finest,
        STEP_OCTAVES - float(column.max()),
    )  # fmt: skip
    return grid, Feedback(columns, across)


def _raised(outputs: Tensor, least: float) -> Tensor:
    """G in fp64 with its diagonal, whose mean is 1, raised to `least`: rows that calibration hardly felt keep a finite
    step."""
    raised = outputs.to(torch.float64, copy=True)
    raised.diagonal().clamp_(min=max(least, torch.finfo(torch.float32).tiny))
    return raised


def _fp32(factor: Factor) -> Factor:
    return replace(factor, upper=factor.upper.float())


def solve_slope(
    weight: Tensor, feedback: Feedback, row: NDArray[np.int16], column: NDArray[np.int16], trellis: Trellis,
    block_size: int = 128,
) -> NDArray[np.int32]:  # fmt: skip
    """Levels int32 [N, K] on the grid 2^((row + column) / 4), each column or each diagonal a path of the trellis.

    Args:
        weight: [N, K]; on a GPU it is solved there.
        feedback: from `prepare_slope`.
        row, column: powers of 2^(1/4), [N] and [K].
        trellis: runs down the rows of a column, so that feedback across columns is that of GPTQ, or along diagonals.
        block_size: columns between two updates of the rest; speed, not result.
    """
    if feedback.across is not None:
        weight = weight.masked_fill(feedback.columns.dead.to(weight.device), 0.0)
        return solve_diagonals(
            weight, feedback.columns.upper, feedback.across.upper, _steps(row), _steps(column), trellis
        )  # fmt: skip
    factor = feedback.columns
    if on_gpu(weight):  # segments are programs of their own there
        return solve_rows(weight, factor, row, column, trellis, block_size).T
    levels = np.empty((weight.shape[1], weight.shape[0]), dtype=np.int32)
    for part in row_parts(len(weight), trellis):
        levels[:, part] = solve_rows(weight[part], factor, row[part], column, trellis, block_size)
    return levels.T


def solve_slope_many(
    weights: Tensor, feedback: Sequence[Feedback], rows: NDArray[np.int16], columns: NDArray[np.int16],
    trellis: Trellis, block_size: int = WIDEST,
) -> NDArray[np.int32]:  # fmt: skip
    """Levels int32 [B, N, K] of B matrices of equal shape at once, as `solve_slope` gives them on a GPU.

    One matrix does not fill a GPU: it has a program a segment of the trellis. On a CPU the inner loops are plain torch,
    and slow.

    Args:
        weights: [B, N, K].
        feedback: of each, all across rows or none.
        rows, columns: powers of 2^(1/4), [B, N] and [B, K].

    Raises:
        QuantGolfError: some with feedback across rows and some without.
    """
    across = [each.across.upper for each in feedback if each.across is not None]
    if not across:
        factors = [each.columns for each in feedback]
        found = solve_rows_many(weights, factors, _steps(rows), _steps(columns), trellis, block_size)
        return found.mT.cpu().numpy()
    if len(across) < len(feedback):
        raise QuantGolfError(
            f"{len(across)} of {len(feedback)} matrices have feedback across rows, expected all or none"
        )
    dead = torch.stack([each.columns.dead for each in feedback]).to(weights.device)
    upper = torch.stack([each.columns.upper for each in feedback])
    levels = solve_diagonals_many(
        weights.masked_fill(dead[:, None], 0.0), upper, torch.stack(across), _steps(rows), _steps(columns), trellis
    )
    return levels.cpu().numpy()


def _steps(powers: NDArray[np.int16]) -> NDArray[np.float64]:
    return np.exp2(powers.astype(np.float64) / RESOLUTION)


def row_parts(rows: int, trellis: Trellis) -> list[slice]:
    """Rows cut where the trellis begins again, about `ROWS_AT_ONCE` a part: each can be solved without the others."""
    step = max(1, ROWS_AT_ONCE // trellis.restart) * trellis.restart
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def solve_rows(
    weight: Tensor, factor: Factor, row: NDArray[np.int16], column: NDArray[np.int16], trellis: Trellis,
    block_size: int = 128,
) -> NDArray[np.int32]:  # fmt: skip
    """Levels int32 [K, N], transposed, of rows that do not know of others, each column a path of the trellis.

    Rows are cut and solved side by side without a change of any level, as long as each part begins where the trellis
    does and torch has one thread: the sums of a matrix product depend on how many it has.
    """
    if on_gpu(weight):
        steps = _steps(row[None]), _steps(column[None])
        return solve_rows_many(weight[None], [factor], *steps, trellis, block_size)[0].cpu().numpy()
    order, whole = factor.order.numpy(), factor.upper.cpu()
    rest = weight.detach().cpu()[:, factor.order].T.to(torch.float64).contiguous()
    columns, rows = rest.shape
    rows_steps, column_steps = _steps(row), _steps(column)[order]
    levels = np.empty((columns, rows), dtype=np.int32)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty(stop - start, rows, dtype=torch.float64)
        upper = whole[start:stop].double()
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
    arrivals: NDArray[np.uint8],
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
            quantize_run(targets, 0, 0, arrivals, restart, levels[j])
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
