"""Inputs that are nearly right: a file is taken apart, changed, and put together again with a checksum that fits.

Blind changes die at the checksum or in the header's zstd frame. So lengths, header, streams and what the header says
are changed each by itself, and everything around them is made to fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import Any

import numpy as np

from quantgolf.blob import MAGIC, VERSION
from quantgolf.blob.container import DIGEST_BYTES, check_envelope
from quantgolf.blob.header import WORDS, read_header, write_header
from quantgolf.encode import DTYPES, decode_stream, encode_stream, zstd
from quantgolf.encode.check import STATES
from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import FormatError
from quantgolf.types import CodedBlock, CodedGroups, CodedModel, CodedTensor

Mutator = Callable[[bytes, Random], bytes]
NUMBERS: tuple[int, ...] = (0, 1, 2, 3, 7, 8, 126, 127, 128, 255, 256, 4095, 4096, 4097, 32767, 32768, 65535, 65536)
NUMBERS += (2**17, 2**17 + 1, 2**20, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1)
MOST_HEADER = 1 << 16  # of what is taken apart here; larger ones are left to blind changes


@dataclass(frozen=True)
class Parts:
    """A file without lengths and checksum."""

    version: int
    header: bytes
    streams: bytes


def taken_apart(data: bytes) -> Parts | None:
    """The parts of a file, whatever its checksum; None where its envelope or its header's frame is damaged."""
    try:
        cursor = Cursor(data[:-DIGEST_BYTES], "", check_envelope(data, len(data)))
        size = cursor.varint()
        packed = cursor.take(cursor.varint())
        if size > MOST_HEADER:
            return None
        return Parts(data[len(MAGIC)], zstd.decompress(packed, size, "", WORDS), cursor.rest())
    except FormatError:
        return None


def put_together(parts: Parts, size: int | None = None, packed: bytes | None = None) -> bytes:
    """A file of these parts whose lengths and checksum are right, but for those that are given."""
    packed = zstd.compress(parts.header, WORDS) if packed is None else packed
    body = varint(len(parts.header) if size is None else size) + varint(len(packed)) + packed + parts.streams
    content = MAGIC + bytes([parts.version]) + varint(len(body) + DIGEST_BYTES) + body
    return content + blake2b(content, digest_size=DIGEST_BYTES).digest()


def changed_bytes(data: bytes, random: Random) -> bytes:
    """One to four changes: bits, bytes, numbers, parts left out, doubled or moved."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(found) + 1)
        length = min(random.choice((1, 1, 2, 4, 8, 32)), len(found) - at)
        kind = random.randrange(8)
        if kind == 0 and length:
            found[at] ^= 1 << random.randrange(8)
        elif kind == 1 and length:
            found[at : at + length] = random.randbytes(length)
        elif kind == 2 and length:
            found[at] = (found[at] + random.choice((-1, 1))) % 256
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = varint(random.choice(NUMBERS))
        elif kind == 5 and length:
            found[at : at + length] = varint(random.choice(NUMBERS))
        elif kind == 6:
            found[at:at] = found[at : at + length] * random.choice((1, 1, 2, 50))
        else:
            to = random.randrange(len(found) + 1)
            found[to:to] = found[at : at + length]
    return bytes(found)


def changed_file(data: bytes, random: Random, change: Mutator = changed_bytes) -> bytes:
    """A file with one of its parts changed, and all around it made to fit; `change` is for bytes."""
    parts = taken_apart(data)
    kind = random.randrange(100)
    if parts is None or kind < 3:
        return change(data, random)
    if kind < 6:
        return put_together(parts, size=random.choice((*NUMBERS, len(parts.header) + 1)))
    if kind < 9:
        return put_together(parts, packed=change(zstd.compress(parts.header, WORDS), random))
    if kind < 10:
        return put_together(replace(parts, version=random.choice((0, VERSION, VERSION + 1, 255))))
    if kind < 40:
        return put_together(replace(parts, header=change(parts.header, random)))
    try:
        model, coded = read_header(parts.header, Cursor(parts.streams, ""))
        coded = changed_model(coded, random, change)
        for _ in range(random.choice((0, 0, 0, 1, 3))):
            coded = changed_model(coded, random, change)
        header, streams = write_header(coded, model), coded.streams()
    except FormatError:
        return put_together(replace(parts, streams=change(parts.streams, random)))
    return put_together(replace(parts, header=header, streams=streams))


def changed_model(coded: CodedModel, random: Random, change: Mutator) -> CodedModel:
    """A model with a stream, a number of it, or a tensor changed; its header can be written."""
    kind = random.randrange(10)
    if kind < 4:
        name = random.choice(("steps", "zeros", "small", "exponents", "levels"))
        changes: dict[str, Any] = {name: changed_stream(getattr(coded, name), random, change)}
        return replace(coded, **changes)
    if kind == 4:
        return replace(coded, states=random.choice(STATES), restart=random.choice((1, 2, 5, 128, coded.restart)))
    tensors = list(coded.tensors)
    if not tensors:
        return replace(coded, small=change(coded.small, random))
    at = random.randrange(len(tensors))
    if kind == 5:
        other = random.choice(tensors)
        tensors[at : at + random.randrange(2)] = [replace(other, name=other.name + "'")] * random.randrange(2)
    else:
        tensors[at] = _changed_tensor(tensors[at], random, change)
    return replace(coded, tensors=tuple(tensors))


def changed_stream(stream: bytes, random: Random, change: Mutator) -> bytes:
    """The bytes of a stream changed; or, if it is one, its symbols, coded again."""
    if stream and random.randrange(4) == 0:
        try:
            symbols = decode_stream(stream, random.randrange(1, 400))
        except FormatError:
            return change(stream, random)
        changed = np.frombuffer(change(symbols.tobytes(), random), dtype=np.uint8)
        return encode_stream(changed, random.choice(("auto", "rans", "zstd")))
    return change(stream, random)


def _changed_tensor(tensor: CodedTensor, random: Random, change: Mutator) -> CodedTensor:
    kind = random.randrange(8)
    if kind == 0:
        return replace(tensor, shape=tuple(_changed_numbers(tensor.shape, random)))
    if kind == 1:
        return replace(tensor, dtype=random.choice(list(DTYPES)))
    if kind == 2:
        return replace(tensor, lead=random.randrange(len(tensor.shape) + 2))
    if kind == 3:
        aliases = tensor.aliases[random.randrange(2) :] + (tensor.name + "~",) * random.randrange(2)
        return replace(tensor, aliases=aliases)
    blocks = list(tensor.blocks)
    if not blocks:
        return tensor
    at = random.randrange(len(blocks))
    if kind == 4:
        blocks[at : at + random.randrange(2)] = [random.choice(blocks)] * random.randrange(3)
        return replace(tensor, blocks=tuple(blocks) or tensor.blocks)
    if kind == 5:
        given = [max(0, rows) for rows in _changed_numbers([block.rows for block in blocks], random)]
        pairs = zip(blocks, given, strict=False)
        return replace(tensor, blocks=tuple(replace(block, rows=rows) for block, rows in pairs) or tensor.blocks)
    blocks[at] = _changed_block(blocks[at], tensor, random, change)
    return replace(tensor, blocks=tuple(blocks))


def _changed_block(block: CodedBlock, tensor: CodedTensor, random: Random, change: Mutator) -> CodedBlock:
    kind = random.randrange(6)
    if kind == 0 and block.stored is None:
        return replace(block, transposed=not block.transposed)
    if kind == 1:
        return CodedBlock(block.rows, random.choice([tensor.dtype, "F16", "F32"]), None, b"")
    if kind == 2:
        levels = CodedBlock(block.rows, None, None, b"", block.transposed, levels=True)
        return replace(levels, diagonal=random.random() < 0.5)
    if kind == 3:
        base = random.choice((None, 0, 5, -4096, 4096, 4097, -200))
        groups = CodedGroups(random.choice((0, 1, 2, 3, 7, 9, 16, 2**40)), random.random() < 0.5, base)
        bits = block.bits or random.randrange(2, 9)
        return CodedBlock(block.rows, None, bits, block.codes, block.transposed, groups=groups)
    if kind == 4:
        bits = random.randrange(2, 9)
        return CodedBlock(block.rows, None, bits, block.codes, block.transposed, groups=block.groups)
    if block.bits is None:
        return block
    return replace(block, codes=changed_stream(block.codes, random, change))


def _changed_numbers(numbers: Sequence[int], random: Random) -> list[int]:
    found: list[Any] = list(numbers)
    at = random.randrange(len(found) + 1)
    kind = random.randrange(4)
    if kind == 0:
        found.insert(at, random.choice((0, 1, 1, 2, random.choice(NUMBERS))))
    elif at < len(found):
        if kind == 1:
            del found[at]
        else:
            found[at] = random.choice((found[at] + 1, max(0, found[at] - 1), 0, random.choice(NUMBERS)))
    return found
