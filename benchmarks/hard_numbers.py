"""The promise "Numbers": hostile weights and statistics through every solver and a real file, budgets, slopes and
statistics of drawn models; a line a kind of case. CI takes samples of them (`tests/benchmarks/test_hard_numbers.py`).

    OMP_NUM_THREADS=1 python benchmarks/hard_numbers.py --solves 3000 --models 60
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hostile import BAD, DTYPES, MOMENTS, ORDINARY, SHAPES, WEIGHTS, statistics
from numbers_files import Found, budgets, demo_slopes, merged, one_token, slopes
from numbers_solve import WAYS, decoders_agree, fault_of
from reliability_rows import RESULTS, Row
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions, Solver, prepare, solve
from quantgolf.solve.grid import Grid, Rounding, nearest
from quantgolf.solve.slope import prepare_slope
from quantgolf.types import QTensor, WeightStats

# GPTQ is better than rounding to the same grid on the whole, and not on every matrix: codes that are clipped are what
# its bound leaves out. No more than this many times the other's loss.
WORSE = 1.1


def solves(wanted: int) -> Iterator[tuple[str, Found]]:
    """Every way to solve, over a sample of all pairs of weight and statistics."""
    every = list(itertools.product(SHAPES, WEIGHTS, DTYPES, MOMENTS, WAYS))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:wanted].tolist()
    for family in dict.fromkeys(name.split()[0] for name in WAYS):
        faults, tried, hostile, refused = [], 0, 0, 0
        for at in order:
            shape, kind, dtype, moment, name = every[at]
            if name.split()[0] != family:
                continue
            fault, message = tried_once(at, *every[at])
            tried, refused = tried + 1, refused + (message is not None)
            hostile += (shape, kind, moment) != ("ordinary", ORDINARY, ORDINARY)
            if fault is not None:
                faults.append(f"{kind}, {moment}, {shape}, {dtype}, {name}: {fault}")
        if tried:
            yield f"{family}: hostile weights and statistics", (tried, hostile, faults, {"refused": refused})


def tried_once(
    seed: int, shape: str, kind: str, dtype: torch.dtype, moment: str, name: str
) -> tuple[str | None, str | None]:  # fmt: skip
    """What is wrong with one of them, and what it was refused with: weights beyond the scales or steps of a format."""
    generator = torch.Generator().manual_seed(seed)
    weight = WEIGHTS[kind](*SHAPES[shape], generator, dtype).to(dtype)
    stats = statistics(moment, *SHAPES[shape], generator, "diagonals" in name)
    try:
        outcome = WAYS[name](weight, stats)
    except QuantGolfError as error:
        # fp16 knows no number that a solver may refuse.
        beyond = dtype != torch.float16 and float(weight.abs().max()) > 6e4
        return None if beyond else f"refused: {error}", str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}", None
    fault = fault_of(weight, stats, outcome)
    return fault or (decoders_agree(outcome) if seed % 10 == 0 else None), None


def not_finite() -> Found:
    """NaN or infinite in a weight, in H, in G or in the row weights: refused in one line that names the matrix."""
    faults, tried = [], 0
    solvers: tuple[Solver, ...] = ("rtn", "gptq_lite", "gptq")
    for value, where, at in itertools.product(BAD.values(), ("weight", "column", "row", "outputs"), (0, -1)):
        generator = torch.Generator().manual_seed(3)
        stats, weight = statistics(ORDINARY, 12, 9, generator, True), torch.randn(12, 9, generator=generator)
        bad: Tensor = weight if where == "weight" else getattr(stats.uses[0], where).clone()
        bad.view(-1)[at] = value
        if where != "weight":
            changed: dict[str, Any] = {where: bad}
            stats = replace(stats, uses=(replace(stats.uses[0], **changed),))
        ways: list[Callable[..., object]] = [*(partial(prepare, solver=solver) for solver in solvers), prepare_slope]
        for way in ways:
            tried += 1
            try:
                way(weight, stats, options=SolveOptions())
                faults.append(f"{value} in {where} is taken")
            except QuantGolfError as error:
                if "w has" not in str(error) and "statistics of w" not in str(error):
                    faults.append(f"{value} in {where}: {error}")
    return tried, tried, faults, {}


def against_rounding(wanted: int) -> Found:
    """GPTQ beside the nearest codes of its own grid, and GPTQ-lite's clips beside the range, by what each weighs."""
    faults, worst, better = [], 0.0, 0
    kinds = ("gaussian", "tails of a Cauchy", "one sign", "outliers of 1e6", "integers")
    moments = ("gaussian", "one token", "rank deficient", "16 decades", "dead columns", "1e30", "1e-30")
    grids = (Grid(), Grid(scales="log"), Grid(6), Grid(6, False), Grid(None, False, "log"))
    for seed in range(wanted):
        generator = torch.Generator().manual_seed(seed)
        kind, moment, grid = kinds[seed % 5], moments[seed % 7], grids[seed // 7 % 5]
        bits = 2 + seed // 35 % 7
        weight = WEIGHTS[kind](24, 20, generator, torch.float16).float()
        stats = statistics(moment, 24, 20, generator, False)
        options = SolveOptions(grid=grid)
        prepared = prepare(weight, stats, "gptq", options)
        tensor, report = solve(prepared, bits)
        rounding = Rounding.of(tensor.steps, bits, 20)
        plain = stats.loss(QTensor(nearest(weight, rounding), tensor.steps, bits).dequantize() - weight)
        ratio = report.loss / plain if plain > 0 else 0.0
        worst, better = max(worst, ratio), better + (ratio <= 1)
        if ratio > WORSE:
            faults.append(f"{kind}, {moment}, {grid}, {bits} bits: {ratio:.3f} of the nearest codes' loss")
        losses = []
        clipped: tuple[Solver, ...] = ("rtn", "gptq_lite")
        for solver in clipped:
            found, _ = solve(prepare(weight, stats, solver, options), bits)
            error = (found.dequantize().double() - weight.double()).square()
            losses.append((error * stats.hessian().double().diagonal()).sum(1))
        if not (losses[1] <= losses[0] * (1 + 1e-4) + 1e-60).all():
            faults.append(f"{kind}, {moment}, {grid}, {bits} bits: a searched clip is worse than the range")
    return wanted, 0, faults, {"worst": round(worst, 3), "better": better}


def million_rows() -> Found:
    """A million rows of four columns, and four rows of 2,048 columns, all ways."""
    faults, tried = [], 0
    for rows, columns in ((1_000_000, 4), (4, 2048)):
        for name in ("rtn 8", "gptq_lite 3", "gptq 4", "gptq 3 groups, zeros, log", "slope scalar", "slope fine"):
            generator = torch.Generator().manual_seed(rows)
            weight = WEIGHTS["outliers of 1e6"](rows, columns, generator, torch.float16).half()
            column = MOMENTS["rank deficient"](columns, generator).float()
            stats = statistics(ORDINARY, 1, columns, generator, False)
            row = torch.rand(rows, generator=generator)
            stats = WeightStats("w", (replace(stats.uses[0], row=row, column=(column + column.T) / 2),), 7)
            tried += 1
            outcome = WAYS[name](weight, stats)
            bad = not outcome.restored.half().isfinite().all()
            error = outcome.restored.double() - weight.double()
            exact = 0.5 * float(((error @ stats.uses[0].column.double()) * error).sum(1) @ row.double())
            if bad or abs(exact - outcome.loss) > 2e-3 * exact:
                faults.append(f"{rows}×{columns}, {name}: loss {outcome.loss:g}, in fp64 {exact:g}, finite {not bad}")
    return tried, tried, faults, {}


def main() -> None:
    """Runs what is asked for and appends a row of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solves", type=int, default=3000)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--slopes", type=int, default=8, help="of the demo")
    parser.add_argument("--from", dest="first", default="", help="leave out the cases before this one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    sizes = f"--solves {asked.solves} --models {asked.models} --slopes {asked.slopes}"
    command = f"OMP_NUM_THREADS=1 python benchmarks/hard_numbers.py {sizes}"

    def told(case: str, found: Found, started: float) -> None:
        tried, faulty, failures, more = found
        Row("Numbers", case, command, tried, faulty, len(failures), time.monotonic() - started, more).append(asked.out)
        print(f"{case}: {tried} tried, {faulty} hostile, {len(failures)} failures, {more}", *failures[:20], sep="\n  ")

    started = time.monotonic()
    for case, found in solves(0 if asked.first else asked.solves):
        told(case, found, started)
        started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rest: dict[str, Callable[[], Found]] = {
            "NaN and infinity are refused": not_finite,
            "a million rows, and 2,048 columns": million_rows,
            "GPTQ against rounding on its grid, clips against ranges": lambda: against_rounding(asked.solves // 4),
            "statistics, split and merged": lambda: merged(asked.models),
            "one token, one window": lambda: one_token(asked.models // 4, folder),
            "files within budgets": lambda: budgets(asked.models, folder),
            "sizes at slopes 5% apart": lambda: slopes(asked.models // 4, folder),
            "the demo's size and loss at slopes 5% apart": lambda: demo_slopes(asked.slopes),
        }
        names = list(rest)
        for case, work in itertools.islice(rest.items(), names.index(asked.first) if asked.first else 0, None):
            started = time.monotonic()
            told(case, work(), started)


if __name__ == "__main__":
    main()
