"""`quantgolf eval`: bits per byte of a checkpoint or a compressed file, and what it loses against a reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from quantgolf.blob import MAGIC
from quantgolf.cli import eval_table, inputs, show
from quantgolf.cli.inputs import Part, TextOptions
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import (
    difference,
    evaluate,
    evaluate_together,
    kl_difference,
    kl_interval,
    top1_difference,
    top1_interval,
)
from quantgolf.evaluate.interval import RESAMPLES
from quantgolf.runtime import load, memory
from quantgolf.types import EvalResult, Interval

PackedOption = Annotated[
    bool | None,
    typer.Option(
        "--packed/--float",
        help="Compute straight from packed weights, on any device (bf16 activations on a GPU), or from fp32 ones.",
    ),
]


class Precision(StrEnum):
    """What a model computes in."""

    fp32 = "fp32"
    bf16 = "bf16"


PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--dtype", help="fp32, or bf16: matrix products under torch's autocast. Losses are summed in fp64 in either."
    ),
]
BatchTokensOption = Annotated[
    int | None,
    typer.Option("--batch-tokens", min=1, help="Most tokens read at once; default: as many as have 8M logits."),
]
TORCH = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}
ResamplesOption = Annotated[int, typer.Option("--resamples", min=1, help="Of documents, for the intervals.")]


@inputs.reads_text
def eval_verb(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A compressed file, a checkpoint, or the word demo.")],
    text: TextOptions,
    model: inputs.ModelOption = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="New tokens a window; default: all.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Stop after that many; default: all.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Checkpoint or file to compare with: adds ΔBPB, KL and top-1.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Another file: adds paired differences, FILE minus this one.")
    ] = None,
    packed: PackedOption = None,
    dtype: PrecisionOption = Precision.fp32,
    batch_tokens: BatchTokensOption = None,
    per_document: Annotated[bool, typer.Option("--per-document", help="Adds every document to the JSON.")] = False,
    resamples: ResamplesOption = RESAMPLES,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    json: inputs.JsonOption = False,
) -> None:
    """Measure bits per byte on text, and the distance to a reference model."""
    target = inputs.open_device(device)
    base = open_module(reference, model, target, packed=False) if reference else None
    candidates = [open_module(each, model, target, packed=bool(packed)) for each in (file, against) if each]
    source = inputs.DEMO if inputs.DEMO in (file, reference, against) else None
    corpus = text.open(source, tokens, Part.validation)
    setting: dict[str, Any] = {
        "length": text.length, "stride": stride, "context": text.context.value, "dtype": TORCH[dtype],
        "batch_tokens": batch_tokens,
    }  # fmt: skip
    base_result = None
    with show.bars() as report:
        if base is None:
            results = []
            for name, candidate in zip((file, against), candidates, strict=False):
                stage = "evaluating" if against is None else f"evaluating {Path(str(name)).name}"
                results.append(evaluate(candidate, corpus, **setting, progress=partial(report, stage)))
        else:
            results, base_result = evaluate_together(
                candidates, base, corpus, **setting, progress=partial(report, "evaluating")
            )
    drawing = Drawing(seed, resamples)
    document = {
        "context": text.context.value,
        "length": text.length,
        "stride": text.length if stride is None else stride,
        "precision": precision(dtype, bool(packed), target),
        **summary(results[0], base_result, corpus, drawing),
    }
    if against is not None:
        document["against"] = compared(against, results[0], results[1], base_result, drawing)
    if packed:
        held = memory(candidates[0])
        document["memory"] = {
            "packed_bytes": held.packed_bytes, "float_bytes": held.float_bytes, "packed_bpw": held.bpw,
            "file_bpw": held.file_bpw,
        }  # fmt: skip
    if per_document:
        document["documents"] = documents_of(results[0])
        if against is not None:
            document["against"]["documents"] = documents_of(results[1])
    if json:
        show.print_json({"file": file, **document})
    else:
        eval_table.print_summary(file, document)


def precision(dtype: Precision, packed: bool, device: torch.device) -> str:
    """What ran in which precision, in a sentence."""
    weights = {
        Precision.fp32: "fp32",
        Precision.bf16: "matrix products in bf16 (autocast), what needs it in fp32",
    }[dtype]
    if packed:
        activations = "bf16" if device.type == "cuda" or dtype is Precision.bf16 else "fp32"
        weights = f"packed weights, {activations} activations" + (
            f"; reference: {weights}" if weights != "fp32" else ""
        )
    return f"{weights}; log-probabilities in fp32, summed in fp64"


@dataclass(frozen=True)
class Drawing:
    """How the intervals are drawn."""

    seed: int
    resamples: int

    def of(self, how: Callable[..., Interval], *results: EvalResult) -> dict[str, float | None]:
        """An interval of results, as JSON spells it."""
        return interval(how(*results, seed=self.seed, resamples=self.resamples))


def summary(result: EvalResult, base: EvalResult | None, text: Corpus, drawing: Drawing) -> dict[str, Any]:
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
        document |= losses(result, base, drawing)
        document["bootstrap"] = vars(drawing) | {"interval": "95%, paired over documents"}
    return document


def losses(result: EvalResult, base: EvalResult, drawing: Drawing) -> dict[str, Any]:
    """What a model loses against its reference, with intervals, and on the document where that is most."""
    found: dict[str, Any] = {
        "delta_bpb": drawing.of(difference, result, base),
        "kl_bpb": drawing.of(kl_interval, result),
        "top1": drawing.of(top1_interval, result),
    }
    index = result.worst_document
    if index is not None:
        size = int(result.bytes[index])
        found["worst_document"] = {
            "index": index, "bytes": size, "tokens": int(result.tokens[index]), "kl_bpb": result.worst,
            "delta_bpb": float((result.nats[index] - base.nats[index]) / math.log(2) / size),
        }  # fmt: skip
    return found


def compared(
    file: str, result: EvalResult, other: EvalResult, base: EvalResult | None, drawing: Drawing
) -> dict[str, Any]:
    """Another file's numbers, and the first file's minus those."""
    found: dict[str, Any] = {"file": file, "bpb": other.bpb}
    if base is not None:
        found |= losses(other, base, drawing)
    found["bpb_difference"] = drawing.of(difference, result, other)
    if base is not None:
        found["kl_difference"] = drawing.of(kl_difference, result, other)
        found["top1_difference"] = drawing.of(top1_difference, result, other)
    found["bootstrap"] = vars(drawing) | {"interval": "95%, paired over documents"}
    return found


def documents_of(result: EvalResult) -> dict[str, Any]:
    """Everything document by document, in the order of the text."""
    return {
        "nats": result.nats.tolist(),
        "bytes": result.bytes.tolist(),
        "tokens": result.tokens.tolist(),
        "kl": None if result.kl is None else result.kl.tolist(),
        "agree": None if result.agree is None else result.agree.tolist(),
    }


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
