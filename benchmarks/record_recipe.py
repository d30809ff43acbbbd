"""One slope against the strongest Parameter Golf recipe, rebuilt from published facts, at equal complete file bytes.

    python benchmarks/record_recipe.py demo --bpw 3.5 --bpw 2.5
    python benchmarks/record_recipe.py CKPT --model script.py:factory --tokenizer T --calibration C --data V \\
        --length 256 --max-bytes 1664kB --max-bytes 1188kB --out benchmarks/results/record_recipe.jsonl
    python benchmarks/record_recipe.py smollm2 --stats stats/ --bpw 4.1 --tokens 16384 --bar 0.3

The recipe (`recipe/`): GPTQ int6 with row scales of k standard deviations, int7 embedding, a low-rank correction, codes
by role through brotli or ZPAQ, controls in fp16; and its int5/int6 sibling. Both are tuned to the limit by one factor
on all k. KL is that of the module with the weights read back from the file to the float model, in bits per byte; the
ratio is KL of ours to that of the better recipe, with its paired 95% interval over documents. With `--wide` a third
recipe that nobody published: the steps of int6/int7 and clips twice as far out. Install `brotli` (the extra
`benchmarks`) and, for ZPAQ, the program `lrzip`.
"""

import json
import math
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from recipe.coders import FOR_CODES, present
from recipe.methods import Method, ours, recipe
from recipe.solve import INT5, INT6, INT7, Roles
from scipy.stats import bootstrap
from smollm2 import find_model

from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import DEMO, Part, TextOptions
from quantgolf.compress import HeldOut, Tuning, calibrate, split_calibration
from quantgolf.compress.heldout import HELD_OUT
from quantgolf.compress.tune import STEPS, TOKENS_AT_ONCE
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, evaluate_against, kl_interval
from quantgolf.evaluate.interval import RESAMPLES
from quantgolf.sizes import parse_size
from quantgolf.types import Calibration, EvalResult, Interval

Row = dict[str, Any]
UNTUNED, TUNED = "slope", "slope, tuned"
SMOLLM2 = "smollm2"
BARS = ((3.0, 0.42), (0.0, 0.45))  # from so many bits a weight on, ours may have this share of the recipe's KL


class Only(StrEnum):
    """Which side is measured."""

    recipe = "recipe"
    ours = "ours"


class Form(StrEnum):
    """Which form of the recipe is measured."""

    int6 = INT6.name
    int5 = INT5.name


@inputs.reads_text
def main(
    text: TextOptions,
    checkpoint: inputs.CheckpointArgument,
    model: inputs.ModelOption = None,
    calibration: Annotated[
        list[Path] | None, typer.Option(help="Text to calibrate on, read as that of --data is; not the same.")
    ] = None,
    stats: Annotated[Path | None, typer.Option(help="Folder that `quantgolf calibrate` wrote.")] = None,
    max_bytes: Annotated[list[str] | None, typer.Option(help="A limit; again for more.")] = None,
    bpw: Annotated[list[float] | None, typer.Option(help="A limit in bits a parameter; again for more.")] = None,
    tokens: Annotated[int, typer.Option(help="Validation tokens.")] = 40_000,
    calibration_tokens: Annotated[int, typer.Option(help="Where there are no --stats.")] = 32_768,
    embedding: Annotated[str, typer.Option(help="What names of embeddings match.")] = Roles().embedding,
    attention: Annotated[str, typer.Option(help="What names of attention matrices match.")] = Roles().attention,
    wide: Annotated[bool, typer.Option(help="Measure the recipe with clips twice as far out, too.")] = False,
    zpaq: Annotated[bool, typer.Option(help="Let codes go through ZPAQ, a minute for 10 MB on a core.")] = True,
    fixed: Annotated[bool, typer.Option(help="Measure RTN and GPTQ at fixed widths, too.")] = False,
    tune_steps: Annotated[int, typer.Option(help="Of ours; 0 measures it without tuning alone.")] = STEPS,
    code: Annotated[
        list[Path] | None, typer.Option(help="Decoder that counts in our limit; the recipe's is not counted.")
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Measure one side.")] = None,
    form: Annotated[list[Form] | None, typer.Option(help="Of the recipe; default: both, the better counts.")] = None,
    bar: Annotated[float | None, typer.Option(help="The ratio to stay below; default: by bits a weight.")] = None,
    seed: inputs.SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    """Measure all methods at all limits; print a table."""
    name = Path(checkpoint).stem
    if checkpoint == SMOLLM2:  # as benchmarks/smollm2.py opens it
        checkpoint = str(find_model())
        data = text.data or [Path(DEMO)]
        text = replace(text, tokenizer=text.tokenizer or Path(checkpoint), data=data, bos=False)
        calibration = calibration or [Path(DEMO)]
    source = inputs.open_source(checkpoint, model)
    limits = [parse_size(size) for size in max_bytes or ()] + [int(source.parameters * b / 8) for b in bpw or ()]
    if not limits:
        raise QuantGolfError("no limit is given, expected --max-bytes or --bpw; again for more")
    console = show.console(False)
    learned = learn(source, text, checkpoint, calibration, stats, calibration_tokens, seed)
    measure = text.open(checkpoint, tokens, Part.validation)
    roles, coders = Roles(embedding, attention), present(FOR_CODES if zpaq else ("none", "brotli"))
    methods: dict[str, Method] = {}
    if only is not Only.ours:
        methods |= {
            each.name: recipe(each, roles, coders, console.print)
            for each in (INT6, INT5, *(INT7,) * wide)
            if not form or each.name in (*form, INT7.name)
        }
    if only is not Only.recipe:
        code_bytes = sum(path.stat().st_size for path in code or ())
        methods[UNTUNED] = ours(code_bytes=code_bytes)
        if tune_steps:
            tuning = to_tune(text, checkpoint, calibration, calibration_tokens, tune_steps)
            methods[TUNED] = ours(tuning=tuning, code_bytes=code_bytes)
    if fixed:
        methods |= {solver: ours(solver) for solver in ("rtn", "gptq")}
    rows: list[Row] = []
    for limit in limits:
        rows += at_limit(source, learned, measure, text.length, limit, methods, bar, seed)
    common = {
        "name": name, "parameters": source.parameters, "calibration_tokens": learned.tokens, "length": text.length,
        "coders": coders, "cores": os.cpu_count(), "machine": platform.machine(),
        "versions": {p: version(p) for p in ("torch", "numpy", "brotli", "quantgolf")},
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    print_table(rows)
    if out is not None:
        with out.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(common | row) + "\n" for row in rows)


def learn(
    source: Checkpoint,
    text: TextOptions,
    checkpoint: str,
    calibration: list[Path] | None,
    stats: Path | None,
    tokens: int,
    seed: int,
) -> Calibration:
    """Stored statistics, or new ones."""
    if stats is not None:
        return read_calibration(stats, source.fingerprint)[0]
    corpus = replace(text, data=calibration, byte_counts=None).open(checkpoint, tokens + text.length, Part.calibration)
    return calibrate(
        source, corpus, tokens=tokens, length=text.length, context=text.context.value, seed=seed
    )  # fmt: skip


def to_tune(text: TextOptions, checkpoint: str, calibration: list[Path] | None, tokens: int, steps: int) -> Tuning:
    """The calibration text, and as much more as tuning has a use for; what is behind that is held out."""
    tokens = max(tokens, steps * TOKENS_AT_ONCE)
    corpus = replace(text, data=calibration, byte_counts=None).open(checkpoint, tokens + HELD_OUT, Part.calibration)
    learn, held_out = split_calibration(corpus, tokens, length=text.length, context=text.context.value)
    return Tuning(learn, HeldOut(held_out, text.length, text.context.value), steps)


def at_limit(
    source: Checkpoint,
    learned: Calibration,
    text: Corpus,
    length: int,
    limit: int,
    methods: dict[str, Method],
    bar: float | None,
    seed: int,
) -> list[Row]:
    """Every method's file under one limit, read back and measured."""
    rows: list[Row] = []
    results: dict[str, EvalResult] = {}
    for method, make in methods.items():
        started = time.monotonic()
        made = make(source, learned, limit)
        seconds = time.monotonic() - started
        assert len(made.data) <= limit, (method, len(made.data), limit)
        result, base = evaluate_against(made.module, source.module, text, length=length)
        results[method] = result
        rows.append({
            "method": method, "limit": limit, "bytes": len(made.data), "bpw": 8 * len(made.data) / source.parameters,
            "float_bpb": base.bpb, "bpb": result.bpb, **spelled("delta_bpb", difference(result, base, seed=seed)),
            **spelled("kl", kl_interval(result, seed=seed)), "scored_tokens": int(result.tokens.sum()),
            "documents": len(result.bytes), "seconds": seconds, **made.notes,
        })  # fmt: skip
    published = [method for method in (INT6.name, INT5.name) if method in results]
    if published:
        for row in rows:
            if row["method"] in (UNTUNED, TUNED):
                row |= compared(results, row["method"], published, "ratio", seed)
                row["bar"] = bar if bar is not None else next(share for least, share in BARS if row["bpw"] >= least)
                if INT7.name in results:
                    row |= compared(results, row["method"], [INT7.name], "ratio_to_wide", seed)
    return rows


def compared(results: dict[str, EvalResult], mine: str, others: list[str], key: str, seed: int) -> Row:
    """The ratio of KL of `mine` to that of the best of `others`, and which that is."""
    best = min(others, key=lambda method: kl_of(results[method]).sum())
    return spelled(key, ratio(results[mine], results[best], seed)) | {f"{key}_against": best}


def ratio(result: EvalResult, other: EvalResult, seed: int) -> Interval:
    """KL of `result` divided by that of `other`, with its 95% interval over documents, drawn for both alike."""
    mine, theirs = kl_of(result), kl_of(other)
    value = float(mine.sum() / theirs.sum())
    if len(mine) < 2:
        return Interval(value, math.nan, math.nan)

    def statistic(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = a.sum(axis) / b.sum(axis)
        return shares

    found = bootstrap(
        (mine, theirs), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        batch=max(1, 2**22 // len(mine)), rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(value, float(found.low), float(found.high))


def kl_of(result: EvalResult) -> NDArray[np.float64]:
    """KL of each document, which was measured."""
    assert result.kl is not None
    return result.kl


def spelled(key: str, interval: Interval) -> Row:
    """An interval as three entries of a row."""
    return {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}


def print_table(rows: list[Row]) -> None:
    """A line for each file."""
    lines = []
    for row in rows:
        share = "" if "ratio" not in row else (
            f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), bar {row['bar']:.2f}"
        )  # fmt: skip
        if "ratio_to_wide" in row:
            share += f"; {row['ratio_to_wide']:.3f} of {INT7.name}"
        lines.append((
            row["method"], f"{row['limit']:,}", f"{row['bytes']:,}", f"{row['bpw']:.3f}",
            f"{row['factor']:.3f}" if "factor" in row else "",
            f"{row['delta_bpb']:+.5f} ({row['delta_bpb_low']:+.5f} to {row['delta_bpb_high']:+.5f})",
            f"{row['kl']:.5f} ({row['kl_low']:.5f} to {row['kl_high']:.5f})", share, f"{row['seconds']:.0f}",
        ))  # fmt: skip
    columns = ("method", "limit", "bytes", "bpw", "k factor", "ΔBPB", "KL, bits/byte", "of the better recipe's", "s")
    show.console(False).print(show.table(f"float model: {rows[0]['float_bpb']:.5f} BPB", columns, lines))


if __name__ == "__main__":
    typer.run(main)
