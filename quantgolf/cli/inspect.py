"""`quantgolf inspect`: what a file spends its bytes on, tensor by tensor, and what each tensor's error costs; or what
calibration will see of a checkpoint, before anything expensive runs."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from quantgolf.blob import read_blob
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import inputs, learn, show, spent
from quantgolf.cli.capture import document_of, print_capture
from quantgolf.cli.inputs import TextOptions
from quantgolf.cli.learn import Learning
from quantgolf.cli.verify import MaxDecodedOption, limit_of
from quantgolf.compress import look
from quantgolf.encode import block_bytes, matrix_shape, places
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.runtime import restore
from quantgolf.sweep.spending import kinds_of
from quantgolf.types import Calibration, CodedModel

MOST_ROWS = 1000  # printed where not all are asked for; rich takes a millisecond a row


@inputs.reads_text
def inspect_verb(
    call: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A compressed file; with --capture a checkpoint.")],
    text: TextOptions,
    capture: Annotated[
        bool, typer.Option("--capture", help="Show what calibration will see of each parameter of a checkpoint.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Its checkpoint: adds the weighted error (calibrates anew).")
    ] = None,
    model: inputs.ModelOption = None,
    stats: learn.StatsOption = None,
    tokens: learn.TokensOption = 32_768,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    every: Annotated[bool, typer.Option("--all", help=f"Print all rows, and not the first {MOST_ROWS:,}.")] = False,
    max_decoded_bytes: MaxDecodedOption = None,
    json: inputs.JsonOption = False,
) -> None:
    """Show what a file spends its bytes on and what each tensor's error costs, or what calibration will see."""
    learning = Learning(text, tokens, seed, device, offload=False, memory=None)
    if capture:
        if every or any(each is not None for each in (reference, stats, max_decoded_bytes)):
            raise QuantGolfError(
                "--capture looks at a checkpoint, expected no --reference, --stats, --all or --max-decoded-bytes"
            )
        show_capture(file, model, learning, json)
        return
    limit = limit_of(max_decoded_bytes)
    header, coded = read_blob(file, limit)
    file_bytes = Path(file).stat().st_size
    losses: dict[tuple[str, str], float] = {}
    if reference is not None:
        source = inputs.open_source(reference, model)
        if stats is not None:
            calibration, _ = learn.stored(stats, source, call)
        else:
            learn.open_on(source, device)
            with show.bars() as report:
                corpus = learning.open(source, reference, report)
                calibration = learning.learn(source, corpus, Ranks(), report)
        losses = weighted_errors(coded, source, calibration)
    tensors = rows_of(coded, file_bytes, losses)
    kinds = kinds_of(coded, file_bytes)
    document = {
        "file": file,
        "bytes": file_bytes,
        "kinds": kinds,
        "side_share": spent.side_share(kinds),
        "version": header.version,
        "model": header.model,
        "overhead_bytes": file_bytes - len(coded.streams()),
        "tensors": tensors,
    }
    if json:
        show.print_json(document)
    else:
        print_table(document, reference is not None, None if every else MOST_ROWS)


def show_capture(checkpoint: str, model: str | None, learning: Learning, json: bool) -> None:
    """One forward pass: over the beginning of --data where it is given, over a few tokens otherwise."""
    source = inputs.open_source(checkpoint, model)
    learn.open_on(source, learning.device)
    text = None
    if learning.text.data is not None:
        with show.bars() as report:
            text = learning.open(source, checkpoint, report)
    document = document_of(source, look(source, text, length=learning.text.length))
    if json:
        show.print_json(document)
    else:
        print_capture(document)
        show.console(False).print(f"seen in one forward pass of {document['seen_tokens']:,} tokens; nothing was summed")


def weighted_errors(coded: CodedModel, source: Checkpoint, calibration: Calibration) -> dict[tuple[str, str], float]:
    """What the error of each matrix costs, in nats per token, by its parameter's name and its own."""
    restored = restore(coded)
    losses = {}
    for name, block in calibration.blocks.items():
        original = source.tensors[block.parameter]
        found = restored.get(block.parameter)
        if found is None or found.shape != original.shape:
            raise QuantGolfError(
                f"the file has {block.parameter} {None if found is None else list(found.shape)}, expected "
                f"{list(original.shape)} as the reference has; give the checkpoint that was compressed"
            )
        losses[block.parameter, name] = calibration.stats[name].loss(
            block.matrix(found).float() - block.matrix(original).float()
        )
    return losses


def rows_of(coded: CodedModel, file_bytes: int, losses: Mapping[tuple[str, str], float]) -> dict[str, dict[str, Any]]:
    """One row of the table for each tensor, or for each block of a tensor that is cut, by name; a block that is called
    as another row is has a prime behind its name."""
    rows: dict[str, dict[str, Any]] = {}
    tensors = {tensor.name for tensor in coded.tensors if len(tensor.blocks) == 1}
    for tensor, found in zip(coded.tensors, block_bytes(coded), strict=True):
        for place, block, cost in zip(places(tensor), tensor.blocks, found, strict=True):
            name = key = place.name(tensor.shape)
            while key in rows or (key in tensors and len(found) > 1):
                key += "'"
            rows[key] = {
                "parameter": tensor.name,
                "shape": list(tensor.shape if len(found) == 1 else matrix_shape(tensor.shape, place)),
                "transposed": block.transposed,
                "dtype": tensor.dtype,
                "aliases": list(tensor.aliases),
                "bits": "levels" if block.levels else block.bits,
                "groups": None if block.groups is None else {
                    "size": block.groups.size, "zeros": block.groups.zeros,
                    "scales": "fp16" if block.groups.base is None else "log",
                },
                "stored": block.stored,
                "code_bytes": cost.codes,
                "step_bytes": cost.steps,
                "zero_bytes": cost.zeros,
                "small_bytes": cost.small,
                "share": cost.total / file_bytes,
                "loss": losses.get((tensor.name, name)),
            }  # fmt: skip
    return rows


def print_table(document: dict[str, Any], weighted: bool, most: int | None) -> None:
    console = show.console(False)
    grouped = any(t["groups"] for t in document["tensors"].values())
    columns = ["tensor", "shape", "bits", *["groups"] * grouped, "codes", "steps", *["zeros"] * grouped, "kept"]
    columns += ["share", *["loss, nats/token"] * weighted]
    rows = []
    for name, t in islice(document["tensors"].items(), most):
        row = [
            name,
            "×".join(map(str, t["shape"])),
            str(t["bits"] or t["stored"]),
            *[_groups(t)] * grouped,
            f"{t['code_bytes']:,.0f}",
            f"{t['step_bytes']:,.0f}",
            *[f"{t['zero_bytes']:,.0f}"] * grouped,
            f"{t['small_bytes']:,.0f}",
            f"{t['share']:.2%}",
        ]
        if weighted:
            row.append("" if t["loss"] is None else f"{t['loss']:.2e}")
        rows.append(row)
    console.print(show.table(None, columns, rows))
    if left := len(document["tensors"]) - len(rows):
        console.print(f"and {left:,} more rows; --all prints them\n")
    console.print(spent.table(document["kinds"], document["side_share"]))
    console.print(
        f"{document['file']}: {document['bytes']:,} bytes, {document['overhead_bytes']:,.0f} of them header and "
        f"checksum; format version {document['version']}"
    )
    if not weighted:
        console.print("for each weight's error add --reference CKPT with its --model, --tokenizer and --data")


def _groups(row: dict[str, Any]) -> str:
    """Columns of a group, and what it has: `64, log scales and zeros`; nothing where there is a step a row."""
    if row["groups"] is None:
        return ""
    groups = row["groups"]
    return f"{groups['size']}, {groups['scales']} scales{' and zeros' * groups['zeros']}"
