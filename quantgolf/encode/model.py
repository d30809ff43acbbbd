"""A whole model as coded streams: one for each matrix's codes, one shared by all steps, one by all small tensors, one
by all zeros; for matrices on the one-slope grid one shared by all levels and one by all exponents.

A tensor may hold several matrices, so it is cut into blocks of rows, each coded or kept on its own. Steps and small
tensors share a stream because one at a time they are too short to learn a table from. Both are split into byte
planes first: the high bytes of floating point numbers are alike, their low bytes are noise, and mixed neither codec
can tell them apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode import gpu
from quantgolf.encode.check import MAX_DECODED_BYTES, check_model
from quantgolf.encode.dtypes import DTYPES, dtype_name, from_bytes, stored_name, to_bytes
from quantgolf.encode.groups import coded_groups, lowest_code
from quantgolf.encode.leveled import Leveled, check_leveled, decode_leveled, encode_leveled
from quantgolf.encode.place import matrix_shape, places, rows_and_columns
from quantgolf.encode.planes import decode_planes, encode_planes
from quantgolf.encode.steps import Part, Wanted, check_steps, decode_steps, encode_steps
from quantgolf.encode.stream import Codec, decode_codes, decode_codes_on
from quantgolf.encode.varint import DAMAGED, Cursor
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor, Groups, QTensor, Steps

ITEM_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Quantized:
    """One matrix, solved and coded.

    Attributes:
        block: where it lies in its tensor.
        steps: one a row, fp16 [N], or scales and zeros by groups of columns.
        bits: width of the codes.
        codes: what `encode_codes` made of its codes [N, K].
    """

    block: Block
    steps: Tensor | Groups
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


def encode_model(entries: Sequence[Entry], trellis: Trellis | None = None, codec: Codec = "auto") -> CodedModel:
    """Puts tensors together in the order given. Codes are taken as they are: they are checked when decoded.

    Args:
        entries: all tensors of the file.
        trellis: what the levels of `Leveled` matrices were quantized with; of no effect where there are none.
        codec: of all streams that are shared, as `encode_stream` has it; levels know rANS alone, and codes are coded.

    Raises:
        QuantGolfError: blocks that overlap or leave their tensor, steps that do not fit, levels without a trellis or
            that it does not allow, a dtype the format does not know, another codec, or names used twice.
    """
    tensors: list[CodedTensor] = []
    steps: list[Part] = []
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
                check_steps(name, part.steps, matrix, part.bits)
                groups = coded_groups(part.steps) if isinstance(part.steps, Groups) else None
                steps.append((part.bits, part.steps, groups))
                blocks.append(CodedBlock(stop - start, None, part.bits, part.codes, transposed, groups=groups))
        tensors.append(CodedTensor(entry.name, shape, dtype, lead, tuple(blocks), entry.aliases))
    first, zeros = encode_steps(steps, codec)
    kept = b"".join(encode_planes(values, codec) for values in small.values())
    coded = CodedModel(tuple(tensors), first, kept, zeros=zeros)
    if leveled:
        if trellis is None:
            raise QuantGolfError(f"{leveled[0][0]} has levels, expected the trellis they were quantized with; give it")
        exponents, levels = encode_leveled(leveled, trellis, codec)
        coded = replace(coded, exponents=exponents, levels=levels, states=trellis.states, restart=trellis.restart)
    check_model(coded, MAX_DECODED_BYTES)
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
    wanted = [
        Wanted(matrix_shape(t.shape, place), block.bits, block.groups)
        for t, block, place in laid
        if block.bits is not None
    ]
    steps = iter(decode_steps(coded, wanted))
    matrices = [(place.name(t.shape), matrix_shape(t.shape, place)) for t, block, place in laid if block.levels]
    there = device if device is not None and gpu.decodes_on(device) else None
    leveled = decode_leveled(coded, matrices, [block.diagonal for _, block, _ in laid if block.levels], there)
    kept = iter(_decode_kept(coded))
    found = _decode_blocks(laid, _decode_all_codes(laid, there), steps, leveled, kept)
    return found if device is None else ((place, _moved(part, device)) for place, part in found)


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


def _decode_blocks(
    laid: list[tuple[CodedTensor, CodedBlock, Block]],
    codes: Iterator[Tensor],
    steps: Iterator[Tensor | Groups],
    leveled: Iterator[QTensor],
    kept: Iterator[Tensor],
) -> Iterator[tuple[Block, QTensor | Tensor]]:
    for tensor, block, place in laid:
        if block.levels:
            yield place, next(leveled)
        elif block.bits is None:
            yield place, next(kept)
        else:
            yield place, _quantized(place.name(tensor.shape), next(codes), next(steps), block.bits)


def _decode_all_codes(
    laid: list[tuple[CodedTensor, CodedBlock, Block]], device: torch.device | None
) -> Iterator[Tensor]:  # fmt: skip
    streams = (
        (block.codes, matrix_shape(tensor.shape, place), f"the codes of {place.name(tensor.shape)}")
        for tensor, block, place in laid
        if block.bits is not None
    )
    return (decode_codes(*stream) for stream in streams) if device is None else decode_codes_on(device, list(streams))


def _quantized(name: str, codes: Tensor, steps: Tensor | Groups, bits: int) -> QTensor:
    check_steps(name, steps, (codes.shape[0], codes.shape[1]), bits)
    zeros = isinstance(steps, Groups) and steps.zero is not None
    lowest, highest = lowest_code(bits, zeros), (1 << (bits - 1)) - 1
    if codes.numel():
        low, high = torch.stack(codes.aminmax()).tolist()
        if low < lowest or high > highest:
            raise FormatError(
                f"{name} has codes from {low} to {high}, expected {lowest} to {highest} for {bits} bits"
                f"{'' if zeros else ' without zeros'}"
            )
    return QTensor(codes, _steps_on(codes.device, steps if isinstance(steps, Groups) else Steps(steps)), bits)


def _moved(part: QTensor | Tensor, device: torch.device) -> QTensor | Tensor:
    if isinstance(part, Tensor):
        return part.to(device)
    return QTensor(part.codes.to(device), _steps_on(device, part.steps), part.bits)


def _steps_on(device: torch.device, steps: Steps | Groups) -> Steps | Groups:
    if isinstance(steps, Groups):
        return Groups(steps.scale.to(device), None if steps.zero is None else steps.zero.to(device), steps.size)
    return Steps(steps.row.to(device), None if steps.column is None else steps.column.to(device))


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
        values = decode_planes(cursor, [rows * columns for *_, (rows, columns) in group], size)
        for (i, tensor, stored, shape), data in zip(group, values, strict=True):
            if stored == "BOOL" and data.max(initial=0) > 1:
                raise FormatError(f"{tensor.name} holds a truth value of {data.max()}, expected 0 or 1; {DAMAGED}")
            found[i] = from_bytes(data, stored).to(DTYPES[tensor.dtype]).reshape(shape)
    cursor.finish()
    return [found[i] for i in range(len(kept))]
