"""The recipe's file: codes by role, row scales and controls in fp16, low-rank factors, and a header to find them by.

What the contest wrote with `torch.save` is written here with a header that is as short as a compressed list of names
and shapes, which favours the recipe.
"""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import Matrices
from quantgolf.encode import matrix_shape
from quantgolf.encode.dtypes import DTYPES, dtype_name, from_bytes, stored_name, to_bytes
from quantgolf.encode.place import rows_and_columns
from quantgolf.encode.varint import Cursor
from quantgolf.errors import FormatError
from quantgolf.types import Block

from .coders import FOR_CODES, pack, unpack
from .low_rank import GROUP, RANK, LowRank
from .solve import Solved
from .streams import Choice, Layout, choose, lay, stream_of, unlay

LARGE = 65_536  # numbers: the contest's scripts keep tensors up to here in fp16 and round larger ones to int8
MAGIC = b"PGR0"


@dataclass(frozen=True)
class RecipeFile:
    """What a file holds.

    Attributes:
        shapes, dtypes, aliases: of every parameter, in order.
        blocks: where each quantized matrix lies.
        solved: its codes and steps, by its name.
        low_rank: corrections of a few.
        kept: of every parameter that is not wholly quantized, the other rows [R, C]: values, or codes where they are
            a gate's or many.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    aliases: dict[str, tuple[str, ...]]
    blocks: dict[str, Block]
    solved: Mapping[str, Solved]
    low_rank: Mapping[str, LowRank] = field(default_factory=dict)
    kept: Mapping[str, Tensor | Solved] = field(default_factory=dict)


def file_of(
    source: Checkpoint, matrices: Matrices, solved: Mapping[str, Solved], low_rank: Mapping[str, LowRank]
) -> RecipeFile:
    """The file of a checkpoint whose matrices are solved."""
    blocks = {n: b for name in source.tensors for n, b in matrices.blocks.items() if b.parameter == name}
    kept: dict[str, Tensor | Solved] = {}
    for name, tensor in source.tensors.items():
        inside = [block for block in blocks.values() if block.parameter == name]
        rows = tensor.reshape(rows_and_columns(tensor.shape, _lead(tensor.shape, inside)))
        rest = rows[_free(inside, len(rows))]
        if rest.numel():
            kept[name] = _kept(name, rest, tensor.ndim)
    dtypes = {name: dtype_name(tensor.dtype, name) for name, tensor in source.tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    return RecipeFile(shapes, dtypes, source.aliases, blocks, solved, low_rank, kept)


def _kept(name: str, rest: Tensor, dimensions: int) -> Tensor | Solved:
    """Gates and what is large in 8 bits a number with a scale a row; everything else in fp16 where that holds it."""
    if rest.is_floating_point() and dimensions > 1 and ("gate" in name.lower() or rest.numel() > LARGE):
        step = (rest.float().abs().amax(1) / 127).clamp(min=2.0**-14)
        if step.max() < torch.finfo(torch.float16).max:
            step = step.half()
            codes = (rest.float() / step.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            return Solved(codes, step)
    return rest.to(DTYPES[stored_name(rest, dtype_name(rest.dtype, name))])


def _lead(shape: Sequence[int], inside: Sequence[Block]) -> int:
    """How many dimensions of a parameter are merged into rows: as its blocks say, or else the first."""
    return inside[0].lead if inside else min(1, len(shape) - 1) if shape else 0


def _free(inside: Sequence[Block], rows: int) -> Tensor:
    """The rows of a parameter that are in none of its blocks, bool [R]."""
    free = torch.ones(rows, dtype=torch.bool)
    for block in inside:
        free[block.start : block.stop] = False
    return free


def choices_of(file: RecipeFile, coders: Sequence[str] = FOR_CODES) -> dict[str, Choice]:
    """The best layout and coder of every stream of codes."""
    streams = _by_stream(file.blocks)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda names: choose([file.solved[n].codes.numpy() for n in names], coders), streams.values())
        return dict(zip(streams, found, strict=True))


def encode(file: RecipeFile, choices: Mapping[str, Choice] | None = None) -> bytes:
    """The bytes of a file.

    Args:
        file: what it holds.
        choices: for the streams of codes, as `choices_of` found them on a file alike; None finds them.
    """
    choices = choices_of(file) if choices is None else choices
    streams = _by_stream(file.blocks)
    numbers = list(file.blocks)
    header = {
        "parameters": [
            [name, list(shape), file.dtypes[name], list(file.aliases.get(name, ())),
             [[b.lead, b.start, b.stop, b.transposed] for b in file.blocks.values() if b.parameter == name],
             _kind(file.kept.get(name))]
            for name, shape in file.shapes.items()
        ],
        "layouts": [choices[stream].layout.number() for stream in streams],
        "low_rank": [numbers.index(name) for name in file.low_rank],
    }  # fmt: skip

    def coded(stream: str) -> bytes:
        matrices = [file.solved[name].codes.numpy() for name in streams[stream]]
        return pack(lay(matrices, choices[stream].layout), (choices[stream].coder,))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        codes = list(pool.map(coded, streams))
    low = file.low_rank.values()
    rest = [part for part in file.kept.values() if isinstance(part, Solved)]
    values = [part for part in file.kept.values() if isinstance(part, Tensor)]
    return b"".join((
        MAGIC, pack(json.dumps(header, separators=(",", ":")).encode()), *codes,
        _pack_planes([file.solved[name].step for name in numbers]),
        pack(b"".join(c.left.numpy().tobytes() for c in low)), pack(b"".join(c.right.numpy().tobytes() for c in low)),
        _pack_planes([scale for c in low for scale in (c.left_scale, c.right_scale)]),
        pack(b"".join(part.codes.numpy().tobytes() for part in rest)), _pack_planes([part.step for part in rest]),
        *(_pack_planes([v for v in values if v.element_size() == size]) for size in (1, 2, 4, 8)),
    ))  # fmt: skip


def decode(data: bytes) -> dict[str, Tensor]:
    """All tensors by name, in the checkpoint's shapes, tied ones under each of their names; what was quantized in
    fp32.

    Raises:
        FormatError: the bytes are damaged, or no recipe file.
    """
    cursor = Cursor(data, "the recipe's file")
    if cursor.take(4) != MAGIC:
        raise FormatError("the file does not begin as the recipe's do, expected one that its encode wrote")
    header = json.loads(unpack(cursor))
    blocks: dict[str, Block] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, *_, places, _ in header["parameters"]:
        shapes[name] = tuple(shape)
        for place in places:
            block = Block(name, *place)
            blocks[block.name(shape)] = block
    sizes = {name: matrix_shape(shapes[block.parameter], block) for name, block in blocks.items()}
    codes: dict[str, NDArray[np.int8]] = {}
    for names, number in zip(_by_stream(blocks).values(), header["layouts"], strict=True):
        found = unlay(unpack(cursor), [sizes[name] for name in names], Layout.of(number))
        codes.update(zip(names, found, strict=True))
    steps = _unpack_planes(cursor, [sizes[name][0] for name in blocks], "F16")
    solved = {n: Solved(torch.from_numpy(codes[n]), step) for n, step in zip(blocks, steps, strict=True)}
    weights = {name: each.weight() for name, each in solved.items()}
    corrected = [list(blocks)[number] for number in header["low_rank"]]
    for name, correction in zip(corrected, _unpack_low_rank(cursor, [sizes[n] for n in corrected]), strict=True):
        weights[name] += correction.correction()
    return _assemble(header["parameters"], blocks, weights, cursor)


def _by_stream(blocks: Mapping[str, Block]) -> dict[str, list[str]]:
    streams: dict[str, list[str]] = {}
    for name in blocks:
        streams.setdefault(stream_of(name), []).append(name)
    return streams


def _kind(part: Tensor | Solved | None) -> str | None:
    """What is kept of a parameter: nothing, codes, or values of a dtype."""
    return None if part is None else "codes" if isinstance(part, Solved) else dtype_name(part.dtype, "a kept tensor")


def _pack_planes(tensors: Sequence[Tensor]) -> bytes:
    """Numbers of one size, all their lowest bytes first: the contest's byte shuffle."""
    if not tensors:
        return b""
    planes = np.concatenate([to_bytes(tensor) for tensor in tensors]).T
    return b"".join(pack(np.ascontiguousarray(plane).tobytes()) for plane in planes)


def _unpack_planes(cursor: Cursor, counts: Sequence[int], dtype: str) -> list[Tensor]:
    return _values(cursor, counts, [dtype] * len(counts), DTYPES[dtype].itemsize)


def _values(cursor: Cursor, counts: Sequence[int], dtypes: Sequence[str], size: int) -> list[Tensor]:
    if not counts:
        return []
    planes = [np.frombuffer(unpack(cursor), np.uint8) for _ in range(size)]
    if any(len(plane) != sum(counts) for plane in planes):
        raise FormatError(f"a stream of numbers does not have {sum(counts)}: the file is damaged")
    parts = np.split(np.stack(planes, axis=1), np.cumsum(counts)[:-1])
    return [from_bytes(part, dtype) for part, dtype in zip(parts, dtypes, strict=True)]


def _unpack_low_rank(cursor: Cursor, sizes: Sequence[tuple[int, int]]) -> list[LowRank]:
    ranks = [min(RANK, *size) for size in sizes]
    left, right = (np.frombuffer(unpack(cursor), np.int8) for _ in range(2))
    groups = [-(-columns // GROUP) for _, columns in sizes]
    counts = [count for rank, each in zip(ranks, groups, strict=True) for count in (1, rank * each)]
    scales = iter(_unpack_planes(cursor, counts, "F16"))
    found, left_at, right_at = [], 0, 0
    for (rows, columns), rank in zip(sizes, ranks, strict=True):
        left_part = torch.from_numpy(left[left_at : left_at + rows * rank].copy()).reshape(rows, rank)
        right_part = torch.from_numpy(right[right_at : right_at + rank * columns].copy()).reshape(rank, columns)
        found.append(LowRank(left_part, next(scales).reshape(()), right_part, next(scales).reshape(rank, -1)))
        left_at, right_at = left_at + rows * rank, right_at + rank * columns
    return found


def _assemble(
    parameters: Sequence[Any], blocks: Mapping[str, Block], weights: Mapping[str, Tensor], cursor: Cursor
) -> dict[str, Tensor]:
    """Every tensor from its matrices and from the rows that were kept, which the cursor still holds."""
    free: dict[str, tuple[Tensor, tuple[int, int]]] = {}
    for name, shape, *_ in parameters:
        inside = [block for block in blocks.values() if block.parameter == name]
        size = rows_and_columns(shape, _lead(shape, inside))
        free[name] = _free(inside, size[0]), size
    kinds = {name: kind for name, *_, kind in parameters if kind is not None}
    counts = {name: (int(free[name][0].sum()), free[name][1][1]) for name in kinds}
    coded = [name for name, kind in kinds.items() if kind == "codes"]
    codes = torch.from_numpy(np.frombuffer(unpack(cursor), np.int8).copy())
    parts = torch.split(codes, [math.prod(counts[name]) for name in coded])
    steps = _unpack_planes(cursor, [counts[name][0] for name in coded], "F16")
    kept = {
        name: Solved(part.reshape(counts[name]), step).weight()
        for name, part, step in zip(coded, parts, steps, strict=True)
    }
    for item in (1, 2, 4, 8):
        names = [name for name, kind in kinds.items() if kind != "codes" and DTYPES[kind].itemsize == item]
        values = _values(cursor, [math.prod(counts[n]) for n in names], [kinds[n] for n in names], item)
        kept |= {name: value.reshape(counts[name]) for name, value in zip(names, values, strict=True)}
    cursor.finish()
    tensors: dict[str, Tensor] = {}
    for name, shape, dtype, aliases, *_ in parameters:
        rows, (count, columns) = free[name]
        quantized = not bool(rows.all()) or kinds.get(name) == "codes"
        whole = torch.empty(count, columns, dtype=torch.float32 if quantized else DTYPES[dtype])
        if name in kept:
            whole[rows] = kept[name].to(whole.dtype)
        whole = whole.reshape(shape)
        for matrix, block in blocks.items():
            if block.parameter == name:
                block.matrix(whole).copy_(weights[matrix])
        tensors |= dict.fromkeys((name, *aliases), whole)
    return tensors
