"""The budget's promise: files of random budgets, none over, none with more left unused than allowed.

    python benchmarks/budgets.py demo --out budgets.jsonl
    python benchmarks/budgets.py CKPT --model script.py:factory --stats statistics/ --count 20 --low 2 --high 4

Budgets are drawn evenly between --low and --high bits for each number of the checkpoint. Files are made with one slope
from saved statistics, without tuning, and written; their sizes are those on the disk. What may be left is 0.02% of the
budget or 256 bytes, whichever is larger. Padding would count as left unused, so every file is read back, decoded and
encoded anew: the same bytes have to come out, which leaves none that only fill room.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from quantgolf.blob import pack, parse
from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.compress import batches_of, calibrate_to, compress
from quantgolf.encode import DTYPES, Entry, Leveled, decode_model, encode_model, matrix_shape, places
from quantgolf.encode.exponents import decode_exponents
from quantgolf.errors import QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration, QTensor

SHARE, LEAST = 2e-4, 256  # issue 4: what may be left of a budget, as a share of it or in bytes


@dataclass(frozen=True)
class Outcome:
    """One budget and the file made for it: bytes, seconds of making it, and whether it encodes anew to itself."""

    bpw: float
    max_bytes: int
    size: int
    seconds: float
    canonical: bool

    @property
    def slack(self) -> int:
        """Bytes left unused; negative where the file is over."""
        return self.max_bytes - self.size

    @property
    def allowed(self) -> float:
        """Most bytes that may be left unused."""
        return max(SHARE * self.max_bytes, LEAST)

    @property
    def kept(self) -> bool:
        """Whether the promise is."""
        return 0 <= self.slack <= self.allowed and self.canonical


def budgets(parameters: int, count: int, low: float, high: float, seed: int) -> list[int]:
    """Budgets in bytes for a checkpoint of so many numbers, drawn evenly between `low` and `high` bits for each.

    Raises:
        QuantGolfError: no budget, or bounds out of order.
    """
    if count < 1 or not 0 < low <= high:
        raise QuantGolfError(
            f"{count} budgets from {low:g} to {high:g} bits, expected at least one and 0 < low <= high; "
            "for example --count 200 --low 1.5 --high 6"
        )
    drawn = np.random.default_rng(seed).uniform(low, high, count)
    return [int(bits * parameters / 8) for bits in drawn]


def attempts(source: Checkpoint, calibration: Calibration, sizes: list[int], folder: Path) -> Iterator[Outcome]:
    """A file for each budget, written into a folder and removed again."""
    for max_bytes in sizes:
        path, started = folder / f"{max_bytes}.qg", time.monotonic()
        compress(source, calibration, max_bytes=max_bytes, solver="slope").write(path, overwrite=True)
        seconds, data = time.monotonic() - started, path.read_bytes()
        size = path.stat().st_size
        path.unlink()
        yield Outcome(8 * max_bytes / source.parameters, max_bytes, size, seconds, encoded_anew(data) == data)


def encoded_anew(data: bytes) -> bytes:
    """The file that encoding gives for what decoding a file gives: levels, steps and kept values.

    Raises:
        FormatError: not a file.
        QuantGolfError: one that has codes of fixed width.
    """
    header, coded = parse(data)
    if any(block.bits is not None for tensor in coded.tensors for block in tensor.blocks):
        raise QuantGolfError("the file has codes of fixed width, expected levels; compress it with --solver slope")
    leveled = [(t, place) for t in coded.tensors for b, place in zip(t.blocks, places(t), strict=True) if b.levels]
    frames = [(place.name(t.shape), matrix_shape(t.shape, place)) for t, place in leveled]
    exponents = iter(decode_exponents(coded.exponents, frames) if frames else ())
    decoded = decode_model(coded)
    entries = []
    for tensor in coded.tensors:
        whole, parts = torch.zeros(tensor.shape, dtype=DTYPES[tensor.dtype]), []
        for block in tensor.blocks:
            place, part = next(decoded)
            if isinstance(part, QTensor):
                parts.append(Leveled(place, next(exponents), part.codes, block.diagonal))
            else:
                place.matrix(whole).copy_(part)
        entries.append(Entry(tensor.name, whole, tuple(parts), tensor.aliases))
    return pack(encode_model(entries, Trellis(coded.states, coded.restart) if frames else None), header.model)


def main(
    checkpoint: inputs.CheckpointArgument = inputs.DEMO,
    model: inputs.ModelOption = None,
    stats: Annotated[
        Path | None, typer.Option(help="Folder of `quantgolf calibrate`; without it the text is calibrated on first.")
    ] = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    documents: inputs.DocumentsOption = Documents.lines,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    calibration_tokens: int = 32_768,
    count: Annotated[int, typer.Option(help="How many budgets.")] = 200,
    low: Annotated[float, typer.Option(help="Bits a number of the least budget.")] = 1.5,
    high: Annotated[float, typer.Option(help="Of the largest.")] = 6.0,
    seed: inputs.SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="JSON lines are appended here, each as soon as it is known.")] = None,
) -> None:
    source = inputs.open_source(checkpoint, model)
    sizes = budgets(source.parameters, count, low, high, seed)
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as temporary, show.bars() as report:
        folder = Path(temporary)
        if stats is None:
            text = inputs.open_text(
                checkpoint, data, tokenizer, documents, bos, calibration_tokens + length, Part.calibration
            )
            batches = batches_of(text, tokens=calibration_tokens, length=length)
            settings: dict[str, object] = {"tokens": calibration_tokens, "length": length, "seed": seed}
            stats = folder / "statistics"
            calibrate_to(stats, source, batches, settings, progress=report)
        calibration = read_calibration(stats, source.fingerprint)[0]
        report("budgets", 0, count)
        for outcome in attempts(source, calibration, sizes, folder):
            found.append(outcome)
            report("budgets", len(found), count)
            if out is not None:
                with out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row_of(outcome, Path(checkpoint).name, calibration, seed)) + "\n")
    print_verdict(found)
    if not all(outcome.kept for outcome in found):
        raise typer.Exit(1)


def row_of(outcome: Outcome, checkpoint: str, calibration: Calibration, seed: int) -> dict[str, Any]:
    """One JSON line."""
    return {
        "name": "budgets", "checkpoint": checkpoint, "bpw": outcome.bpw, "limit": outcome.max_bytes,
        "bytes": outcome.size, "slack": outcome.slack, "allowed": outcome.allowed, "canonical": outcome.canonical,
        "seconds": round(outcome.seconds, 2), "calibration_tokens": calibration.tokens, "seed": seed,
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("torch", "numpy", "numba", "zstandard", "quantgolf")},
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def print_verdict(found: list[Outcome]) -> None:
    """The worst of all beside what is allowed, and every budget that was not kept."""
    console = show.console(False)
    over = sum(outcome.slack < 0 for outcome in found)
    padded = sum(not outcome.canonical for outcome in found)
    worst = max(found, key=lambda outcome: outcome.slack / outcome.allowed)
    seconds = sum(outcome.seconds for outcome in found)
    console.print(
        f"{len(found)} budgets from {min(o.bpw for o in found):.2f} to {max(o.bpw for o in found):.2f} bits a number: "
        f"{over} over (0 allowed), {padded} that encode anew to other bytes (0 allowed)\n"
        f"most left unused: {worst.slack:,} bytes of {worst.max_bytes:,} ({worst.allowed:,.0f} allowed), mean "
        f"{sum(o.slack for o in found) / len(found):,.0f}; {seconds / len(found):.1f} s a file"
    )
    broken = [outcome for outcome in found if not outcome.kept]
    if broken:
        lines = [
            (f"{o.max_bytes:,}", f"{o.size:,}", f"{o.slack:,}", f"{o.allowed:,.0f}", str(o.canonical)) for o in broken
        ]
        console.print(show.table("not kept", ("limit", "bytes", "left", "allowed", "encodes to itself"), lines, 0))


if __name__ == "__main__":
    typer.run(main)
