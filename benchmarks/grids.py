"""Grids of fixed widths against each other: groups of columns, zeros and how scales are stored, at equal file bytes.

    python benchmarks/grids.py demo
    python benchmarks/grids.py CKPT --model script.py:factory --tokenizer T --calibration C --data V --length 256

The knapsack fills the same limit on every grid, scales and zeros counted, and chooses widths for it. Prints KL of the
file to the float model in bits per byte and the KL lost against one fp16 scale a row by the same solver, with its
paired 95% interval over documents: above zero means that rows are better. With --out it appends JSON lines.
"""

import json
import platform
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from quantgolf.cli import inputs, show, spent
from quantgolf.cli.grids import parse_sizes
from quantgolf.cli.inputs import Documents, Part
from quantgolf.compress import calibrate, compress
from quantgolf.evaluate import evaluate_against, kl_difference
from quantgolf.solve import SolveOptions
from quantgolf.solve import Solver as Fixed
from quantgolf.solve.grid import Grid
from quantgolf.sweep.spending import kinds_of
from quantgolf.types import EvalResult

SIZES = "row,128,64,32"
MIXED = "mixed"
Case = tuple[Fixed, str, Grid, tuple[int | None, ...] | None]


def cases(solvers: list[Fixed], sizes: str, every: bool) -> Iterator[Case]:
    """Solver, name of the sizes, grid and sizes to choose from; `every` grid, or fewer for all solvers but GPTQ."""
    for solver in solvers:
        for symmetric in (True, False):
            for scales in ("fp16", "log"):
                for size in parse_sizes(sizes):
                    if every or solver == "gptq" or (symmetric and scales == "log") or size is None:
                        yield solver, str(size or "row"), Grid(size, symmetric, scales), None
        yield solver, f"{MIXED} {sizes}", Grid(scales="log"), parse_sizes(sizes)


def main(
    checkpoint: inputs.CheckpointArgument,
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    calibration: Annotated[list[Path] | None, typer.Option(help="Text to calibrate on; not the one of --data.")] = None,
    documents: inputs.DocumentsOption = Documents.lines,
    length: inputs.LengthOption = 512,
    tokens: Annotated[int, typer.Option(help="Validation tokens.")] = 30_000,
    calibration_tokens: int = 32_768,
    bpw: Annotated[float, typer.Option(help="Bits of file a parameter.")] = 3.5,
    solvers: Annotated[str, typer.Option(help="Of the three at fixed widths.")] = "gptq,rtn,gptq_lite",
    sizes: Annotated[str, typer.Option(help="Sizes of groups; 'row' first.")] = SIZES,
    every: Annotated[bool, typer.Option(help="Every grid for every solver, not for gptq alone.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    source = inputs.open_source(checkpoint, model)
    learn = inputs.open_text(
        checkpoint, calibration, tokenizer, documents, True, calibration_tokens + length, Part.calibration
    )
    text = inputs.open_text(checkpoint, data, tokenizer, documents, True, tokens, Part.validation)
    learned = calibrate(source, learn, tokens=calibration_tokens, length=length)
    limit, rows, plain = int(bpw * source.parameters / 8), [], dict[str, EvalResult]()
    for solver, sized, grid, several in cases(solvers.split(","), sizes, every):  # type: ignore[arg-type]
        started = time.monotonic()
        made = compress(
            source, learned, max_bytes=limit, solver=solver, options=SolveOptions(grid=grid), group_sizes=several
        )
        seconds = time.monotonic() - started
        result, _ = evaluate_against(made.module(deepcopy(source.module)), source.module, text, length=length)
        lost = kl_difference(result, plain.setdefault(solver, result))
        kinds = kinds_of(made.coded, len(made.data), 0)
        row: dict[str, Any] = {
            "checkpoint": Path(checkpoint).name, "solver": solver, "group_size": sized, "symmetric": grid.symmetric,
            "scales": grid.scales, "limit": limit, "bytes": len(made.data), "side_share": spent.side_share(kinds),
            "mean_bits": mean_bits(made.plan.bits, {name: t.numel() for name, t in source.tensors.items()}),
            "kl": result.kl_bpb, "bpb": result.bpb, "lost": lost.value, "lost_low": lost.low, "lost_high": lost.high,
            "scored_tokens": int(result.tokens.sum()), "seconds": round(seconds, 1), "torch": torch.__version__,
            "machine": platform.machine(),
        }  # fmt: skip
        rows.append(row)
        if out is not None:
            with out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    print_table(Path(checkpoint).name, rows)


def mean_bits(bits: dict[str, int], numbers: dict[str, int]) -> float:
    """Mean width of the codes of all quantized weights, where each matrix is a parameter."""
    counted = {name: numbers[name] for name in bits}
    return sum(bits[name] * count for name, count in counted.items()) / sum(counted.values())


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    lines = [
        (row["solver"], row["group_size"], "symmetric" if row["symmetric"] else "asymmetric", row["scales"],
         f"{row['bytes']:,}", f"{row['side_share']:.2%}", f"{row['mean_bits']:.2f}", f"{row['kl']:.5f}",
         f"{row['lost']:+.5f} ({row['lost_low']:+.5f} to {row['lost_high']:+.5f})", f"{row['seconds']:.1f}")
        for row in rows
    ]  # fmt: skip
    columns = (
        "solver", "columns a scale", "grid", "scales", "bytes", "side data", "mean width", "KL, bits/byte",
        "lost against fp16 rows", "s",
    )  # fmt: skip
    show.console(False).print(show.table(title, columns, lines))


if __name__ == "__main__":
    typer.run(main)
