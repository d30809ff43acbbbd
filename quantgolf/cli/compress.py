"""`quantgolf compress`: a checkpoint and text in, a file under the byte limit out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.allocate import parse_bits
from quantgolf.blob import refuse_unwritable
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part, Solver
from quantgolf.cli.sizes import parse_size
from quantgolf.compress import Compressed, calibrate, compress, refuse_unreachable
from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions

DEFAULTS = SolveOptions()


def compress_verb(
    checkpoint: inputs.CheckpointArgument,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    documents: inputs.DocumentsOption = Documents.lines,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Calibration tokens.")] = 32_768,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", help="Limit of the complete file plus --code: 16MB is 16,000,000.")
    ] = None,
    code: Annotated[
        list[Path] | None, typer.Option("--code", help="Source file whose raw bytes count; again for more.")
    ] = None,
    bits: Annotated[
        str | None, typer.Option("--bits", help="Widths by hand, 'mlp.*=5,attn.*=6,emb=7'; first match wins.")
    ] = None,
    solver: Annotated[Solver, typer.Option("--solver", help="How codes are chosen.")] = Solver.gptq,
    damp: Annotated[float, typer.Option("--damp", help="GPTQ: added to H, as a share of its mean diagonal.")] = (
        DEFAULTS.damp
    ),
    act_order: Annotated[
        bool, typer.Option("--act-order/--no-act-order", help="GPTQ: columns by falling activation.")
    ] = DEFAULTS.act_order,
    block_size: Annotated[int, typer.Option("--block-size", min=1, help="GPTQ: columns between two updates.")] = (
        DEFAULTS.block_size
    ),
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Compress a checkpoint into a file of at most --max-bytes with the least loss."""
    if max_bytes is None and bits is None:
        raise QuantGolfError("--max-bytes is missing, expected a size such as 16MB (or widths by hand with --bits)")
    limit = None if max_bytes is None else parse_size(max_bytes)
    rules = None if bits is None else parse_bits(bits)
    options = SolveOptions(damp=damp, act_order=act_order, block_size=block_size)
    code_bytes = sum(size_of(path) for path in code or ())
    target = inputs.open_device(device)
    refuse_unwritable(out, overwrite)
    source = inputs.open_source(checkpoint, model)
    if limit is not None:
        refuse_unreachable(source, limit, rules=rules, solver=solver.value, code_bytes=code_bytes)
    text = inputs.open_text(checkpoint, data, tokenizer, documents, bos, tokens, Part.calibration)
    source.module.to(target)
    with show.bars() as report:
        stats = calibrate(source, text, tokens=tokens, length=length, seed=seed, progress=report)
        result = compress(
            source, stats, max_bytes=limit, rules=rules, solver=solver.value, options=options,
            code_bytes=code_bytes, progress=report,
        )  # fmt: skip
    result.write(out, overwrite=overwrite)
    document = summary(result, out, limit, text.unknown)
    if json:
        show.print_json(document)
    else:
        print_summary(document)


def size_of(path: Path) -> int:
    """Raw bytes of a --code file as it lies there."""
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise QuantGolfError(f"--code {path}: {error.strerror}, expected a readable file") from error
    raise QuantGolfError(f"--code {path}: no such file, expected a source file whose bytes count towards the budget")


def summary(result: Compressed, out: Path, limit: int | None, unknown: int) -> dict[str, Any]:
    """What was written, as the JSON output spells it."""
    return {
        "file": str(out),
        "bytes": len(result.data),
        "code_bytes": result.code_bytes,
        "max_bytes": limit,
        "bpw": result.bpw,
        "predicted_loss": result.plan.predicted_loss,
        "unknown_pieces": unknown,
        "kept": list(result.kept),
        "weights": {
            name: {"bits": report.bits, "loss": report.loss, "damp": report.damp, "retries": report.retries,
                   "dead_columns": report.dead_columns}
            for name, report in result.reports.items()
        },
    }  # fmt: skip


def print_summary(document: dict[str, Any]) -> None:
    console = show.console(False)
    rows = [
        (name, str(w["bits"]), f"{w['loss']:.2e}", f"{w['damp']:g}", str(w["retries"]), str(w["dead_columns"]))
        for name, w in document["weights"].items()
    ]
    columns = ("weight", "bits", "loss, nats/token", "damp", "retries", "dead columns")
    console.print(show.table(None, columns, rows))
    for name in document["kept"]:
        console.print(f"kept unquantized: {name} never met activations in calibration")
    total = document["bytes"] + document["code_bytes"]
    limit = f" of {document['max_bytes']:,}" if document["max_bytes"] else ""
    code = f" ({document['code_bytes']:,} of them code)" if document["code_bytes"] else ""
    console.print(f"{document['file']}: {total:,} bytes{limit}{code}, {document['bpw']:.3f} bits per weight")
    console.print(f"unknown pieces in the calibration text: {document['unknown_pieces']:,}")
