"""What each of one slope's choices is worth: states, restarts, damping, exponents of the steps, the floor of rows.

    python benchmarks/slope_options.py demo
    python benchmarks/slope_options.py CKPT --model script.py:factory --tokenizer T --calibration C --data V

Every file fills the same complete bytes, one choice changed at a time from the defaults, no tuning. Prints KL to the
float model in bits per byte and the KL lost against the defaults with its paired 95% interval: above zero means the
default is better. The interval is that of the text; two roundings of the same weights differ by about 2% besides. With
--out it appends JSON lines.
"""

import json
import platform
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.compress import calibrate, compress
from quantgolf.evaluate import evaluate_against, kl_difference
from quantgolf.solve import SolveOptions
from quantgolf.solve.trellis import Trellis

OPTIONS, TRELLIS = SolveOptions(), Trellis()
CHOICES: dict[str, tuple[SolveOptions, Trellis]] = {
    "defaults": (OPTIONS, TRELLIS),
    "scalar": (OPTIONS, Trellis(1)),
    "4 states": (OPTIONS, replace(TRELLIS, states=4)),
    "8 states": (OPTIONS, replace(TRELLIS, states=8)),
    "32 states": (OPTIONS, replace(TRELLIS, states=32)),
    "256 states": (OPTIONS, replace(TRELLIS, states=256)),
    "restart 128": (OPTIONS, replace(TRELLIS, restart=128)),
    "damp 0.01": (replace(OPTIONS, damp=0.01), TRELLIS),
    "damp 0.1": (replace(OPTIONS, damp=0.1), TRELLIS),
    "not across rows": (replace(OPTIONS, across_rows=False), TRELLIS),
    "not across rows, no act_order": (replace(OPTIONS, across_rows=False, act_order=False), TRELLIS),
    "row exponent 0": (replace(OPTIONS, row_exponent=0.0), TRELLIS),
    "row exponent 0.8": (replace(OPTIONS, row_exponent=0.8), TRELLIS),
    "column exponent 0": (replace(OPTIONS, column_exponent=0.0), TRELLIS),
    "column exponent 0.8": (replace(OPTIONS, column_exponent=0.8), TRELLIS),
    "least row 0.001": (replace(OPTIONS, least_row=0.001), TRELLIS),
    "least row 0.01": (replace(OPTIONS, least_row=0.01), TRELLIS),
    "least row 0.2": (replace(OPTIONS, least_row=0.2), TRELLIS),
}


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
    bpw: Annotated[list[float] | None, typer.Option(help="Bits a parameter of the file; again for more.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    """Measure every choice."""
    source = inputs.open_source(checkpoint, model)
    learn = inputs.open_text(
        checkpoint, calibration, tokenizer, documents, True, calibration_tokens + length, Part.calibration
    )
    text = inputs.open_text(checkpoint, data, tokenizer, documents, True, tokens, Part.validation)
    learned = calibrate(source, learn, tokens=calibration_tokens, length=length)
    rows = []
    for width in bpw or (3.5, 2.5):
        default = None
        for choice, (options, trellis) in CHOICES.items():
            made = compress(source, learned, bpw=width, options=options, trellis=trellis, guard=False)
            result, _ = evaluate_against(made.module(deepcopy(source.module)), source.module, text, length=length)
            default = result if default is None else default
            lost = kl_difference(result, default)
            rows.append({
                "checkpoint": Path(checkpoint).stem, "bpw": width, "choice": choice, "bytes": len(made.data),
                "kl": result.kl_bpb, "lost": lost.value, "lost_low": lost.low, "lost_high": lost.high,
                "scored_tokens": int(result.tokens.sum()), "torch": torch.__version__, "machine": platform.machine(),
            })  # fmt: skip
    lines = [
        (f"{row['bpw']:g}", str(row["choice"]), f"{row['bytes']:,}", f"{row['kl']:.5f}",
         f"{row['lost']:+.5f} ({row['lost_low']:+.5f} to {row['lost_high']:+.5f})")
        for row in rows
    ]  # fmt: skip
    columns = ("bpw", "choice", "bytes", "KL, bits/byte", "lost against the defaults")
    show.console(False).print(show.table(Path(checkpoint).stem, columns, lines))
    if out is not None:
        with out.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    typer.run(main)
