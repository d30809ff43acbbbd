"""A file's tensors in floating point, as the checkpoint had them."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from quantgolf.encode import DTYPES, decode_model
from quantgolf.runtime.subnormal import subnormals
from quantgolf.types import Block, CodedModel, CodedTensor, QTensor


def restore(coded: CodedModel) -> dict[str, Tensor]:
    """All tensors of a file by name, tied ones under each of their names, in the checkpoint's shapes.

    Tensors with quantized rows are fp32, as codes define them, their other rows rounded to it (only float64 can
    lose by that); tensors that were kept whole have the checkpoint's dtype. Codes are decoded and dropped one matrix
    at a time; levels, which are one stream, are all decoded with the first of them.

    Raises:
        FormatError: streams that do not fit their tensors.
    """
    tensors: dict[str, Tensor] = {}
    for entry, whole in restored(coded):
        tensors.update(dict.fromkeys((entry.name, *entry.aliases), whole))
    return tensors


def restored(coded: CodedModel) -> Iterator[tuple[CodedTensor, Tensor]]:
    """What `restore` gives, one tensor after the other in the file's order, each storage once, decoded when asked for.

    Raises:
        FormatError: as `restore`.
    """
    with subnormals():
        decoded = decode_model(coded)
    for entry in coded.tensors:
        with subnormals(math.prod(entry.shape)):  # not while others work with the tensor
            whole = assemble(entry, islice(decoded, len(entry.blocks)))
        yield entry, whole


def assemble(entry: CodedTensor, decoded: Iterable[tuple[Block, QTensor | Tensor]]) -> Tensor:
    """A tensor of its blocks; one that is whole and upright is not copied."""
    if len(entry.blocks) == 1 and not entry.blocks[0].transposed:
        ((_, part),) = decoded
        return _values(part).reshape(entry.shape)
    quantized = any(block.stored is None for block in entry.blocks)
    whole = torch.empty(entry.shape, dtype=torch.float32 if quantized else DTYPES[entry.dtype], device="cpu")
    for place, part in decoded:
        place.matrix(whole).copy_(_values(part))
    return whole


def _values(part: QTensor | Tensor) -> Tensor:
    return part.dequantize() if isinstance(part, QTensor) else part
