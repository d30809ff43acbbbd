"""From a file's codes to a module whose weights are their dequantized values."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from quantgolf.blob import read_blob
from quantgolf.checkpoint import build_model, fill
from quantgolf.checkpoint.model import module_from_description
from quantgolf.encode import DTYPES, decode_model
from quantgolf.errors import QuantGolfError
from quantgolf.types import BlobHeader, Block, CodedModel, CodedTensor, QTensor


def load(
    path: str | Path, model: str | Path | nn.Module | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """The module of a compressed file, in evaluation mode, its weights dequantized to fp32.

    Args:
        path: a file that `quantgolf compress` wrote.
        model: the module to fill, its card, or `path/to/script.py:factory`. Files of the reference family say
            themselves how to build it; a script is never run because a file asks for it.
        device: where the module goes.

    Raises:
        FormatError: the file is damaged or no quantgolf file.
        QuantGolfError: `model` is missing, or does not match the file.
    """
    header, coded = read_blob(Path(path))
    return module_of(header, coded, model, source=f"file {path}").to(device)


def module_of(
    header: BlobHeader, coded: CodedModel, model: str | Path | nn.Module | None = None, source: str = "file"
) -> nn.Module:
    """As `load`, from the parts of a file; `source` names it in messages."""
    tensors = restore(coded)
    if isinstance(model, nn.Module):
        module = model.eval()
    elif model is not None:
        module = build_model(model)
    elif header.model is not None:
        # A forged description could ask for any size: nothing is allocated before its shapes are those of the file.
        with torch.device("meta"):
            module = module_from_description(header.model)
        fill(module, tensors, source)
        module = module.to_empty(device="cpu")
    else:
        raise QuantGolfError(
            f"{source} does not say how its module is built, expected the module it was compressed from; "
            "give --model path/to/script.py:factory"
        )
    module = module.float()
    fill(module, tensors, source, share=True)
    return module


def restore(coded: CodedModel) -> dict[str, Tensor]:
    """All tensors of a file by name, tied ones under each of their names, in the checkpoint's shapes.

    Tensors with quantized rows are fp32, as codes define them, their other rows rounded to it (only float64 can
    lose by that); tensors that were kept whole have the checkpoint's dtype. Codes are decoded and dropped one matrix
    at a time; levels, which are one stream, are all decoded with the first of them.

    Raises:
        FormatError: streams that do not fit their tensors.
    """
    decoded = decode_model(coded)
    tensors: dict[str, Tensor] = {}
    for entry in coded.tensors:
        whole = _assemble(entry, islice(decoded, len(entry.blocks)))
        tensors.update(dict.fromkeys((entry.name, *entry.aliases), whole))
    return tensors


def _assemble(entry: CodedTensor, decoded: Iterable[tuple[Block, QTensor | Tensor]]) -> Tensor:
    """A tensor of its blocks; one that is whole and upright is not copied."""
    if len(entry.blocks) == 1 and not entry.blocks[0].transposed:
        ((_, part),) = decoded
        return _values(part).reshape(entry.shape)
    quantized = any(block.stored is None for block in entry.blocks)
    whole = torch.empty(entry.shape, dtype=torch.float32 if quantized else DTYPES[entry.dtype])
    for place, part in decoded:
        place.matrix(whole).copy_(_values(part))
    return whole


def _values(part: QTensor | Tensor) -> Tensor:
    return part.dequantize() if isinstance(part, QTensor) else part
