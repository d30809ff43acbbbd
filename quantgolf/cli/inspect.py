"""`quantgolf inspect`: what a file spends its bytes on, tensor by tensor, and what each tensor's error costs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.blob import read_blob
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.compress import calibrate
from quantgolf.encode import tensor_bytes
from quantgolf.runtime import restore


def inspect_verb(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `quantgolf compress` wrote.")],
    reference: Annotated[
        str | None, typer.Option("--reference", help="Its checkpoint: adds the weighted error (calibrates anew).")
    ] = None,
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    documents: inputs.DocumentsOption = Documents.lines,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Calibration tokens.")] = 32_768,
    seed: inputs.SeedOption = 0,
    json: inputs.JsonOption = False,
) -> None:
    """Show shape, bits, bytes by kind, share of the file and weighted error of every tensor."""
    header, coded = read_blob(file)
    file_bytes = file.stat().st_size
    losses: dict[str, float] = {}
    if reference is not None:
        source = inputs.open_source(reference, model)
        text = inputs.open_text(reference, data, tokenizer, documents, bos, tokens, Part.calibration)
        with show.bars() as report:
            stats = calibrate(source, text, tokens=tokens, length=length, seed=seed, progress=report)
        weights = restore(coded)
        losses = {name: s.loss(weights[name] - source.tensors[name].float()) for name, s in stats.items()}
    tensors: dict[str, dict[str, Any]] = {}
    for entry, spent in zip(coded.tensors, tensor_bytes(coded), strict=True):
        total = spent.codes + spent.steps + spent.small
        tensors[entry.name] = {
            "shape": list(entry.shape),
            "dtype": entry.dtype,
            "aliases": list(entry.aliases),
            "bits": entry.bits,
            "stored": entry.stored,
            "code_bytes": spent.codes,
            "step_bytes": spent.steps,
            "small_bytes": spent.small,
            "share": total / file_bytes,
            "loss": losses.get(entry.name),
        }
    overhead = file_bytes - sum(t["code_bytes"] + t["step_bytes"] + t["small_bytes"] for t in tensors.values())
    document = {
        "file": str(file),
        "bytes": file_bytes,
        "version": header.version,
        "model": header.model,
        "overhead_bytes": overhead,
        "tensors": tensors,
    }
    if json:
        show.print_json(document)
    else:
        print_table(document, weighted=reference is not None)


def print_table(document: dict[str, Any], weighted: bool) -> None:
    console = show.console(False)
    columns = ["tensor", "shape", "bits", "codes", "steps", "kept", "share"] + ["loss, nats/token"] * weighted
    rows = []
    for name, t in document["tensors"].items():
        row = [
            name,
            "×".join(map(str, t["shape"])),
            str(t["bits"] or t["stored"]),
            f"{t['code_bytes']:,}",
            f"{t['step_bytes']:,.0f}",
            f"{t['small_bytes']:,.0f}",
            f"{t['share']:.2%}",
        ]
        if weighted:
            row.append("" if t["loss"] is None else f"{t['loss']:.2e}")
        rows.append(row)
    console.print(show.table(None, columns, rows))
    console.print(
        f"{document['file']}: {document['bytes']:,} bytes, {document['overhead_bytes']:,.0f} of them header and "
        f"checksum; format version {document['version']}"
    )
    if not weighted:
        console.print("for each weight's error add --reference CKPT with its --model, --tokenizer and --data")
