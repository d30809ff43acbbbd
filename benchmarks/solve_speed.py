"""How fast the solvers are where every Hessian is given, on matrices of a reference model, with the limits beside it.

    python benchmarks/solve_speed.py --device cuda --out benchmarks/results/solve_speed.jsonl

Weights and statistics are made up, on a realistic scale: rows and columns of unequal size, spectra that fall by a power
law. On a GPU matrices of equal shape are solved together, factors are made there too, and the first pass, which
compiles, is not timed; on a CPU one thread solves them one by one. Before anything is timed, matrices of odd sizes are
solved on the device and by the CPU's loops, and both have to lose the same.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from quantgolf.cli import show
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.solve import SolveOptions
from quantgolf.solve.gptq import Factor, factorise, feed_back, feed_back_many
from quantgolf.solve.grid import Grid, Rounding
from quantgolf.solve.search import searched_steps
from quantgolf.solve.slope import Feedback, prepare_slope, solve_slope, solve_slope_many
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightStats, WeightUse

MODELS = {
    "small": GolfConfig(vocab_size=512, dim=128, layers=2),
    "golf": GolfConfig(layers=6),
    "36M": GolfConfig(vocab_size=8192, dim=512, layers=11, heads=8, kv_heads=4, mlp_mult=4),
}
SECONDS = 1.0  # limit: scalar, 36M weights on an H100
PER_CORE = 5_000_000  # limit: weights a second, scalar, on one core
BITS = 6
SLOPE = 4e-4  # about 3.5 bits of these weights
KINDS = ("scalar", "trellis", "diagonals")
ODD = (300, 203)  # rows and columns of what is compared before
NEAR = 0.01  # losses are equal but for this; fp32 sums taken in another order tip a few levels, and what comes after


@dataclass(frozen=True)
class Matrix:
    """A weight [N, K] and what calibration would say of it, on the device that solves it."""

    weight: Tensor
    stats: WeightStats


def main(
    kinds: Annotated[list[str] | None, typer.Argument(help="scalar, trellis, diagonals; default: all.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    model: Annotated[str, typer.Option(help="small, golf or 36M: whose matrices.")] = "36M",
    states: Annotated[int, typer.Option(help="Of the trellis.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Passes that are timed; the fastest counts.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON lines to append to.")] = None,
) -> None:
    """Compare, then time; print a table with the limits beside it."""
    if device not in ("cpu", "cuda"):
        raise QuantGolfError(f"device is {device}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise QuantGolfError("device is cuda, but torch finds no GPU: take --device cpu")
    if model not in MODELS:
        raise QuantGolfError(f"model is {model}, expected one of {', '.join(MODELS)}")
    torch.set_num_threads(1)
    rows = []
    for kind in kinds or KINDS:
        if kind not in KINDS:
            raise QuantGolfError(f"{kind} is not known, expected one of {', '.join(KINDS)}")
        trellis = Trellis(states)
        agree = compared(kind, torch.device(device), trellis)
        found = measured(kind, made(model, kind, torch.device(device)), trellis, repeats)
        rows.append({"name": f"solve_speed {kind}", "model": model, "agree": agree, **found, **where(device)})
        if out is not None:
            with out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    print_table(rows)


def made(model: str, kind: str, device: torch.device) -> list[Matrix]:
    """The matrices of a model; along diagonals without those that nobody knows G of, the embedding."""
    with torch.device("meta"):
        parameters = dict(Golf(MODELS[model]).named_parameters())
    shapes = [
        (value.shape[0], value.shape[1])
        for name, value in parameters.items()
        if value.ndim == 2 and not (kind == "diagonals" and name == "emb.weight")
    ]
    return made_up(shapes, kind, device)


def made_up(shapes: Sequence[tuple[int, int]], kind: str, device: torch.device) -> list[Matrix]:
    """Weights and statistics of these shapes, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    spectra: dict[int, Tensor] = {}

    def scatter(count: int, sigma: float) -> Tensor:
        return torch.randn(count, generator=generator).mul(sigma).exp()

    def second_moment(size: int) -> Tensor:
        if size not in spectra:
            mixing = torch.arange(1, size + 1)[:, None] ** -0.5 * torch.randn(size, size, generator=generator)
            inputs = (torch.randn(2 * size, size, generator=generator) @ mixing).to(device)
            spectra[size] = inputs.T @ inputs / len(inputs)
        scale = scatter(size, 0.5).to(device)
        return spectra[size] * scale[:, None] * scale

    matrices = []
    for rows, columns in shapes:
        weight = torch.randn(rows, columns, generator=generator) * scatter(rows, 0.3)[:, None] * columns**-0.5
        outputs = 1e-4 * second_moment(rows) if kind == "diagonals" else None
        row = 1e-4 * scatter(rows, 1.0).to(device) if outputs is None else outputs.diagonal().clone()
        use = WeightUse("linear", row, second_moment(columns), 2 * columns, outputs)
        matrices.append(Matrix(weight.to(device), WeightStats("w", (use,), 2 * columns)))
    return matrices


def compared(kind: str, device: torch.device, trellis: Trellis) -> float:
    """The share of levels that two matrices of odd sizes, solved together on the device, have in common with what the
    CPU's loops find with the same factors.

    Raises:
        QuantGolfError: one of them loses more or less than the CPU's by more than `NEAR`.
    """
    matrices = made_up([ODD] * 2, kind, torch.device("cpu"))
    weights = torch.stack([each.weight for each in matrices]).to(device)
    if kind == "scalar":
        factors = [scalar_factor(each) for each in matrices]
        roundings = [searched(m.weight, f.pivots().float()) for m, f in zip(matrices, factors, strict=True)]
        grids = [rounding.step for rounding in roundings]
        found = feed_back_many(weights, factors, roundings).cpu()
        own = [feed_back(m.weight, f, r, 128) for m, f, r in zip(matrices, factors, roundings, strict=True)]
    else:
        prepared = [prepare_slope(each.weight, each.stats, SolveOptions()) for each in matrices]
        feedback = [each for _, each in prepared]
        powers = [grid.powers(SLOPE)[:2] for grid, _ in prepared]
        grids = [torch.from_numpy(row[:, None] + column.astype(np.float32)).div(4).exp2() for row, column in powers]
        rows, columns = (np.stack(side) for side in zip(*powers, strict=True))
        found = torch.from_numpy(solve_slope_many(weights, feedback, rows, columns, trellis))
        own = [
            torch.from_numpy(solve_slope(m.weight, f, *power, trellis))
            for m, f, power in zip(matrices, feedback, powers, strict=True)
        ]
    for each, grid, there, here in zip(matrices, grids, found, own, strict=True):
        losses = [each.stats.loss(levels * grid - each.weight) for levels in (there, here)]
        if abs(losses[0] / losses[1] - 1) > NEAR:
            raise QuantGolfError(
                f"{kind} on {device} loses {losses[0]:g}, expected the CPU's {losses[1]:g} to {NEAR:.0%}: no timing"
            )
    return float((found == torch.stack(own)).float().mean())


def scalar_factor(matrix: Matrix) -> Factor:
    return factorise(matrix.stats.hessian(), 0.01, True, "w", matrix.weight.device)


def searched(weight: Tensor, importance: Tensor) -> Rounding:
    return Rounding.of(searched_steps(weight, BITS, importance, Grid()), BITS, weight.shape[1])


def measured(kind: str, matrices: list[Matrix], trellis: Trellis, repeats: int) -> dict[str, Any]:
    """Seconds for factors and steps, and for the solve, of all matrices."""
    groups: dict[tuple[int, ...], list[Matrix]] = {}
    for each in matrices:
        groups.setdefault(tuple(each.weight.shape), []).append(each)
    work = [scalar(group) if kind == "scalar" else sloped(group, trellis) for group in groups.values()]
    device = matrices[0].weight.device
    passes = [
        (timed(device, [job[0] for job in work]), timed(device, [job[1] for job in work]))
        for _ in range(repeats + (device.type == "cuda"))
    ]
    prepare, solve = min(passes[-repeats:], key=sum)
    weights = sum(each.weight.numel() for each in matrices)
    return {
        "weights": weights,
        "matrices": len(matrices),
        "prepare_seconds": round(prepare, 4),
        "solve_seconds": round(solve, 4),
        "weights_per_second": round(weights / solve),
        **({"bits": BITS} if kind == "scalar" else {"states": trellis.states, "slope": SLOPE}),
    }


def timed(device: torch.device, jobs: Sequence[Callable[[], None]]) -> float:
    """Seconds of all jobs, until the device has done them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for job in jobs:
        job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def scalar(group: list[Matrix]) -> tuple[Callable[[], None], Callable[[], None]]:
    """How to prepare matrices of equal shape, and how to solve them: together on a GPU, one by one on a CPU."""
    factors: list[Factor] = []
    roundings: list[Rounding] = []

    def prepare() -> None:
        factors[:] = [scalar_factor(each) for each in group]
        pivots = [factor.pivots().float().to(group[0].weight.device) for factor in factors]
        roundings[:] = [searched(each.weight, p) for each, p in zip(group, pivots, strict=True)]

    def solve() -> None:
        if group[0].weight.device.type == "cuda":
            feed_back_many(torch.stack([each.weight for each in group]), factors, roundings)
            return
        for each, factor, rounding in zip(group, factors, roundings, strict=True):
            feed_back(each.weight, factor, rounding, 128)

    return prepare, solve


def sloped(group: list[Matrix], trellis: Trellis) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same on the grid of one slope; its levels come back to the CPU, which codes them."""
    feedback: list[Feedback] = []
    powers: list[tuple[Any, Any]] = []

    def prepare() -> None:
        prepared = [prepare_slope(each.weight, each.stats, SolveOptions()) for each in group]
        feedback[:] = [each for _, each in prepared]
        powers[:] = [grid.powers(SLOPE)[:2] for grid, _ in prepared]

    def solve() -> None:
        if group[0].weight.device.type == "cuda":
            rows, columns = (np.stack(side) for side in zip(*powers, strict=True))
            solve_slope_many(torch.stack([each.weight for each in group]), feedback, rows, columns, trellis)
            return
        for each, known, power in zip(group, feedback, powers, strict=True):
            solve_slope(each.weight, known, *power, trellis)

    return prepare, solve


def where(device: str) -> dict[str, Any]:
    """What it ran on."""
    found: dict[str, Any] = {"device": device, "machine": platform.machine(), "cores": os.cpu_count()}
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    versions = {}
    for package in ("torch", "triton", "numba", "quantgolf"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {**found, "versions": versions, "date": datetime.now(UTC).date().isoformat()}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Measurements with their limits."""

    def limit(row: dict[str, Any]) -> str:
        if row["name"] != "solve_speed scalar":
            return "reported"
        if row["device"] == "cpu":
            return f"{PER_CORE:,} a second"
        return f"{SECONDS:g} s in all" if row["model"] == "36M" else "for 36M alone"

    show.console(False).print(
        show.table(
            "scalar GPTQ, and one slope with levels on a trellis down columns and along diagonals",
            ("solver", "on", "weights", "factors and steps, s", "solve, s", "weights a second", "limit", "agree"),
            [
                (
                    row["name"].split()[1], row.get("gpu", "one core"), f"{row['weights']:,}",
                    f"{row['prepare_seconds']:.3f}", f"{row['solve_seconds']:.3f}", f"{row['weights_per_second']:,}",
                    limit(row), f"{row['agree']:.3%}",
                )
                for row in rows
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    try:
        typer.run(main)
    except QuantGolfError as error:
        print(f"solve_speed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
