"""What each of GPTQ's choices is worth: damping, column order, what the clip search weighs errors by, and with scales
for groups of 64 columns when they are searched.

    python benchmarks/gptq_options.py demo
    python benchmarks/gptq_options.py CKPT --model script.py:factory --tokenizer T --calibration C --data V --length 256

Every weight at the same width, nothing coded, one choice changed at a time from the defaults, or from theirs in groups:
`--choices groups` runs those alone. Prints KL to the
float model in bits per byte and the KL lost against the first choice with its paired 95% interval: above zero means
the first is better. With --out it appends JSON lines.
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
from quantgolf.solve.gptq import solve_block
from quantgolf.solve.grid import Grid, Rounding
from quantgolf.solve.search import searched_steps
from quantgolf.types import Groups, QTensor

GROUPS = Grid(64, scales="log")
Solve = Callable[[Prepared, int], QTensor]


def clip_by(importance: Callable[[Prepared], torch.Tensor]) -> Callable[[Prepared], Prepared]:
    return lambda prepared: replace(prepared, importance=importance(prepared))


def unchanged(prepared: Prepared) -> Prepared:
    return prepared


def searched_before(prepared: Prepared, bits: int) -> QTensor:
    return solve(prepared, bits)[0]


def searched_anew(prepared: Prepared, bits: int) -> QTensor:
    """Each group's scales are searched in what feedback has left of it, when the turn of its first column comes."""
    factor, grid, (rows, columns) = prepared.factor, prepared.options.grid, prepared.weight.shape
    assert factor is not None and not prepared.options.act_order
    upper, rest = factor.upper.float(), prepared.weight.T.clone(memory_format=torch.contiguous_format)
    codes, found = torch.empty(columns, rows, dtype=torch.int8), []
    for start in range(0, columns, grid.size(columns)):
        part = slice(start, min(start + grid.size(columns), columns))
        now, errors = rest[part], torch.empty(part.stop - start, rows)
        steps = searched_steps(now.T, bits, prepared.importance[part], replace(grid, group_size=None))
        assert isinstance(steps, Groups)
        rounding = Rounding.of(steps, bits, len(now))
        solve_block(
            now.numpy(), upper[part, part].contiguous().numpy(), rounding.step.T.contiguous().numpy(),
            rounding.zero.float().T.contiguous().numpy(), torch.zeros(len(now), dtype=torch.int64).numpy(),
            rounding.lowest, rounding.highest, codes[part].numpy(), errors.numpy(),
        )  # fmt: skip
        rest[part.stop :] -= upper[part, part.stop :].T @ errors
        found.append(steps)
    zero = None if grid.symmetric else torch.cat([steps.zero for steps in found if steps.zero is not None], 1)
    groups = Groups(torch.cat([steps.scale for steps in found], 1), zero, grid.size(columns))
    return QTensor(codes.T.contiguous(), groups, bits)


CHOICES: dict[str, tuple[SolveOptions, Callable[[Prepared], Prepared], Solve]] = {
    "defaults": (SolveOptions(), unchanged, searched_before),
    "damp 0.001": (SolveOptions(damp=0.001), unchanged, searched_before),
    "damp 0.003": (SolveOptions(damp=0.003), unchanged, searched_before),
    "damp 0.03": (SolveOptions(damp=0.03), unchanged, searched_before),
    "damp 0.1": (SolveOptions(damp=0.1), unchanged, searched_before),
    "no act_order": (SolveOptions(act_order=False), unchanged, searched_before),
    "clip by diag H": (SolveOptions(), clip_by(lambda p: p.stats.hessian().diagonal().contiguous()), searched_before),
    "clip by error alone": (SolveOptions(), clip_by(lambda p: torch.ones_like(p.importance)), searched_before),
    "groups": (SolveOptions(grid=GROUPS), unchanged, searched_before),
    "groups, no act_order": (SolveOptions(act_order=False, grid=GROUPS), unchanged, searched_before),
    "groups, searched anew": (SolveOptions(act_order=False, grid=GROUPS), unchanged, searched_anew),
    "groups, asymmetric": (SolveOptions(grid=replace(GROUPS, symmetric=False)), unchanged, searched_before),
    "groups, asymmetric, searched anew": (
        SolveOptions(act_order=False, grid=replace(GROUPS, symmetric=False)), unchanged, searched_anew,
    ),
}  # fmt: skip


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
    choices: Annotated[str, typer.Option(help="Those whose names begin so; default: all.")] = "",
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
        for choice, (options, changed, solved) in CHOICES.items():
            if not choice.startswith(choices):
                continue
            module = deepcopy(source.module)
            targets = dict(weights(module))
            for name, known in stats.items():
                prepared = changed(prepare(source.tensors[name].float(), known, "gptq", options))
                with torch.no_grad():
                    targets[name].copy_(solved(prepared, width).dequantize())
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
    columns = ("bits", "choice", "KL, bits/byte", "lost against the first")
    show.console(False).print(show.table(Path(checkpoint).name, columns, lines))
    if out is not None:
        with out.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    typer.run(main)
