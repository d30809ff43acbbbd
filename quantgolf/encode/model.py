"""A whole model as coded streams: one for each matrix's codes, one shared by all steps, one by all small tensors;
for matrices on the one-slope grid one shared by all levels and one by all exponents.

A tensor may hold several matrices, so it is cut into blocks of rows, each coded or kept on its own. Steps and small
tensors share a stream because one at a time they are too short to learn a table from. Both are split into byte
planes first: the high bytes of floating point numbers are alike, their low bytes are noise, and mixed neither codec
can tell them apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode import gpu
from quantgolf.encode.check import check_model
from quantgolf.encode.dtypes import DTYPES, dtype_name, from_bytes, stored_name, to_bytes
from quantgolf.encode.leveled import Leveled, check_leveled, decode_leveled, encode_leveled
from quantgolf.encode.place import matrix_shape, places, rows_and_columns
from quantgolf.encode.stream import decode_codes, decode_codes_on, decode_stream, encode_stream
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor, QTensor, Steps

ITEM_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Quantized:
    """One matrix, solved and coded.

    Attributes:
        block: where it lies in its tensor.
        row: steps [N], fp16.
        bits: width of the codes.
        codes: what `encode_codes` made of its codes [N, K].
    """

    block: Block
    row: Tensor
    bits: int
    codes: bytes


@dataclass(frozen=True)
class Entry:
    """One tensor to be coded.

    Attributes:
        name: as in the checkpoint; `aliases` are further names of the same storage.
        original: the checkpoint's tensor. Its shape and dtype travel, and the values of rows not in `quantized`.
        quantized: the matrices in it that codes or levels stand for, in any order; all merge as many dimensions.
    """

    name: str
    original: Tensor
    quantized: tuple[Quantized | Leveled, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spent:
    """Bytes of a file that a tensor or a block answers for; of the shared streams its share by number of values.

    Attributes:
        codes: of fixed-width codes, or the share of the stream of levels.
        steps: the share of fp16 steps, or of exponents.
        small: the share of small tensors.
    """

    codes: float
    steps: float
    small: float


def encode_model(entries: Sequence[Entry], trellis: Trellis | None = None) -> CodedModel:
    """Puts tensors together in the order given. Codes are taken as they are: they are checked when decoded.

    Args:
        entries: all tensors of the file.
        trellis: what the levels of `Leveled` matrices were quantized with; of no effect where there are none.

    Raises:
        QuantGolfError: blocks that overlap or leave their tensor, steps that do not fit, levels without a trellis or
            that it does not allow, a dtype the format does not know, or names used twice.
    """
    tensors: list[CodedTensor] = []
    steps: list[NDArray[np.uint8]] = []
    leveled: list[tuple[str, Leveled]] = []
    small: dict[int, list[NDArray[np.uint8]]] = {size: [] for size in ITEM_SIZES}
    for entry in entries:
        shape, dtype = tuple(entry.original.shape), dtype_name(entry.original.dtype, entry.name)
        lead = entry.quantized[0].block.lead if entry.quantized else 0
        rows = entry.original.reshape(rows_and_columns(shape, lead))
        blocks = []
        for start, stop, part in _cut(entry, lead, len(rows)):
            if part is None:
                stored = stored_name(rows[start:stop], dtype)
                small[DTYPES[stored].itemsize].append(to_bytes(rows[start:stop].to(DTYPES[stored])))
                blocks.append(CodedBlock(stop - start, stored, None, b""))
                continue
            name, matrix, transposed = part.block.name(shape), matrix_shape(shape, part.block), part.block.transposed
            if isinstance(part, Leveled):
                check_leveled(name, part, matrix)
                leveled.append((name, part))
                blocks.append(
                    CodedBlock(stop - start, None, None, b"", transposed, levels=True, diagonal=part.diagonal)
                )
            else:
                _check_steps(name, part.row, matrix[0])
                steps.append(to_bytes(part.row))
                blocks.append(CodedBlock(stop - start, None, part.bits, part.codes, transposed))
        tensors.append(CodedTensor(entry.name, shape, dtype, lead, tuple(blocks), entry.aliases))
    coded = CodedModel(tuple(tensors), _encode_planes(steps), b"".join(map(_encode_planes, small.values())))
    if leveled:
        if trellis is None:
            raise QuantGolfError(f"{leveled[0][0]} has levels, expected the trellis they were quantized with; give it")
        streams = encode_leveled(leveled, trellis)
        coded = CodedModel(coded.tensors, coded.steps, coded.small, *streams, trellis.states, trellis.restart)
    check_model(coded)
    return coded


def decode_model(
    coded: CodedModel, device: torch.device | None = None
) -> Iterator[tuple[Block, QTensor | Tensor]]:  # fmt: skip
    """Every block of every tensor in the file's order: its place, and what stands there.

    Quantized rows come as codes and steps of their matrix [N, K], decoded when asked for, so that the codes of a
    model are never all in memory unless they are kept. Levels lie in one stream and are decoded together, when the
    first matrix of them is asked for; they come as int32 codes of no width. Other rows come as [rows, C] in the
    checkpoint's dtype.

    With a CUDA `device` words go to the GPU, and codes and levels are decoded there and never visit the CPU, to the
    same bits; codes too are then all decoded when the first is asked for, and stay in memory together. Headers, steps
    and small tensors are decoded on the CPU and follow. Where no kernels run on the device, all is decoded on the CPU
    and moved, which a warning says of a GPU. None and the CPU are the same.

    Raises:
        FormatError: streams that do not fit the shapes, or that no `encode_model` can have written; those of codes
            and levels as they are decoded.
    """
    check_model(coded)
    laid = [(tensor, block, place) for tensor in coded.tensors for block, place in _laid(tensor)]
    cursor = Cursor(coded.steps, "the stream of steps")
    rows = [matrix_shape(t.shape, place)[0] for t, block, place in laid if block.bits is not None]
    steps = iter(_decode_planes(cursor, rows, 2))
    cursor.finish()
    matrices = [(place.name(t.shape), matrix_shape(t.shape, place)) for t, block, place in laid if block.levels]
    there = device if device is not None and gpu.decodes_on(device) else None
    leveled = decode_leveled(coded, matrices, [block.diagonal for _, block, _ in laid if block.levels], there)
    kept = iter(_decode_kept(coded))
    found = _decode_blocks(laid, _decode_all_codes(laid, there), steps, leveled, kept)
    return found if device is None else ((place, _moved(part, device)) for place, part in found)


def block_bytes(coded: CodedModel) -> tuple[tuple[Spent, ...], ...]:
    """What each block of each tensor of a coded model costs, in its order; together the bytes of all streams.

    Shares go by rows of steps, by rows and columns of exponents, by weights of levels and by bytes of small values.
    """
    counts = [[_counts(t, block, place) for block, place in _laid(t)] for t in coded.tensors]
    streams = [coded.steps, coded.exponents, coded.levels, coded.small]
    totals = np.array([each for blocks in counts for each in blocks], dtype=np.float64).reshape(-1, 4).sum(axis=0)
    rates = np.array([len(stream) for stream in streams]) / np.maximum(totals, 1)
    found = []
    for tensor, blocks in zip(coded.tensors, counts, strict=True):
        spent = (np.array(blocks, dtype=np.float64).reshape(-1, 4) * rates).tolist()
        pairs = zip(tensor.blocks, spent, strict=True)
        found.append(tuple(Spent(v if b.levels else len(b.codes), r + e, s) for b, (r, e, v, s) in pairs))
    return tuple(found)


def tensor_bytes(coded: CodedModel) -> tuple[Spent, ...]:
    """What each tensor of a coded model costs, in its order; together the bytes of all streams."""
    return tuple(
        Spent(sum(s.codes for s in blocks), sum(s.steps for s in blocks), sum(s.small for s in blocks))
        for blocks in block_bytes(coded)
    )


def _cut(entry: Entry, lead: int, rows: int) -> Iterator[tuple[int, int, Quantized | Leveled | None]]:
    """First row, row after the last, and the matrix there, for all `rows` of a tensor in order."""
    at = 0
    for quantized in sorted(entry.quantized, key=lambda quantized: quantized.block.start):
        block = quantized.block
        if block.parameter != entry.name or block.lead != lead or not at <= block.start < block.stop <= rows:
            raise QuantGolfError(
                f"{entry.name} of shape {list(entry.original.shape)} has {block}, expected lead={lead} as its first "
                f"block has, and at least one of the rows {at} to {rows} that no block before it holds"
            )
        if at < block.start:
            yield at, block.start, None
        yield block.start, block.stop, quantized
        at = block.stop
    if at < rows:
        yield at, rows, None


def _laid(tensor: CodedTensor) -> Iterator[tuple[CodedBlock, Block]]:
    return zip(tensor.blocks, places(tensor), strict=True)


def _counts(tensor: CodedTensor, block: CodedBlock, place: Block) -> tuple[int, int, int, int]:
    """Rows of steps, rows and columns of exponents, levels, and bytes of small values."""
    rows, columns = matrix_shape(tensor.shape, place)
    if block.stored is not None:
        return 0, 0, 0, rows * columns * DTYPES[block.stored].itemsize
    return (0, rows + columns, rows * columns, 0) if block.levels else (rows, 0, 0, 0)


def _decode_blocks(
    laid: list[tuple[CodedTensor, CodedBlock, Block]],
    codes: Iterator[Tensor],
    steps: Iterator[NDArray[np.uint8]],
    leveled: Iterator[QTensor],
    kept: Iterator[Tensor],
) -> Iterator[tuple[Block, QTensor | Tensor]]:
    for tensor, block, place in laid:
        if block.levels:
            yield place, next(leveled)
        elif block.bits is None:
            yield place, next(kept)
        else:
            yield place, _quantized(place.name(tensor.shape), next(codes), from_bytes(next(steps), "F16"), block.bits)


def _decode_all_codes(
    laid: list[tuple[CodedTensor, CodedBlock, Block]], device: torch.device | None
) -> Iterator[Tensor]:  # fmt: skip
    streams = [
        (block.codes, matrix_shape(tensor.shape, place), f"the codes of {place.name(tensor.shape)}")
        for tensor, block, place in laid
        if block.bits is not None
    ]
    return (decode_codes(*stream) for stream in streams) if device is None else decode_codes_on(device, streams)


def _quantized(name: str, codes: Tensor, row: Tensor, bits: int) -> QTensor:
    _check_steps(name, row, codes.shape[0])
    found = QTensor(codes, Steps(row.to(codes.device)), bits)
    top = (1 << (bits - 1)) - 1
    if found.codes.numel() and (largest := int(found.codes.short().abs().max())) > top:
        raise FormatError(f"{name} has a code of magnitude {largest}, expected at most {top} for {bits} bits")
    return found


def _moved(part: QTensor | Tensor, device: torch.device) -> QTensor | Tensor:
    if isinstance(part, Tensor):
        return part.to(device)
    column = part.steps.column
    steps = Steps(part.steps.row.to(device), None if column is None else column.to(device))
    return QTensor(part.codes.to(device), steps, part.bits)


def _check_steps(name: str, row: Tensor, count: int) -> None:
    if row.dtype != torch.float16 or row.shape != (count,) or not row.isfinite().all():
        raise FormatError(f"{name} has {row.dtype} steps {list(row.shape)}, expected finite torch.float16 [{count}]")


def _decode_kept(coded: CodedModel) -> list[Tensor]:
    """The rows kept as they are, block by block, [rows, C] in their tensor's dtype."""
    kept = [(t, block.rows, block.stored) for t in coded.tensors for block in t.blocks if block.stored is not None]
    found: dict[int, Tensor] = {}
    cursor = Cursor(coded.small, "the stream of small tensors")
    for size in ITEM_SIZES:
        group = [
            (i, tensor, stored, (rows, rows_and_columns(tensor.shape, tensor.lead)[1]))
            for i, (tensor, rows, stored) in enumerate(kept)
            if DTYPES[stored].itemsize == size
        ]
        values = _decode_planes(cursor, [rows * columns for *_, (rows, columns) in group], size)
        for (i, tensor, stored, shape), data in zip(group, values, strict=True):
            if stored == "BOOL" and data.size and data.max() > 1:
                raise FormatError(f"{tensor.name} holds a truth value of {data.max()}, expected 0 or 1; {DAMAGED}")
            found[i] = from_bytes(data, stored).to(DTYPES[tensor.dtype]).reshape(shape)
    cursor.finish()
    return [found[i] for i in range(len(kept))]


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
