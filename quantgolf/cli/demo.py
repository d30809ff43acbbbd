"""`quantgolf demo`: the whole job on the model that ships with the package, and the proof of both numbers.

Every file is loaded back and measured by a process of its own, which knows nothing but the file, so that
the table cannot show anything that is not in it.
"""

import json as json_module
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import zstandard

from quantgolf.blob import write_blob
from quantgolf.checkpoint import read_demo
from quantgolf.cli import inputs, show
from quantgolf.cli.eval import interval
from quantgolf.cli.inputs import Part, Solver
from quantgolf.compress import HeldOut, Tuning, calibrate, compress, refuse_unreachable, split_calibration
from quantgolf.compress.tune import TOKENS as TUNE_TOKENS
from quantgolf.data import Tokenizer, corpus_from_texts
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, evaluate, kl_interval
from quantgolf.report import LIGHT, demo_picture
from quantgolf.sizes import parse_size
from quantgolf.types import EvalResult

LENGTH = 512


def demo_verb(
    out: Annotated[Path, typer.Option("--out", help="Folder for the files; those of an earlier demo are replaced.")] = (
        Path("quantgolf-demo")
    ),
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", help="Budget of every method; default: a fifth of the fp16 bytes.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1024, help="Validation tokens to measure on.")] = 65_536,
    calibration_tokens: Annotated[int, typer.Option("--calibration-tokens", min=1024)] = 32_768,
    tune_steps: Annotated[
        int, typer.Option("--tune-steps", min=0, help="slope: steps of tuning after the solve, some minutes.")
    ] = 0,
    seed: inputs.SeedOption = 0,
    json: inputs.JsonOption = False,
) -> None:
    """Compress the built-in model with four methods to one budget, and measure what each file is worth."""
    source = inputs.open_source(inputs.DEMO, None)
    limit = 2 * source.parameters // 5 if max_bytes is None else parse_size(max_bytes)
    for solver in Solver:
        refuse_unreachable(source, limit, solver=solver.value)
    folder = make_folder(out)
    texts, tokenizer = inputs.demo_texts(), Tokenizer.load(read_demo().tokenizer)
    text = corpus_from_texts(texts.parts[Part.validation], tokenizer, max_tokens=tokens)
    calibration, held_out = split_calibration(
        corpus_from_texts(texts.parts[Part.calibration], tokenizer),
        max(calibration_tokens, TUNE_TOKENS if tune_steps else 0), length=LENGTH,
    )  # fmt: skip
    tuning = Tuning(calibration, HeldOut(held_out, LENGTH), tune_steps) if tune_steps else None
    rows: dict[str, dict[str, Any]] = {}
    with show.bars() as report:
        float_result = evaluate(
            source.module, text, length=LENGTH, progress=lambda done, total: report("float model", done, total)
        )
        learned = calibrate(source, calibration, tokens=calibration_tokens, length=LENGTH, seed=seed, progress=report)
        for solver in Solver:

            def staged(stage: str, done: int, total: int, solver: Solver = solver) -> None:
                report(f"{solver.value}: {stage}", done, total)

            result = compress(
                source, learned, max_bytes=limit, solver=solver.value, progress=staged,
                tuning=tuning if solver is Solver.slope else None,
            )  # fmt: skip
            file = folder / f"{solver.value}.qg"
            result.write(file, overwrite=True)
            staged("new process", 0, 1)
            measured = measure_in_new_process(file, tokens)
            staged("new process", 1, 1)
            rows[solver.value] = {
                "file": str(file),
                "bytes": file.stat().st_size,
                "bpw": result.bpw,
                "bpb": measured.bpb,
                "delta_bpb": interval(difference(measured, float_result, seed=seed)),
                "kl_bpb": interval(kl_interval(measured, seed=seed)),
                "tuning": None if result.tuning is None else result.tuning.line(),
            }
    document = {
        "max_bytes": limit,
        "fp16_bytes": 2 * source.parameters,
        "python": sys.version.split()[0],
        "text": {
            "found": sum(map(len, texts.parts.values())),
            "skipped": texts.skipped,
            "scored_bytes": int(float_result.bytes.sum()),
            "scored_tokens": int(float_result.tokens.sum()),
            "documents": len(float_result.bytes),
            "unknown_pieces": float_result.unknown,
        },
        "float_bpb": float_result.bpb,
        "trained_bpb": read_demo().card["bpb"]["validation"],
        "text_compressors_bpb": text_compressors("".join(texts.parts[Part.validation][: len(float_result.bytes)])),
        "methods": rows,
        "picture": str(folder / "bpb-against-bytes.png"),
    }
    write_blob(Path(document["picture"]), demo_picture(document, LIGHT), overwrite=True)
    if json:
        show.print_json(document)
    else:
        print_table(document)


def make_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise QuantGolfError(
            f"output folder {out}: {error.strerror}, expected one to write to; give another with --out"
        ) from error


def measure_in_new_process(file: Path, tokens: int) -> EvalResult:
    """What `quantgolf eval` in a process of its own says of the file, against the float model."""
    command = [
        sys.executable, "-m", "quantgolf", "eval", str(file), "--reference", inputs.DEMO,
        "--length", str(LENGTH), "--tokens", str(tokens), "--per-document", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise QuantGolfError(f"measuring {file} in a new process failed: {done.stderr.strip().splitlines()[-1]}")
    measured = json_module.loads(done.stdout)
    documents = measured["documents"]
    return EvalResult(
        nats=np.asarray(documents["nats"], dtype=np.float64),
        bytes=np.asarray(documents["bytes"], dtype=np.int64),
        tokens=np.asarray(documents["tokens"], dtype=np.int64),
        kl=np.asarray(documents["kl"], dtype=np.float64),
        unknown=measured["unknown_pieces"],
    )


def text_compressors(text: str) -> dict[str, float]:
    """BPB of general compressors at their strongest on the very text the model is measured on."""
    raw = text.encode("utf-8")
    packed = {
        "zstd": len(zstandard.ZstdCompressor(level=22).compress(raw)),
        "xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(raw) for name, size in packed.items()}


def print_table(document: dict[str, Any]) -> None:
    console = show.console(False)
    text, limit = document["text"], document["max_bytes"]
    rows = [("float (fp16)", f"{document['fp16_bytes']:,}", "16.000", f"{document['float_bpb']:.4f}", "", "", "")]
    for method, row in document["methods"].items():
        delta, kl = row["delta_bpb"], row["kl_bpb"]
        rows.append(
            (
                method,
                f"{row['bytes']:,}",
                f"{row['bpw']:.3f}",
                f"{row['bpb']:.4f}",
                f"{delta['value']:+.4f}",
                "one document" if delta["low"] is None else f"{delta['low']:+.4f}…{delta['high']:+.4f}",
                f"{kl['value']:.4f}",
            )
        )
    columns = ("method", "file\nbytes", "bits per\nweight", "\nBPB", "\nΔBPB", "95%\ninterval", "KL, bits\nper byte")
    console.print(show.table(f"limit: {limit:,} bytes a file", columns, rows))
    console.print(
        f"BPB of this machine (Python {document['python']}): {text['scored_bytes']:,} bytes of validation text in "
        f"{text['documents']} files; {text['found']} held-out texts found unchanged, {text['skipped']} skipped; "
        f"{text['unknown_pieces']} unknown pieces"
    )
    compressors = ", ".join(f"{name} {bpb:.3f}" for name, bpb in document["text_compressors_bpb"].items())
    console.print(f"for scale, general compressors on the same text: {compressors} bits per byte")
    for method, row in document["methods"].items():
        if row["tuning"] is not None:
            console.print(f"{method}: {row['tuning']}")
    console.print(f"files and picture: {Path(document['picture']).parent}")
