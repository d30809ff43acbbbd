"""The header: what a file says of its model and its tensors.

It lies in columns and its names are front-coded, so that one block of a network repeats the bytes of the block
before, and it is compressed against a short text of frequent words. For 37 tensors of the reference model that
makes 190 bytes of 900; the words alone save 100 of them.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from quantgolf.encode.check import MOST_DIMENSIONS
from quantgolf.encode.dtypes import DTYPES
from quantgolf.encode.groups import WIDTHS
from quantgolf.encode.place import rows_and_columns
from quantgolf.encode.varint import DAMAGED, UNKNOWN, Cursor, signed, varint, zigzag
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import CodedBlock, CodedGroups, CodedModel, CodedTensor

DTYPE_NAMES = tuple(DTYPES)
CUT, LEVELS, DIAGONALS, TRANSPOSED, KEPT = 0x01, 0x09, 0x0A, 0x40, 0x80
GROUPS, LOGARITHMIC = 0x10, 0x20  # of codes: scales by groups of columns, in fp16 or as logarithms
GROUPED = frozenset(scales | bits for scales in (GROUPS, LOGARITHMIC) for bits in WIDTHS)
QUANTIZED = frozenset((*WIDTHS, LEVELS, DIAGONALS)) | GROUPED
STORAGES = QUANTIZED | {kind | TRANSPOSED for kind in QUANTIZED} | {KEPT | at for at in range(len(DTYPES))}
LONGEST_NAME = 1 << 10  # bytes
MOST_PARTS = 1 << 17  # names of a file, and blocks of it
MOST_LEVELS = 64  # of the model description: readers and writers of JSON end at some depth, each at another

# Part of format version 1, to the byte.
WORDS = (
    b"model.layers.0.self_attn.q_proj.k_proj.v_proj.o_proj.mlp.gate_proj.up_proj.down_proj.input_layernorm.bias"
    b"transformer.h.0.attn.c_attn.c_proj.ln_1.wte.lm_head.norm.embed_tokens.emb.weightblocks.0.gain_scale"
    b'{"family":"golf","config":{"vocab_size":1024,"dim":512,"layers":12,"heads":8,"kv_heads":4,"mlp_mult":2,'
    b'"logit_softcap":30.0,"rope_base":10000.0}}'
)


def write_header(coded: CodedModel, model: dict[str, Any] | None) -> bytes:
    """Model description, then columns over all tensors: names, shapes, dtypes, storage, cuts, groups, and bytes of each
    stream.

    A model with levels goes on with states and restart of its trellis and the bytes of its exponents and levels, and
    one with groups with the bytes of their zeros.

    Raises:
        QuantGolfError: a description JSON cannot hold, or a name UTF-8 cannot.
    """
    tensors = coded.tensors
    description = b"" if model is None else _to_json(model)
    lengths = [len(block.codes) for tensor in tensors for block in tensor.blocks if block.bits is not None]
    groups = [block.groups for tensor in tensors for block in tensor.blocks if block.groups is not None]
    _check_count("names", sum(1 + len(tensor.aliases) for tensor in tensors))
    _check_count("blocks", sum(len(tensor.blocks) for tensor in tensors))
    levels = (coded.states, coded.restart, len(coded.exponents), len(coded.levels))
    return b"".join(
        [
            varint(len(description)),
            description,
            varint(len(tensors)),
            *(varint(len(tensor.aliases)) for tensor in tensors),
            *_front_coded(name for tensor in tensors for name in (tensor.name, *tensor.aliases)),
            *(varint(size) for tensor in tensors for size in (len(tensor.shape), *tensor.shape)),
            bytes(DTYPE_NAMES.index(tensor.dtype) for tensor in tensors),
            bytes(_storage(tensor.blocks[0]) if _is_whole(tensor) else CUT for tensor in tensors),
            *(_write_cut(tensor) for tensor in tensors if not _is_whole(tensor)),
            *(_write_groups(each) for each in groups),
            *map(varint, (*lengths, len(coded.steps), len(coded.small))),
            *map(varint, levels if coded.has_levels else ()),
            *map(varint, (len(coded.zeros),) if coded.has_groups else ()),
        ]
    )


def read_header(data: bytes, payload: Cursor) -> tuple[dict[str, Any] | None, CodedModel]:
    """The model description, and the tensors with their streams, which are cut from `payload`.

    Raises:
        FormatError: not what `write_header` writes. What the columns say of a tensor is left to `check_model`.
    """
    cursor = Cursor(data, "the header")
    description = cursor.take(cursor.varint())
    model = _from_json(description) if description else None
    count = cursor.varint()
    names, each = _names(cursor), range(count)
    aliases = [cursor.varint() for _ in each]
    _check_count("names", count + sum(aliases))
    named = [(next(names), tuple(next(names) for _ in range(more))) for more in aliases]
    shapes = [_read_shape(cursor) for _ in each]
    dtypes = [_dtype(index) for index in cursor.take(count)]
    storage = cursor.take(count)
    cuts = [
        _read_cut(cursor) if kind == CUT else _whole(kind, shape) for kind, shape in zip(storage, shapes, strict=True)
    ]
    for kind in (kind for _, _, kinds in cuts for kind in kinds):
        if kind not in STORAGES:
            raise FormatError(f"the header names storage {kind}, which version 1.0 does not know; {UNKNOWN}")
    _check_count("blocks", sum(len(rows) for _, rows, _ in cuts))
    groups = [[_read_groups(cursor, kind) for kind in kinds] for _, _, kinds in cuts]
    lengths = [[0 if kind >= KEPT or _is_levels(kind) else cursor.varint() for kind in kinds] for _, _, kinds in cuts]
    steps, small = cursor.varint(), cursor.varint()
    leveled = any(_is_levels(kind) for _, _, kinds in cuts for kind in kinds)
    states, restart, exponents, levels = [cursor.varint() if leveled else 0 for _ in range(4)]
    grouped = any(each is not None for several in groups for each in several)
    zeros = cursor.varint() if grouped else 0
    cursor.finish()
    tensors = []
    for (name, others), shape, dtype, (lead, rows, kinds), several, sizes in zip(
        named, shapes, dtypes, cuts, groups, lengths, strict=True
    ):
        parts = zip(rows, kinds, several, sizes, strict=True)
        blocks = tuple(_block(row, kind, each, payload.take(size)) for row, kind, each, size in parts)
        tensors.append(CodedTensor(name, shape, dtype, lead, blocks, others))
    first, last, second, third, fourth = (payload.take(size) for size in (steps, zeros, small, exponents, levels))
    return model, CodedModel(tuple(tensors), first, second, third, fourth, states, restart, last)


def _check_count(what: str, count: int) -> None:
    """A few bytes can declare millions of either, and each takes hundreds in memory and microseconds to look at."""
    if count > MOST_PARTS:
        raise FormatError(f"the model has {count} {what}, expected at most {MOST_PARTS}; put tensors together")


def _read_shape(cursor: Cursor) -> tuple[int, ...]:
    """Sizes of a tensor; a product of many of them would never be done."""
    count = cursor.varint()
    if count > MOST_DIMENSIONS:
        raise FormatError(f"the header has a shape of {count} sizes, expected up to {MOST_DIMENSIONS}; {DAMAGED}")
    return tuple(cursor.varint() for _ in range(count))


def _front_coded(names: Iterable[str]) -> Iterator[bytes]:
    """Each name as the number of bytes it shares with the one before, the number of its other bytes, and those."""
    before = b""
    for name in names:
        try:
            text = name.encode()
        except UnicodeEncodeError as error:
            raise QuantGolfError(f"tensor name {name!r} cannot be written as UTF-8; rename it") from error
        if len(text) > LONGEST_NAME:
            raise QuantGolfError(
                f"tensor name {name[:50]}… takes {len(text)} bytes, expected at most {LONGEST_NAME}; rename it"
            )
        pairs = zip(before, text, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(text)))
        yield varint(shared) + varint(len(text) - shared) + text[shared:]
        before = text


def _names(cursor: Cursor) -> Iterator[str]:
    """The names `_front_coded` wrote, as many as are asked for."""
    name = b""
    while True:
        shared = cursor.varint()
        if shared > len(name):
            raise FormatError(f"a name shares {shared} bytes with {name!r}, expected at most all; {DAMAGED}")
        more = cursor.varint()
        if shared + more > LONGEST_NAME:
            raise FormatError(f"a name takes {shared + more} bytes, expected at most {LONGEST_NAME}; {DAMAGED}")
        name = name[:shared] + cursor.take(more)
        try:
            yield name.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"the header has the name {name!r}, expected UTF-8; {DAMAGED}") from error


def _storage(block: CodedBlock) -> int:
    """One byte: the width of the codes, + 16 with fp16 scales by groups or + 32 with logarithmic ones; or 9 for levels,
    10 for those along diagonals; + 64 if transposed; or 128 + the dtype of kept rows."""
    if block.stored is not None:
        return KEPT | DTYPE_NAMES.index(block.stored)
    levels = DIAGONALS if block.diagonal else LEVELS
    scales = 0 if block.groups is None else GROUPS if block.groups.base is None else LOGARITHMIC
    return (levels if block.levels else block.bits or 0) | scales | TRANSPOSED * block.transposed


def _is_levels(kind: int) -> bool:
    return kind & ~TRANSPOSED in (LEVELS, DIAGONALS)


def _write_groups(groups: CodedGroups) -> bytes:
    """Twice their size, and 1 more if they have zeros; of logarithmic scales the base."""
    return varint(2 * groups.size + groups.zeros) + (b"" if groups.base is None else varint(zigzag(groups.base)))


def _read_groups(cursor: Cursor, kind: int) -> CodedGroups | None:
    """The groups of a block with that storage byte."""
    if kind & ~TRANSPOSED not in GROUPED:
        return None
    number = cursor.varint()
    return CodedGroups(number >> 1, bool(number & 1), signed(cursor.varint()) if kind & LOGARITHMIC else None)


def _block(rows: int, kind: int, groups: CodedGroups | None, codes: bytes) -> CodedBlock:
    """The block that has that storage byte."""
    if kind >= KEPT:
        return CodedBlock(rows, DTYPE_NAMES[kind - KEPT], None, codes)
    transposed, what, levels = bool(kind & TRANSPOSED), kind & ~TRANSPOSED, _is_levels(kind)
    if groups is not None:
        what &= ~(GROUPS | LOGARITHMIC)
    return CodedBlock(rows, None, None if levels else what, codes, transposed, levels, what == DIAGONALS, groups)


def _is_whole(tensor: CodedTensor) -> bool:
    """Whether one storage byte tells all: a single block, of lead 1 where it is quantized and 0 where it is kept."""
    return len(tensor.blocks) == 1 and tensor.lead == (tensor.blocks[0].stored is None)


def _whole(kind: int, shape: tuple[int, ...]) -> tuple[int, list[int], bytes]:
    """Lead, rows and storage of the one block of a tensor with that storage byte."""
    lead = int(kind < KEPT)
    return lead, [rows_and_columns(shape, lead)[0]], bytes([kind])


def _write_cut(tensor: CodedTensor) -> bytes:
    """Lead, number of blocks, the rows of each, the storage byte of each."""
    numbers = (tensor.lead, len(tensor.blocks), *(block.rows for block in tensor.blocks))
    return b"".join(map(varint, numbers)) + bytes(map(_storage, tensor.blocks))


def _read_cut(cursor: Cursor) -> tuple[int, list[int], bytes]:
    """Lead, rows and storage of each block, as `_write_cut` wrote them."""
    lead, count = cursor.varint(), cursor.varint()
    return lead, [cursor.varint() for _ in range(count)], cursor.take(count)


def _dtype(index: int) -> str:
    if index >= len(DTYPE_NAMES):
        raise FormatError(f"the header names dtype {index}, expected 0 to {len(DTYPE_NAMES) - 1}; {UNKNOWN}")
    return DTYPE_NAMES[index]


def _to_json(model: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(model, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        _parsed(text)  # what is written has to be read
    except (TypeError, ValueError, RecursionError) as error:
        raise QuantGolfError(
            f"the model description cannot be written as JSON ({error}), expected numbers, strings, lists and dicts"
        ) from error
    return text


def _from_json(text: bytes) -> dict[str, Any]:
    try:
        model = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the model description is not JSON ({error}); {DAMAGED}") from error
    if not isinstance(model, dict):
        raise FormatError(f"the model description is a {type(model).__name__}, expected an object; {DAMAGED}")
    return model


def _parsed(text: bytes) -> object:
    """What JSON says, if all readers of it say the same.

    Raises:
        ValueError, RecursionError: it is none, too deep, or has numbers that are none or that fp64 has no room for.
    """
    found = json.loads(text.decode(), parse_constant=_refuse, parse_float=_held, parse_int=_whole_number)
    inside = [found] if isinstance(found, dict | list) else []
    for _ in range(MOST_LEVELS):
        parts = (each.values() if isinstance(each, dict) else each for each in inside)
        inside = [part for several in parts for part in several if isinstance(part, dict | list)]
    if inside:
        raise ValueError(f"it is more than {MOST_LEVELS} levels deep")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number JSON knows")


def _held(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:20]}{'…' * (len(number) > 20)} is beyond what fp64 holds")
    return value


def _whole_number(number: str) -> int:
    _held(number)
    return int(number)
