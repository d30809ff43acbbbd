"""What the text to calibrate on is worth: one checkpoint, compressed to one size, calibrated on six texts.

    python benchmarks/calibration_text.py --out benchmarks/results/calibration_text.jsonl
    python benchmarks/calibration_text.py CKPT --model script.py:factory --tokenizer T --calibration C --data V \\
        --length 256 --max-bytes 1.5MB

The texts, of equally many tokens: real text in dense windows; the real text behind it, which tells how much depends on
the choice of text alone; real text in windows that keep inside a document; text that the model writes itself, at two
temperatures; and tokens drawn evenly. Only the intervals over validation documents are shown: give other seeds, too.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import DEMO, Part, TextOptions
from quantgolf.compress import calibrate, compress
from quantgolf.data import Context, Corpus, sample_corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, evaluate_against, kl_difference, kl_interval
from quantgolf.sizes import parse_size
from quantgolf.types import EvalResult, Interval

TEMPERATURES = (0.8, 1.0)
SHARE = 5  # of the fp16 bytes, where no budget is given: the demo's


@dataclass(frozen=True)
class Source:
    """A text to calibrate on, how it is cut into windows, and the seconds the model took to write it."""

    name: str
    corpus: Corpus
    context: Context = "dense"
    seconds: float | None = None


@inputs.reads_text
def main(
    text: TextOptions,
    checkpoint: inputs.CheckpointArgument = DEMO,
    model: inputs.ModelOption = None,
    calibration: Annotated[
        list[Path] | None, typer.Option(help="Text to calibrate on, read as that of --data is; not the same.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Validation tokens.")] = 100_000,
    calibration_tokens: Annotated[int, typer.Option(help="Of every text.")] = 8192,
    max_bytes: Annotated[str | None, typer.Option(help="Of every file; default: a fifth of fp16.")] = None,
    solver: Annotated[inputs.Solver, typer.Option()] = inputs.Solver.gptq,
    seed: inputs.SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here.")] = None,
) -> None:
    """Calibrate on each text, compress, measure; print a table."""
    if calibration is None and checkpoint != DEMO:
        raise QuantGolfError("--calibration is missing, expected real text to compare with; or the word demo")
    source = inputs.open_source(checkpoint, model)
    real = replace(text, data=calibration, byte_counts=None).open(
        checkpoint, 2 * calibration_tokens + 1, Part.calibration
    )
    validation = text.open(checkpoint, tokens, Part.validation)
    limit = parse_size(max_bytes) if max_bytes else 2 * source.parameters // SHARE
    rows: list[dict[str, Any]] = []
    dense: EvalResult | None = None
    for each in sources(source, real, calibration_tokens, text.length, seed):
        learned = calibrate(
            source, each.corpus, tokens=calibration_tokens, length=text.length, context=each.context, seed=seed
        )
        compressed = compress(source, learned, max_bytes=limit, solver=solver.value)
        packed = compressed.module(deepcopy(source.module))
        result, base = evaluate_against(
            packed, source.module, validation, length=text.length, context=text.context.value
        )
        dense = dense or result
        rows.append(
            {
                "name": "calibration_text",
                "checkpoint": Path(checkpoint).name,
                "text": each.name,
                "calibration_tokens": learned.tokens,
                "written_in_seconds": each.seconds,
                "solver": solver.value,
                "limit": limit,
                "bytes": len(compressed.data),
                "bpw": compressed.bpw,
                "float_bpb": base.bpb,
                "bpb": result.bpb,
                "delta_bpb": spelled(difference(result, base, seed=seed)),
                "kl_bpb": spelled(kl_interval(result, seed=seed)),
                "above_real_kl_bpb": None if result is dense else spelled(kl_difference(result, dense, seed=seed)),
                "predicted_nats": compressed.plan.predicted_loss,
                "scored_tokens": int(result.tokens.sum()),
                "documents": len(result.bytes),
                "length": text.length,
                "context": text.context.value,
                "seed": seed,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "python": platform.python_version(),
                "versions": {package: version(package) for package in ("torch", "numpy", "quantgolf")},
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
        if out is not None:
            with out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    print_table(rows)


def sources(source: Checkpoint, real: Corpus, tokens: int, length: int, seed: int) -> Iterator[Source]:
    """The texts, real text in dense windows first; each is made when it is asked for."""
    if len(real.tokens) <= 2 * tokens:
        raise QuantGolfError(
            f"calibration text has {len(real.tokens):,} tokens, expected more than {2 * tokens:,}, because two parts "
            "of it are compared: give more text or a smaller --calibration-tokens"
        )
    yield Source("real, dense", real)
    yield Source("real, dense, further on", behind(real, tokens))
    yield Source("real, isolated", real, "isolated")
    for temperature in TEMPERATURES:
        started = time.monotonic()
        written = sample_corpus(
            source.module, vocab_size=real.vocab_size, bos=real.bos, tokens=tokens, length=length,
            temperature=temperature, seed=seed,
        )  # fmt: skip
        yield Source(f"self, T = {temperature}", written, seconds=time.monotonic() - started)
    yield Source("random tokens", evenly(real, tokens + 1, seed))


def behind(text: Corpus, start: int) -> Corpus:
    """A text from its token `start` on."""
    first = int(text.document[start])
    return replace(
        text, tokens=text.tokens[start:], document=text.document[start:] - first, bytes=text.bytes[first:], unknown=0
    )


def evenly(like: Corpus, tokens: int, seed: int) -> Corpus:
    """One document of tokens drawn evenly from the vocabulary of another text."""
    drawn = torch.randint(like.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed))
    return replace(
        like, tokens=drawn, document=torch.zeros_like(drawn), bytes=np.array([tokens], dtype=np.int64), unknown=0
    )


def spelled(interval: Interval) -> dict[str, float | None]:
    """An interval for JSON, which has no nan: a single document gives a value alone."""
    low, high = (None if np.isnan(bound) else bound for bound in (interval.low, interval.high))
    return {"value": interval.value, "low": low, "high": high}


def print_table(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    show.console(False).print(
        show.table(
            f"float: {first['float_bpb']:.5f} BPB; limit {first['limit']:,} bytes; {first['scored_tokens']:,} tokens "
            f"in {first['documents']:,} documents",
            ("text", "tokens", "bytes", "ΔBPB", "KL, bits/byte", "KL above real dense", "predicted nats", "written in"),
            [
                (
                    row["text"], f"{row['calibration_tokens']:,}", f"{row['bytes']:,}",
                    show.with_interval(row["delta_bpb"], "+"), show.with_interval(row["kl_bpb"]),
                    "" if row["above_real_kl_bpb"] is None else show.with_interval(row["above_real_kl_bpb"], "+"),
                    f"{row['predicted_nats']:.4f}",
                    "" if row["written_in_seconds"] is None else f"{row['written_in_seconds']:.0f} s",
                )
                for row in rows
            ],
        )
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
