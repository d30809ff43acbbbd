"""Some solves on a GPU, to know what all of them will take. Time there does not follow from a few rows, as it does on a
CPU: what a batch takes is measured on one, of each shape, of matrices drawn at random."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from quantgolf.compress.candidates import solve_many
from quantgolf.compress.place import AT_ONCE, Place, working_bytes
from quantgolf.solve import WIDTHS, SolveOptions, Solver, predict, prepare, solve
from quantgolf.solve.slope import prepare_slope, solve_slope_many
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightStats, WeightUse

WIDTH = 4  # that stands for all of them


def gpu_seconds(
    kept: Sequence[tuple[int, ...]],
    solver: Solver | Literal["slope"],
    place: Place,
    slopes: int,
    solves: float,
    options: SolveOptions,
    priced: int,
) -> float:
    """Time to solve matrices of these `held_sizes`.

    Args:
        slopes: at so many slopes, factors made anew for each.
        solves: at fixed widths so often, after all widths are priced `priced` times.
        options: of the solvers at fixed widths.
    """
    total = 0.0
    for (rows, columns, *outputs), count in Counter(kept).items():
        at_once = min(count, max(1, place.room(AT_ONCE) // working_bytes(rows, columns)))
        with place.entered():
            inputs = torch.randn(2 * columns, columns, device=place.device)
            felt = torch.eye(rows, device=place.device) if outputs and solver == "slope" else None
            use = WeightUse("linear", torch.ones(rows, device=place.device), inputs.T @ inputs, 1, felt)
            stats, weight = WeightStats("sample", (use,), 1), torch.randn(rows, columns, device=place.device)
            if solver == "slope":
                preparing, solving = _slope_seconds(stats, weight, at_once, place)
                total += slopes * count * (preparing + solving / at_once)
            else:
                preparing, pricing, solving = _fixed_seconds(stats, weight, solver, at_once, place, options)
                total += count * (preparing * (1 + solves) + priced * pricing + solves * solving / at_once)
    return total


def _fixed_seconds(
    stats: WeightStats, weight: Tensor, solver: Solver, at_once: int, place: Place, options: SolveOptions
) -> tuple[float, float, float]:
    """Time to prepare a matrix, to price all its widths, and to solve a batch of them."""

    def run() -> object:
        if solver == "gptq":
            return solve_many([prepared] * at_once, WIDTH)
        return [solve(prepared, WIDTH) for _ in range(at_once)]

    prepared = prepare(weight, stats, solver, options)
    preparing = _seconds(lambda: prepare(weight, stats, solver, options), place)
    pricing = _seconds(lambda: predict(prepared, WIDTH), place) * len(WIDTHS)
    return preparing, pricing, _seconds(run, place)


def _slope_seconds(stats: WeightStats, weight: Tensor, at_once: int, place: Place) -> tuple[float, float]:
    """Time to factor the Hessians of a matrix, and to solve a batch of them at one slope."""
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    preparing = _seconds(lambda: prepare_slope(weight, stats, SolveOptions()), place)
    row, column, _ = grid.powers(1.0)

    def run(count: int) -> object:
        weights = weight.expand(count, *weight.shape).contiguous()
        rows, columns = (np.stack([side] * count) for side in (row, column))
        return solve_slope_many(weights, [feedback] * count, rows, columns, Trellis())

    return preparing, _seconds(lambda: run(at_once), place, warm=lambda: run(1))


def _seconds(work: Callable[[], object], place: Place, *, warm: Callable[[], object] | None = None) -> float:
    """Time of a call, after one (of `warm`, where it is given) that compiles what has to be."""
    (warm or work)()
    place.wait()
    started = time.monotonic()
    work()
    place.wait()
    return time.monotonic() - started
