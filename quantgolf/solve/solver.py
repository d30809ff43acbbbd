"""One entry for all solvers: prepare a weight once, then predict or solve it at any width."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve.device import on_gpu
from quantgolf.solve.gptq import Factor, factorise, feed_back
from quantgolf.solve.grid import LARGEST, ROWS, Grid, Rounding, nearest, range_steps
from quantgolf.solve.magnitude import difference, out_of_range
from quantgolf.solve.search import rounded_costs, searched_steps
from quantgolf.types import Groups, QTensor, SolveReport, Steps, WeightStats

Solver = Literal["rtn", "gptq_lite", "gptq"]
WIDTHS = range(2, 9)
DAMP = 0.01


@dataclass(frozen=True)
class SolveOptions:
    """Options of the solvers. Defaults are measured by `benchmarks/gptq_options.py`, `benchmarks/grids.py` and
    `benchmarks/slope_options.py`.

    Attributes:
        damp: added to the diagonals of H and G, as a share of their means. None: 0.01 for GPTQ and 0.03 for one slope,
            where it took 2.5% off golf's KL at 3.5 bits and 2.8% at 2.5, mean of four sizes each.
        act_order: process columns by falling diagonal of H instead of as they stand; of one slope, where levels lie
            down columns.
        block_size: columns between two updates of the rest; speed, not result.
        row_exponent, column_exponent: of one slope. Its step is c · V_ii^row_exponent · U_jj^column_exponent, with
            (row weight)^(-1/2) for V_ii where rows are independent: 1 is reverse water-filling, 0 one step for all.
        least_row: of one slope. No row counts less on the diagonal of G than this share of the mean one, so that rows
            which calibration hardly felt keep a finite step.
        across_rows: of one slope. Errors go to other rows as well, where calibration has their covariance.
        grid: of the solvers at fixed widths: groups of columns, zeros, and how scales are stored.
    """

    damp: float | None = None
    act_order: bool = True
    block_size: int = 128
    row_exponent: float = 1.0
    column_exponent: float = 1.0
    least_row: float = 0.05
    across_rows: bool = True
    grid: Grid = ROWS

    def __post_init__(self) -> None:
        if self.damp is not None and not 0 < self.damp <= 1:
            raise QuantGolfError(f"damp is {self.damp}, expected more than 0 and at most 1, for example 0.01")
        for name, value in (("row_exponent", self.row_exponent), ("column_exponent", self.column_exponent)):
            if not 0 <= value <= 2:
                raise QuantGolfError(f"{name} is {value}, expected 0 (the same step everywhere) to 2; the default is 1")
        if not 0 <= self.least_row <= 1:
            raise QuantGolfError(f"least_row is {self.least_row}, expected a share from 0 to 1, for example 0.05")
        if self.block_size < 1:
            raise QuantGolfError(f"block_size is {self.block_size}, expected at least 1, for example 128")


@dataclass(frozen=True)
class Prepared:
    """A weight with everything its solver needs at every width.

    Attributes:
        weight: [N, K] fp32, where it was given: on a GPU it is solved there.
        stats: of the same weight.
        importance: [K] fp32 beside the weight, what a squared error in each column costs under the solver: the
            diagonal of H̄, or for GPTQ the pivots that feedback leaves, divided by `unit`.
        unit: 1, or a power of two where those are huge or tiny.
        factor: GPTQ's factor of H̄; None for the others.
        largest: the largest finite number of the dtype that the weight comes back in.
    """

    weight: Tensor
    stats: WeightStats
    solver: Solver
    options: SolveOptions
    importance: Tensor
    unit: float
    factor: Factor | None
    largest: float


def prepare(
    weight: Tensor, stats: WeightStats, solver: Solver, options: SolveOptions, dtype: torch.dtype | None = None
) -> Prepared:
    """Checks a weight [N, K] against its statistics and factors the Hessian where the solver asks for it.

    Args:
        dtype: of the tensor that codes will be restored to: all of them stand for finite numbers there. None for the
            weight's own.

    Raises:
        QuantGolfError: not a finite matrix, statistics of another shape, an unknown solver, or a Hessian that
            no damping makes positive definite.
    """
    refuse_unfit(weight, stats)
    hessian = stats.hessian()
    largest = min(torch.finfo(dtype or weight.dtype).max, LARGEST)
    weight = weight.detach().float()
    if solver == "gptq":
        device = weight.device if on_gpu(weight) else None
        factor = factorise(hessian, options.damp or DAMP, options.act_order, stats.name, device)
        return Prepared(weight, stats, solver, options, *_in_units(factor.pivots(), weight), factor, largest)
    if solver not in ("rtn", "gptq_lite"):
        raise QuantGolfError(f"solver is {solver!r}, expected 'rtn', 'gptq_lite' or 'gptq'")
    return Prepared(weight, stats, solver, options, *_in_units(hessian.diagonal(), weight), None, largest)


def _in_units(importance: Tensor, weight: Tensor) -> tuple[Tensor, float]:
    """What columns [K] count, in fp32 beside the weight, and the unit of that."""
    unit = 2.0 ** out_of_range(importance.max())
    return (importance / unit).float().to(weight.device).contiguous(), unit


def refuse_unfit(weight: Tensor, stats: WeightStats) -> None:
    """Refuses a weight [N, K] that cannot be solved, and statistics that are not its own or not numbers.

    Raises:
        QuantGolfError: as said.
    """
    name = stats.name
    if weight.ndim != 2 or not weight.numel():
        raise QuantGolfError(f"{name} has shape {list(weight.shape)}, expected a matrix [N, K] that is not empty")
    if not weight.isfinite().all():
        raise QuantGolfError(f"{name} has values that are NaN or infinite, expected finite weights")
    rows, columns = weight.shape
    for use in stats.uses:
        if use.row.shape != (rows,) or use.column.shape != (columns, columns):
            raise QuantGolfError(
                f"{name} is {list(weight.shape)}, but its statistics are {list(use.row.shape)} rows and "
                f"{list(use.column.shape)} columns: calibrate this model anew"
            )
        if use.outputs is not None and use.outputs.shape != (rows, rows):
            raise QuantGolfError(
                f"{name} is {list(weight.shape)}, but its statistics have outputs {list(use.outputs.shape)}: calibrate "
                "this model anew"
            )
        known = (use.row, use.column) if use.outputs is None else (use.row, use.column, use.outputs)
        if not all(tensor.isfinite().all() for tensor in known):
            raise QuantGolfError(
                f"statistics of {name} have values that are NaN or infinite, expected finite ones: calibrate in fp32"
            )


def steps_of(prepared: Prepared, bits: int) -> Steps | Groups:
    """Scales and zeros beside the weight: RTN holds the range of each group, the others search its clip.

    GPTQ's are searched once, in the weight as it stands, so that columns of a group may come in any order. Searching a
    group anew in what feedback has left of it, when its first column's turn comes, needs columns in theirs: groups of
    64 then have 10% and 14% more KL on the golf model at 3 and 4 bits, on the demo about the same
    (`benchmarks/gptq_options.py`).
    """
    if bits not in WIDTHS:
        raise QuantGolfError(f"bits is {bits}, expected {WIDTHS[0]} to {WIDTHS[-1]}")
    weight, grid, largest = prepared.weight, prepared.options.grid, prepared.largest
    if prepared.solver != "rtn":
        return searched_steps(weight, bits, prepared.importance, grid, largest)
    try:
        return range_steps(weight, bits, grid, largest)
    except QuantGolfError as error:
        raise QuantGolfError(f"{prepared.stats.name} at {bits} bits: {error}") from error


def solve(prepared: Prepared, bits: int) -> tuple[QTensor, SolveReport]:
    """Codes and steps of a weight at one width, on the CPU, and how it went."""
    steps = steps_of(prepared, bits)
    rounding = Rounding.of(steps, bits, prepared.weight.shape[1])
    if prepared.factor is None:
        codes = nearest(prepared.weight, rounding)
    else:
        codes = feed_back(prepared.weight, prepared.factor, rounding, prepared.options.block_size)
    return reported(prepared, QTensor(codes, steps, bits))


def reported(prepared: Prepared, tensor: QTensor) -> tuple[QTensor, SolveReport]:
    """Codes that were found for a weight, moved to the CPU, and how that went."""
    factor, steps = prepared.factor, tensor.steps
    assert tensor.bits is not None
    report = SolveReport(
        prepared.stats.name, prepared.solver, tensor.bits,
        loss=prepared.stats.loss(difference(tensor.dequantize(), prepared.weight)),
        damp=factor.damp if factor else 0.0,
        retries=factor.retries if factor else 0,
        dead_columns=int(factor.dead.sum()) if factor else 0,
    )  # fmt: skip
    if isinstance(steps, Steps):
        return QTensor(tensor.codes.cpu(), Steps(steps.row.cpu()), tensor.bits), report
    zero = None if steps.zero is None else steps.zero.cpu()
    return QTensor(tensor.codes.cpu(), Groups(steps.scale.cpu(), zero, steps.size), tensor.bits), report


@dataclass(frozen=True)
class Predicted:
    """What a width should cost: the histogram of its codes from the lowest to the highest one there is, the scales and
    zeros that go with them, and the rise of the loss in nats per token."""

    counts: NDArray[np.int64]
    steps: Steps | Groups
    loss: float


def predict(prepared: Prepared, bits: int) -> Predicted:
    """Costs of a width without solving.

    Codes are the nearest ones. For RTN and GPTQ-lite that is the solution; for GPTQ each column's rounding
    error counts with the pivot that feedback leaves of it.
    """
    steps = steps_of(prepared, bits)
    rounding = Rounding.of(steps, bits, prepared.weight.shape[1])
    counts, losses = rounded_costs(prepared.weight, rounding, prepared.importance)
    if prepared.factor is not None:
        lost = float(losses @ prepared.stats.row_weight().cpu().double().numpy())
        return Predicted(counts, steps, 0.5 * prepared.unit * lost)
    restored = QTensor(nearest(prepared.weight, rounding), steps, bits).dequantize()
    return Predicted(counts, steps, prepared.stats.loss(difference(restored, prepared.weight)))
