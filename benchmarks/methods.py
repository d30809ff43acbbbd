"""RTN, GPTQ-lite and GPTQ on one checkpoint: at the same width uncoded, and at the same complete file bytes.

    python benchmarks/methods.py demo --max-bytes 1050kB
    python benchmarks/methods.py CKPT --model script.py:factory --tokenizer T --calibration C --data V \
        --documents lines --length 256 --max-bytes 1.7MB --max-bytes 1.3MB --max-bytes 1MB

Prints a table with the limit beside each measurement and, with --out, appends JSON lines. KL is that of the
reloaded file to the float model in bits per byte; "below" is the KL saved against the method of the line
before, with its paired 95% interval over documents: above zero means the better method really is. The last column
compares KL in nats a token with the loss the solver predicted from calibration.
"""

import json
import math
import platform
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from quantgolf.calibrate import weights
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part, Solver
from quantgolf.compress import calibrate, compress
from quantgolf.evaluate import difference, evaluate_against, kl_difference, kl_interval
from quantgolf.runtime import load
from quantgolf.sizes import parse_size
from quantgolf.solve import SolveOptions, prepare, solve
from quantgolf.solve import Solver as Fixed
from quantgolf.types import Calibration, EvalResult, Interval

Row = dict[str, Any]
FIXED_WIDTHS: tuple[Fixed, ...] = ("rtn", "gptq_lite", "gptq")
Run = Iterator[tuple[str, nn.Module, int, float, int | None, float]]


def at_fixed_width(source: Checkpoint, calibration: Calibration, bits: int) -> Run:
    """Every weight at the same width, nothing coded: method, module, bytes of packed codes, bits, no limit,
    predicted loss."""
    for solver in FIXED_WIDTHS:
        module, packed, loss = deepcopy(source.module), 0, 0.0
        targets = dict(weights(module))
        for name, known in calibration.stats.items():
            tensor, report = solve(prepare(source.tensors[name].float(), known, solver, SolveOptions()), bits)
            packed += tensor.codes.numel() * bits // 8
            loss += report.loss
            with torch.no_grad():
                targets[name].copy_(tensor.dequantize())
        yield solver, module, packed, float(bits), None, loss


def at_equal_bytes(source: Checkpoint, calibration: Calibration, limit: int, folder: Path) -> Run:
    """Every method's file under the same limit, read back: method, module, file bytes, bits per weight,
    limit, predicted loss."""
    for solver in Solver:
        result = compress(source, calibration, max_bytes=limit, solver=solver.value)
        path = folder / f"{solver.value}-{limit}.qg"
        result.write(path)
        loss = sum(report.loss for report in result.reports.values())
        yield solver.value, load(path, deepcopy(source.module)), path.stat().st_size, result.bpw, limit, loss


def row_of(result: EvalResult, base: EvalResult, before: EvalResult | None, seed: int) -> Row:
    """The measurements of one method."""
    row = {"bpb": result.bpb, "float_bpb": base.bpb}
    row["kl_nats"] = float((result.kl if result.kl is not None else np.empty(0)).sum() / result.tokens.sum())
    row |= spelled("delta_bpb", difference(result, base, seed=seed)) | spelled("kl", kl_interval(result, seed=seed))
    return row | (spelled("below", kl_difference(before, result, seed=seed)) if before is not None else {})


def spelled(key: str, interval: Interval) -> Row:
    return {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}


def main(
    checkpoint: inputs.CheckpointArgument,
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    calibration: Annotated[list[Path] | None, typer.Option(help="Text to calibrate on; not the one of --data.")] = None,
    documents: inputs.DocumentsOption = Documents.lines,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    tokens: Annotated[int, typer.Option(help="Validation tokens.")] = 100_000,
    calibration_tokens: int = 32_768,
    max_bytes: Annotated[list[str] | None, typer.Option(help="A budget; again for more.")] = None,
    bits: Annotated[list[int] | None, typer.Option(help="A fixed width; again for more.")] = None,
    seed: inputs.SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    source = inputs.open_source(checkpoint, model)
    learn = inputs.open_text(
        checkpoint, calibration, tokenizer, documents, bos, calibration_tokens + length, Part.calibration
    )
    text = inputs.open_text(checkpoint, data, tokenizer, documents, bos, tokens, Part.validation)
    console, rows = show.console(False), []
    started = time.monotonic()
    learned = calibrate(source, learn, tokens=calibration_tokens, length=length, seed=seed)
    console.print(f"calibrated on {learned.tokens:,} tokens in {time.monotonic() - started:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        runs = [at_fixed_width(source, learned, width) for width in bits or (3, 4)]
        runs += [at_equal_bytes(source, learned, parse_size(limit), Path(folder)) for limit in max_bytes or ()]
        for run in runs:
            before = None
            for method, module, size, bpw, limit, loss in run:
                result, base = evaluate_against(module, source.module, text, length=length)
                row: Row = {
                    "checkpoint": Path(checkpoint).name, "method": method, "coded": limit is not None,
                    "limit": limit, "bytes": size, "bpw": bpw, **row_of(result, base, before, seed),
                    "predicted_nats": loss,
                    "scored_tokens": int(result.tokens.sum()), "documents": len(result.bytes),
                    "unknown_pieces": result.unknown, "calibration_tokens": learned.tokens,
                    "python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
                }  # fmt: skip
                rows.append(row)
                before = result
    print_table(rows)
    if out is not None:
        with out.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def print_table(rows: list[Row]) -> None:
    lines = []
    for row in rows:
        limit = "none" if row["limit"] is None else f"{row['limit']:,}"
        saved = "" if math.isnan(row.get("below", math.nan)) else (
            f"{row['below']:.5f} ({row['below_low']:.5f} to {row['below_high']:.5f})"
        )  # fmt: skip
        lines.append((
            row["method"], limit, f"{row['bytes']:,}", f"{row['bpw']:.3f}", f"{row['bpb']:.5f}",
            f"{row['delta_bpb']:+.5f} ({row['delta_bpb_low']:+.5f} to {row['delta_bpb_high']:+.5f})",
            f"{row['kl']:.5f} ({row['kl_low']:.5f} to {row['kl_high']:.5f})", saved,
            f"{row['kl_nats']:.4f} ({row['predicted_nats']:.4f})",
        ))  # fmt: skip
    columns = (
        "method",
        "limit",
        "bytes",
        "bpw",
        "BPB",
        "ΔBPB",
        "KL, bits/byte",
        "below the line before",
        "nats/token (predicted)",
    )
    console = show.console(False)
    console.print(show.table(f"float model: {rows[0]['float_bpb']:.5f} BPB", columns, lines))


if __name__ == "__main__":
    typer.run(main)
