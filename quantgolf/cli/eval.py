"""`quantgolf eval`: bits per byte of a checkpoint or a compressed file, and its KL to a reference."""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from quantgolf.blob import MAGIC
from quantgolf.cli import inputs, show
from quantgolf.cli.inputs import Part, TextOptions
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, evaluate, evaluate_against, kl_interval
from quantgolf.runtime import load, memory
from quantgolf.types import EvalResult, Interval

PackedOption = Annotated[
    bool | None,
    typer.Option(
        "--packed/--float",
        help="Compute straight from packed weights, on any device (bf16 activations on a GPU), or from fp32 ones.",
    ),
]


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
    packed: PackedOption = None,
    per_document: Annotated[bool, typer.Option("--per-document", help="Adds every document to the JSON.")] = False,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    json: inputs.JsonOption = False,
) -> None:
    """Measure bits per byte on text, and the distance to a reference model."""
    target = inputs.open_device(device)
    base = open_module(reference, model, target, packed=False) if reference else None
    candidate = open_module(file, model, target, packed=bool(packed))
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
    if packed:
        held = memory(candidate)
        document["memory"] = {
            "packed_bytes": held.packed_bytes, "float_bytes": held.float_bytes, "packed_bpw": held.bpw,
            "file_bpw": held.file_bpw,
        }  # fmt: skip
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
    if "memory" in document:
        held = document["memory"]
        rows.append(("packed weights, bytes", f"{held['packed_bytes']:,}"))
        rows.append(("all else in memory, bytes", f"{held['float_bytes']:,}"))
        if held["packed_bpw"] is not None:
            rows.append(("packed bits per weight, and the file's", f"{held['packed_bpw']:.3f}, {held['file_bpw']:.3f}"))
    show.console(False).print(show.table(None, ("", file), rows))


def interval(value: Interval) -> dict[str, float | None]:
    """As JSON, which knows no nan: one document has no interval."""
    low, high = (None if math.isnan(end) else end for end in (value.low, value.high))
    return {"value": value.value, "low": low, "high": high}


def open_module(file: str, model: str | None, device: torch.device, packed: bool | None) -> nn.Module:
    """The module of a compressed file, told from a checkpoint by its first bytes, on a device.

    Args:
        packed: whether a file's weights stay packed; False gives them in fp32, None leaves it to `load`.

    Raises:
        QuantGolfError: a checkpoint, whose weights are not packed, was to be.
    """
    path = Path(file)
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) == MAGIC:
                if packed is None:
                    return load(path, model, device)
                return load(path, model, device, materialize=not packed, dtype=None if packed else torch.float32)
    if packed:
        raise QuantGolfError(f"{file} is a checkpoint, expected a compressed file with --packed; compress it first")
    return inputs.open_source(file, model).module.to(device)
