"""`quantgolf eval`: bits per byte of a checkpoint or a compressed file, and its KL to a reference."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from quantgolf.blob import MAGIC
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Part, TextOptions
from quantgolf.data import Corpus
from quantgolf.evaluate import difference, evaluate, evaluate_against, kl_interval
from quantgolf.runtime import load
from quantgolf.types import EvalResult, Interval


@inputs.reads_text
def eval_verb(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A compressed file, a checkpoint, or the word demo.")],
    text: TextOptions,
    model: inputs.ModelOption = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="New tokens a window; default: all.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Stop after that many; default: all.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Checkpoint or file to compare with: adds ΔBPB and KL.")
    ] = None,
    per_document: Annotated[bool, typer.Option("--per-document", help="Adds every document to the JSON.")] = False,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    json: inputs.JsonOption = False,
) -> None:
    """Measure bits per byte on text, and the distance to a reference model."""
    target = inputs.open_device(device)
    base = _open_module(reference, model).to(target) if reference else None
    candidate = _open_module(file, model).to(target)
    source = inputs.DEMO if inputs.DEMO in (file, reference) else None
    corpus = text.open(source, tokens, Part.validation)
    base_result = None
    with show.bars() as report:

        def progress(done: int, total: int) -> None:
            report("evaluating", done, total)

        if base is None:
            result = evaluate(
                candidate, corpus, length=text.length, stride=stride, context=text.context.value, progress=progress
            )
        else:
            result, base_result = evaluate_against(
                candidate, base, corpus, length=text.length, stride=stride, context=text.context.value,
                progress=progress,
            )  # fmt: skip
    document = {"context": text.context.value, **summary(result, base_result, corpus, seed)}
    if per_document:
        document["documents"] = {
            "nats": result.nats.tolist(),
            "bytes": result.bytes.tolist(),
            "tokens": result.tokens.tolist(),
            "kl": None if result.kl is None else result.kl.tolist(),
        }
    if json:
        show.print_json({"file": file, **document})
    else:
        print_summary(file, document)


def summary(result: EvalResult, base: EvalResult | None, text: Corpus, seed: int) -> dict[str, Any]:
    """The numbers of an evaluation, as the JSON output spells them."""
    document: dict[str, Any] = {
        "bpb": result.bpb,
        "nats_per_token": float(result.nats.sum() / result.tokens.sum()),
        "scored_documents": len(result.bytes),
        "scored_tokens": int(result.tokens.sum()),
        "scored_bytes": int(result.bytes.sum()),
        "bytes_counted_from": text.counted,
        "uncounted_bytes": text.uncounted,
        "unknown_pieces": result.unknown,
    }
    if base is not None:
        document["reference_bpb"] = base.bpb
        document["delta_bpb"] = interval(difference(result, base, seed=seed))
        document["kl_bpb"] = interval(kl_interval(result, seed=seed))
    return document


def print_summary(file: str, document: dict[str, Any]) -> None:
    rows = [
        (f"bits per byte (bytes counted from {document['bytes_counted_from']})", f"{document['bpb']:.5f}"),
        ("nats per token", f"{document['nats_per_token']:.5f}"),
        ("context", document["context"]),
        ("documents", f"{document['scored_documents']:,}"),
        ("tokens", f"{document['scored_tokens']:,}"),
        ("bytes", f"{document['scored_bytes']:,}"),
        ("bytes of blank lines, not counted", f"{document['uncounted_bytes']:,}"),
        ("unknown pieces", f"{document['unknown_pieces']:,}"),
    ]
    if "reference_bpb" in document:
        rows.append(("reference, bits per byte", f"{document['reference_bpb']:.5f}"))
        for key, label in (("delta_bpb", "ΔBPB"), ("kl_bpb", "KL, bits per byte")):
            value = document[key]
            rows.append((f"{label}, 95% interval", show.with_interval(value, sign="+" if key == "delta_bpb" else "")))
    show.console(False).print(show.table(None, ("", file), rows))


def interval(value: Interval) -> dict[str, float | None]:
    """As JSON, which knows no nan: one document has no interval."""
    low, high = (None if math.isnan(end) else end for end in (value.low, value.high))
    return {"value": value.value, "low": low, "high": high}


def _open_module(file: str, model: str | None) -> nn.Module:
    """The module of a compressed file, told from a checkpoint by its first bytes."""
    path = Path(file)
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) == MAGIC:
                return load(path, model)
    return inputs.open_source(file, model).module
