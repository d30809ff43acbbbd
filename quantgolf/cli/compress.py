"""`quantgolf compress`: a checkpoint and text in, a file under the byte limit out."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.allocate import parse_bits
from quantgolf.blob import refuse_unwritable
from quantgolf.cli import inputs, learn, show
from quantgolf.cli.inputs import Solver, TextOptions
from quantgolf.cli.learn import Learning
from quantgolf.cli.sizes import parse_size
from quantgolf.compress import Compressed, DryRun, compress, dry_run, refuse_idle_rules, refuse_unreachable
from quantgolf.errors import QuantGolfError
from quantgolf.solve import SolveOptions
from quantgolf.solve.trellis import Trellis

DEFAULTS = SolveOptions()


@inputs.reads_text
def compress_verb(
    call: typer.Context,
    checkpoint: inputs.CheckpointArgument,
    text: TextOptions,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write.")] = None,
    model: inputs.ModelOption = None,
    stats: learn.StatsOption = None,
    tokens: learn.TokensOption = 32_768,
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
    states: Annotated[
        int | None, typer.Option("--states", help="slope: states of the trellis quantizer, 1 for none; default: 8.")
    ] = None,
    damp: Annotated[float, typer.Option("--damp", help="GPTQ: added to H, as a share of its mean diagonal.")] = (
        DEFAULTS.damp
    ),
    act_order: Annotated[
        bool, typer.Option("--act-order/--no-act-order", help="GPTQ: columns by falling activation.")
    ] = DEFAULTS.act_order,
    block_size: Annotated[int, typer.Option("--block-size", min=1, help="GPTQ: columns between two updates.")] = (
        DEFAULTS.block_size
    ),
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Predict bytes, memory and minutes in seconds, and write nothing.")
    ] = False,
    offload: learn.OffloadOption = False,
    memory: learn.MemoryOption = None,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    rank_timeout: learn.RankTimeoutOption = learn.RANK_TIMEOUT,
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
    if states is not None and solver is not Solver.slope:
        raise QuantGolfError(
            f"--states is the trellis' of --solver slope, and --solver is {solver.value}; leave one out"
        )
    trellis = Trellis() if states is None else Trellis(states)
    if solver is Solver.slope and (limit is None or rules is not None):
        raise QuantGolfError("--solver slope has no widths, expected --max-bytes and no --bits; leave --bits out")
    learning = Learning(text, tokens, seed, device, offload, memory)
    learning.limit()
    if dry and stats is not None:
        raise QuantGolfError("--dry-run predicts calibration too, expected it without --stats; leave one out")
    if out is None and not dry:
        raise QuantGolfError("--out is missing, expected the name of the file to write (or --dry-run)")
    if out is not None:
        refuse_unwritable(out, overwrite)
    source = inputs.open_source(checkpoint, model)
    if limit is not None and not dry:
        refuse_unreachable(source, limit, rules=rules, solver=solver.value, code_bytes=code_bytes, length=text.length)
    if rules is not None and stats is None:
        refuse_idle_rules(source, rules, text.length)
    with ExitStack() as stack:
        ranks, report = stack.enter_context(learn.ranks_and_bars(rank_timeout))
        unknown, settings = None, learning.settings()
        if stats is not None:
            calibration, settings = learn.stored(stats, source, call)
        else:
            learn.open_on(source, device)
            corpus = learning.open(source, checkpoint, report)
            unknown = corpus.unknown
            if dry:
                predicted = dry_run(
                    source, corpus, learning.batches(corpus), max_bytes=limit, rules=rules, solver=solver.value,
                    code_bytes=code_bytes, length=text.length, memory=learning.limit(),
                )  # fmt: skip
            elif offload and out is not None:
                folder = stack.enter_context(learn.beside(out, ranks))
                calibration = learning.learn_to(folder, source, corpus, ranks, report, overwrite=False)
            else:
                calibration = learning.learn(source, corpus, ranks, report)
        if not dry:
            result = compress(
                source, calibration, max_bytes=limit, rules=rules, solver=solver.value, options=options,
                trellis=trellis, code_bytes=code_bytes, ranks=ranks, progress=report,
            )  # fmt: skip
    if not ranks.writes:
        return
    if dry or out is None:
        print_dry_run(predicted, limit, json)
        return
    result.write(out, overwrite=overwrite)
    document = summary(result, out, limit) | {
        "calibration": {**settings, "tokens": calibration.tokens, "labels": calibration.labels},
        "unknown_pieces": unknown,
        "notes": list(source.notes),
    }
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


def summary(result: Compressed, out: Path, limit: int | None) -> dict[str, Any]:
    """What was written, as the JSON output spells it."""
    return {
        "file": str(out),
        "bytes": len(result.data),
        "code_bytes": result.code_bytes,
        "max_bytes": limit,
        "bpw": result.bpw,
        "predicted_loss": result.plan.predicted_loss,
        "kept": result.kept,
        "weights": {
            name: {"bits": report.bits, "loss": report.loss, "damp": report.damp, "retries": report.retries,
                   "dead_columns": report.dead_columns}
            for name, report in result.reports.items()
        },
    }  # fmt: skip


def print_summary(document: dict[str, Any]) -> None:
    console = show.console(False)
    rows = [
        (name, f"{w['bits']:.4g}", f"{w['loss']:.2e}", f"{w['damp']:g}", str(w["retries"]), str(w["dead_columns"]))
        for name, w in document["weights"].items()
    ]
    columns = ("weight", "bits", "loss, nats/token", "damp", "retries", "dead columns")
    console.print(show.table(None, columns, rows))
    for name, why in document["kept"].items():
        console.print(f"kept unquantized: {name}, because {why}")
    for note in document["notes"]:
        console.print(f"note: {note}")
    total = document["bytes"] + document["code_bytes"]
    limit = f" of {document['max_bytes']:,}" if document["max_bytes"] else ""
    code = f" ({document['code_bytes']:,} of them code)" if document["code_bytes"] else ""
    console.print(f"{document['file']}: {total:,} bytes{limit}{code}, {document['bpw']:.3f} bits per weight")
    console.print(show.calibrated(document["calibration"], document["unknown_pieces"]))


def print_dry_run(predicted: DryRun, limit: int | None, json: bool) -> None:
    if json:
        show.print_json({"max_bytes": limit, **asdict(predicted)})
        return
    rows = [
        ("file, bytes", f"{predicted.file_bytes:,}", "" if limit is None else f"{limit:,} with code"),
        ("bits per weight", f"{predicted.bpw:.3f}", ""),
        ("smallest file there can be, bytes", f"{predicted.smallest_bytes:,}", ""),
        ("memory of the process, bytes", f"{predicted.memory_bytes:,}", f"{predicted.available_bytes:,} there"),
        (f"calibration on {predicted.tokens:,} tokens, passes over them", f"{predicted.passes}", ""),
        ("calibration", show.duration(predicted.calibrate_seconds), ""),
        ("allocating and solving", show.duration(predicted.solve_seconds), ""),
    ]
    console = show.console(False)
    console.print(show.table("dry run: nothing is written", ("", "predicted", "limit"), rows))
    if predicted.memory_bytes > predicted.available_bytes:
        console.print("this does not fit into memory: add --offload, or a smaller --length")
