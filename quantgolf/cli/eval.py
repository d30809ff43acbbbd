"""`quantgolf eval`: bits per byte of a checkpoint or a compressed file, and its KL to a reference."""

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from quantgolf.blob import MAGIC
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Documents, Part
from quantgolf.evaluate import difference, evaluate, kl_interval
from quantgolf.runtime import load
from quantgolf.types import EvalResult, Interval


def eval_verb(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A compressed file, a checkpoint, or the word demo.")],
    model: inputs.ModelOption = None,
    tokenizer: inputs.TokenizerOption = None,
    data: inputs.DataOption = None,
    documents: inputs.DocumentsOption = Documents.lines,
    bos: inputs.BosOption = True,
    length: inputs.LengthOption = 512,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="New tokens a window; default: all.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Stop after that many; default: all.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Checkpoint to compare with: adds ΔBPB and KL.")
    ] = None,
    per_document: Annotated[bool, typer.Option("--per-document", help="Adds every document to the JSON.")] = False,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    json: inputs.JsonOption = False,
) -> None:
    """Measure bits per byte on text, and the distance to a reference model."""
    base = inputs.open_source(reference, model).module.to(device) if reference else None
    candidate = _open_module(file, model).to(device)
    is_demo = inputs.DEMO in (file, reference)
    text = inputs.open_text(
        inputs.DEMO if is_demo else None, data, tokenizer, documents, bos, tokens, Part.validation
    )
    with show.bars() as report:
        result = evaluate(
            candidate, text, length=length, stride=stride, reference=base,
            progress=lambda done, total: report("evaluating", done, total),
        )  # fmt: skip
        reference_result = None
        if base is not None:
            reference_result = evaluate(
                base, text, length=length, stride=stride,
                progress=lambda done, total: report("evaluating the reference", done, total),
            )  # fmt: skip
    document = summary(result, reference_result, seed)
    if per_document:
        document["documents"] = {
            "nats": result.nats.tolist(),
            "bytes": result.bytes.tolist(),
            "tokens": result.tokens.tolist(),
            "kl": None if result.kl is None else result.kl.tolist(),
        }
    if json:
        show.print_json(document)
        return
    rows = [(key.replace("_", " "), show.value(value)) for key, value in document.items() if key != "documents"]
    show.console(json).print(show.table(None, ("", file), rows))


def summary(result: EvalResult, reference: EvalResult | None, seed: int) -> dict[str, Any]:
    """The numbers of an evaluation, as the JSON output spells them."""
    document: dict[str, Any] = {
        "bpb": result.bpb,
        "nats_per_token": float(result.nats.sum() / result.tokens.sum()),
        "documents_scored": len(result.bytes),
        "tokens": int(result.tokens.sum()),
        "bytes": int(result.bytes.sum()),
        "unknown_pieces": result.unknown,
    }
    if reference is not None:
        document["reference_bpb"] = reference.bpb
        document["delta_bpb"] = interval(difference(result, reference, seed=seed))
        document["kl_bpb"] = interval(kl_interval(result, seed=seed))
    return document


def interval(value: Interval) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}


def _open_module(file: str, model: str | None) -> nn.Module:
    """The module of a compressed file, told from a checkpoint by its first bytes."""
    path = Path(file)
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) == MAGIC:
                return load(path, model)
    return inputs.open_source(file, model).module
