"""What each of GPTQ's choices is worth: damping, column order, and what the clip search weighs errors by.

    python benchmarks/gptq_options.py demo
    python benchmarks/gptq_options.py CKPT --model script.py:factory --tokenizer T --calibration C --data V --length 256

Every weight at the same width, nothing coded, one choice changed at a time from the defaults. Prints KL to the
float model in bits per byte and the KL lost against the defaults with its paired 95% interval: above zero means
the default is better. With --out it appends JSON lines.
"""

import json
import platform
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from quantgolf.calibrate import weights
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.compress import calibrate
from quantgolf.evaluate import evaluate_against, kl_difference
from quantgolf.solve import Prepared, SolveOptions, prepare, solve


def clip_by(importance: Callable[[Prepared], torch.Tensor]) -> Callable[[Prepared], Prepared]:
    return lambda prepared: replace(prepared, importance=importance(prepared))


def unchanged(prepared: Prepared) -> Prepared:
    return prepared


CHOICES: dict[str, tuple[SolveOptions, Callable[[Prepared], Prepared]]] = {
    "defaults": (SolveOptions(), unchanged),
    "damp 0.001": (SolveOptions(damp=0.001), unchanged),
    "damp 0.003": (SolveOptions(damp=0.003), unchanged),
    "damp 0.03": (SolveOptions(damp=0.03), unchanged),
    "damp 0.1": (SolveOptions(damp=0.1), unchanged),
    "no act_order": (SolveOptions(act_order=False), unchanged),
    "clip by diag H": (SolveOptions(), clip_by(lambda p: p.stats.hessian().diagonal().contiguous())),
    "clip by error alone": (SolveOptions(), clip_by(lambda p: torch.ones_like(p.importance))),
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
    bits: Annotated[list[int] | None, typer.Option(help="A width; again for more.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    source = inputs.open_source(checkpoint, model)
    learn = inputs.open_text(
        checkpoint, calibration, tokenizer, documents, True, calibration_tokens + length, Part.calibration
    )
    text = inputs.open_text(checkpoint, data, tokenizer, documents, True, tokens, Part.validation)
    stats = calibrate(source, learn, tokens=calibration_tokens, length=length).stats
    rows = []
    for width in bits or (3, 4):
        default = None
        for choice, (options, changed) in CHOICES.items():
            module = deepcopy(source.module)
            targets = dict(weights(module))
            for name, known in stats.items():
                prepared = changed(prepare(source.tensors[name].float(), known, "gptq", options))
                with torch.no_grad():
                    targets[name].copy_(solve(prepared, width)[0].dequantize())
            result, _ = evaluate_against(module, source.module, text, length=length)
            default = result if default is None else default
            lost = kl_difference(result, default)
            rows.append({
                "checkpoint": Path(checkpoint).name, "bits": width, "choice": choice, "kl": result.kl_bpb,
                "lost": lost.value, "lost_low": lost.low, "lost_high": lost.high,
                "scored_tokens": int(result.tokens.sum()), "torch": torch.__version__, "machine": platform.machine(),
            })  # fmt: skip
    lines = [
        (str(row["bits"]), str(row["choice"]), f"{row['kl']:.5f}",
         f"{row['lost']:+.5f} ({row['lost_low']:+.5f} to {row['lost_high']:+.5f})")
        for row in rows
    ]  # fmt: skip
    columns = ("bits", "choice", "KL, bits/byte", "lost against the defaults")
    show.console(False).print(show.table(Path(checkpoint).name, columns, lines))
    if out is not None:
        with out.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    typer.run(main)
