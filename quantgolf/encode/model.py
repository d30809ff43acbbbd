"""A whole model as coded streams: one for each weight's codes, one shared by all steps, one by all small tensors.

Steps and small tensors share because one at a time they are too short to learn a table from. Both are split into
byte planes first: the high bytes of floating point numbers are alike, their low bytes are noise, and mixed neither
codec can tell them apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode.check import WIDTHS, check_model, matrix_shape
from quantgolf.encode.dtypes import DTYPES, dtype_name, from_bytes, stored_name, to_bytes
from quantgolf.encode.stream import decode_codes, decode_stream, encode_codes, encode_stream
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import CodedModel, CodedTensor, QTensor, Steps

ITEM_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Entry:
    """One tensor to be coded.

    Attributes:
        name: as in the checkpoint; `aliases` are further names of the same storage.
        original: the checkpoint's tensor. Its shape and dtype travel; its values only without `quantized`.
        quantized: what stands for it, codes [shape[0], product of the rest]; None keeps the tensor as it is.
        codes: what `encode_codes` made of the codes, where the caller has it already.
    """

    name: str
    original: Tensor
    quantized: QTensor | None = None
    aliases: tuple[str, ...] = ()
    codes: bytes | None = None


@dataclass(frozen=True)
class Spent:
    """Bytes of a file that one tensor answers for; of the shared streams its share by number of values."""

    codes: int
    steps: float
    small: float


def encode_model(entries: Sequence[Entry]) -> CodedModel:
    """Codes tensors in the order given.

    Raises:
        QuantGolfError: codes or steps that do not fit their tensor, a dtype the format does not know, or names
            used twice.
    """
    tensors: list[CodedTensor] = []
    rows: list[NDArray[np.uint8]] = []
    small: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in ITEM_SIZES}
    for entry in entries:
        shape, dtype = tuple(entry.original.shape), dtype_name(entry.original.dtype, entry.name)
        bits = stored = None
        codes = b""
        if entry.quantized is not None:
            _check_quantized(entry.name, entry.quantized, shape)
            bits = entry.quantized.bits
            codes = encode_codes(entry.quantized.codes) if entry.codes is None else entry.codes
            rows.append(to_bytes(entry.quantized.steps.row))
        else:
            stored = stored_name(entry.original, dtype)
            small[DTYPES[stored].itemsize].append(to_bytes(entry.original.to(DTYPES[stored])))
        tensors.append(CodedTensor(entry.name, shape, dtype, stored, bits, codes, entry.aliases))
    coded = CodedModel(tuple(tensors), _encode_planes(rows), b"".join(map(_encode_planes, small.values())))
    check_model(coded)
    return coded


def decode_model(coded: CodedModel) -> tuple[dict[str, QTensor], dict[str, Tensor]]:
    """Quantized weights, and the tensors kept as they are in the checkpoint's shapes and dtypes, by first name.

    A quantized weight's codes are [N, K]: the first dimension of its shape, and all others together.

    Raises:
        FormatError: streams that do not fit the shapes, or that no `encode_model` can have written.
    """
    check_model(coded)
    quantized: dict[str, QTensor] = {}
    cursor = Cursor(coded.steps, "the stream of steps")
    weights = [(tensor, tensor.bits) for tensor in coded.tensors if tensor.bits is not None]
    rows = _decode_planes(cursor, [tensor.shape[0] for tensor, _ in weights], 2)
    cursor.finish()
    for (tensor, bits), row in zip(weights, rows, strict=True):
        steps = Steps(from_bytes(row, "F16"))
        codes = decode_codes(tensor.codes, matrix_shape(tensor.shape), f"the codes of {tensor.name}")
        quantized[tensor.name] = QTensor(codes, steps, bits)
        _check_quantized(tensor.name, quantized[tensor.name], tensor.shape)

    small: dict[str, Tensor] = {}
    cursor = Cursor(coded.small, "the stream of small tensors")
    kept = [(tensor, tensor.stored) for tensor in coded.tensors if tensor.stored is not None]
    for size in ITEM_SIZES:
        group = [(tensor, stored) for tensor, stored in kept if DTYPES[stored].itemsize == size]
        values = _decode_planes(cursor, [math.prod(tensor.shape) for tensor, _ in group], size)
        for (tensor, stored), data in zip(group, values, strict=True):
            if stored == "BOOL" and data.size and data.max() > 1:
                raise FormatError(f"{tensor.name} holds a truth value of {data.max()}, expected 0 or 1; {DAMAGED}")
            small[tensor.name] = from_bytes(data, stored).to(DTYPES[tensor.dtype]).reshape(tensor.shape)
    cursor.finish()
    return quantized, {tensor.name: small[tensor.name] for tensor, _ in kept}


def tensor_bytes(coded: CodedModel) -> tuple[Spent, ...]:
    """What each tensor of a coded model costs, in its order; together the bytes of all streams."""
    rows = [0 if tensor.bits is None else tensor.shape[0] for tensor in coded.tensors]
    kept = [0 if t.stored is None else math.prod(t.shape) * DTYPES[t.stored].itemsize for t in coded.tensors]
    step, small = len(coded.steps) / max(1, sum(rows)), len(coded.small) / max(1, sum(kept))
    return tuple(
        Spent(len(tensor.codes), row * step, size * small)
        for tensor, row, size in zip(coded.tensors, rows, kept, strict=True)
    )


def _check_quantized(name: str, quantized: QTensor, shape: tuple[int, ...]) -> None:
    codes, row, bits = quantized.codes, quantized.steps.row, quantized.bits
    if quantized.steps.column is not None:
        raise QuantGolfError(f"{name} has column steps, expected None: format version 0 stores row steps only")
    if not shape or codes.shape != (expected := matrix_shape(shape)):
        raise QuantGolfError(f"{name} has codes {list(codes.shape)}, expected [N, K] of its shape {list(shape)}")
    if row.dtype != torch.float16 or row.shape != expected[:1] or not row.isfinite().all():
        raise FormatError(
            f"{name} has {row.dtype} steps {list(row.shape)}, expected finite torch.float16 of shape [{expected[0]}]"
        )
    if bits not in WIDTHS:
        raise QuantGolfError(f"{name} has {bits} bits, expected {WIDTHS[0]} to {WIDTHS[-1]}")
    top = (1 << (bits - 1)) - 1
    if codes.numel() and (largest := int(codes.short().abs().max())) > top:
        raise FormatError(f"{name} has a code of magnitude {largest}, expected at most {top} for {bits} bits")


def _encode_planes(values: Sequence[NDArray[np.uint8]]) -> bytes:
    """Values [n, size] of several tensors in a row: for each byte of a value, lowest first, a length and a stream."""
    if not any(map(len, values)):
        return b""
    streams = [encode_stream(np.ascontiguousarray(plane)) for plane in np.concatenate(values).T]
    return b"".join(varint(len(stream)) + stream for stream in streams)


def _decode_planes(cursor: Cursor, counts: Sequence[int], size: int) -> list[NDArray[np.uint8]]:
    """The values [count, size] of each tensor that `_encode_planes` was given."""
    total = sum(counts)
    if total == 0:
        return [np.empty((0, size), dtype=np.uint8) for _ in counts]
    planes = [decode_stream(cursor.take(cursor.varint()), total, cursor.what) for _ in range(size)]
    return np.split(np.stack(planes, axis=1), np.cumsum(counts)[:-1])
