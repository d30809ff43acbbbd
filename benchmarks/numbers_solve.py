"""One hostile weight through one solver and a real file: what `hard_numbers.py` counts, and a test takes samples of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from hostile import loss_of
from torch import Tensor

from quantgolf.blob import pack, parse
from quantgolf.decoder import export_decoder
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.runtime import restore
from quantgolf.solve import SolveOptions, Solver, predict, prepare, solve
from quantgolf.solve.finite import finite_levels
from quantgolf.solve.grid import Grid
from quantgolf.solve.magnitude import difference
from quantgolf.solve.slope import prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents, Groups, WeightStats

LOSS_TOLERANCE = 2e-3  # of the reported loss against fp64, which sums in fp32 where numbers let it


@dataclass(frozen=True)
class Outcome:
    """What came of it: the weight as a file gives it back, fp32, and the loss that the solver says it costs."""

    restored: Tensor
    loss: float
    data: bytes


Way = Callable[[Tensor, WeightStats], Outcome]


def fixed(solver: Solver, bits: int, grid: Grid, act_order: bool = True) -> Way:
    """A solver at fixed widths."""

    def run(weight: Tensor, stats: WeightStats) -> Outcome:
        prepared = prepare(weight, stats, solver, SolveOptions(act_order=act_order, grid=grid))
        tensor, report = solve(prepared, bits)
        predicted = predict(prepared, bits)
        if not np.isfinite(predicted.loss) or int(predicted.counts.sum()) != weight.numel():
            raise AssertionError(f"predicted a loss of {predicted.loss} and {predicted.counts.sum()} codes")
        steps = tensor.steps if isinstance(tensor.steps, Groups) else tensor.steps.row
        quantized = Quantized(Block("w", 1, 0, len(weight)), steps, bits, encode_codes(tensor.codes))
        found = _through_a_file(weight, quantized, None)
        if not torch.equal(found.restored, tensor.dequantize()):
            raise AssertionError("the file holds other weights than were solved")
        return Outcome(found.restored, report.loss, found.data)

    return run


def one_slope(states: int, across: bool, steps_a_spread: float) -> Way:
    """One slope at which the steps are about the weights' spread over so much."""

    def run(weight: Tensor, stats: WeightStats) -> Outcome:
        trellis = Trellis(states, 16)
        grid, feedback = prepare_slope(weight, stats, SolveOptions(across_rows=across))
        wanted = grid.spread - float(grid.row.mean() + grid.column.mean()) - np.log2(steps_a_spread)
        row, column, spread = grid.powers(2.0**wanted)
        levels = solve_slope(weight, feedback, row, column, trellis)
        exponents = Exponents(torch.from_numpy(row), torch.from_numpy(column), spread)
        kept = finite_levels(levels, exponents, weight.dtype, trellis, grid.diagonal)
        block = Block("w", 1, 0, len(weight))
        leveled = Leveled(block, exponents, torch.from_numpy(np.ascontiguousarray(kept, dtype=np.int32)), grid.diagonal)
        found = _through_a_file(weight, leveled, trellis)
        return Outcome(found.restored, stats.loss(difference(found.restored.clone(), weight.float())), found.data)

    return run


def _through_a_file(weight: Tensor, part: Quantized | Leveled, trellis: Trellis | None) -> Outcome:
    data = pack(encode_model([Entry("w", weight, (part,))], trellis), None)
    return Outcome(restore(parse(data)[1])["w"], 0.0, data)


WAYS: dict[str, Way] = {
    "rtn 8": fixed("rtn", 8, Grid()),
    "rtn 2 zeros": fixed("rtn", 2, Grid(symmetric=False)),
    "rtn 4 groups": fixed("rtn", 4, Grid(7)),
    "gptq_lite 3": fixed("gptq_lite", 3, Grid()),
    "gptq_lite 8 log": fixed("gptq_lite", 8, Grid(scales="log")),
    "gptq 4": fixed("gptq", 4, Grid()),
    "gptq 8 in order": fixed("gptq", 8, Grid(), act_order=False),
    "gptq 3 groups, zeros, log": fixed("gptq", 3, Grid(5, False, "log")),
    "gptq 2 log": fixed("gptq", 2, Grid(scales="log")),
    "slope scalar": one_slope(1, False, 8),
    "slope fine": one_slope(8, False, 500),
    "slope coarse": one_slope(128, False, 0.4),
    "slope diagonals": one_slope(8, True, 8),
    "slope diagonals coarse": one_slope(1, True, 0.7),
}


@cache
def _exported() -> dict[str, Any]:
    """The stand-alone decoder, as `export-decoder` writes it."""
    module: dict[str, Any] = {"__name__": "decoder"}
    exec(export_decoder(), module)
    return module


def decoders_agree(outcome: Outcome) -> str | None:
    """What is wrong with the stand-alone decoder's reading of a file; None where nothing is."""
    found = _exported()["load"](outcome.data, exact=True)[0]["w"]
    return None if torch.equal(found, outcome.restored) else "the exported decoder gives other weights"


def fault_of(weight: Tensor, stats: WeightStats, outcome: Outcome) -> str | None:
    """What is wrong with it; None where nothing is."""
    restored = outcome.restored
    if not restored.isfinite().all():
        return "weights that are not finite"
    if not restored.to(weight.dtype).isfinite().all():
        return f"weights that are not finite in {weight.dtype}: up to {float(restored.abs().max()):g}"
    if not np.isfinite(outcome.loss):
        return f"a loss of {outcome.loss}"
    exact, unchanged = loss_of(stats, restored.double() - weight.double()), loss_of(stats, weight.float())
    # What is left of a weight that is hardly changed is rounding noise of the sums.
    if abs(outcome.loss - exact) > LOSS_TOLERANCE * abs(exact) + 1e-7 * unchanged + 1e-60:
        return f"a loss of {outcome.loss:g}, in fp64 {exact:g}"
    return None
