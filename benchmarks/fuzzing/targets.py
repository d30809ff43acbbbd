"""What is fuzzed: the whole reader, what opens a file after it, both readers side by side, and each decoder alone.

A target takes bytes and may refuse them with a `QuantGolfError`; anything else that comes out is a finding, an
`AssertionError` of what is promised of accepted bytes too.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from fuzzing import seeds
from fuzzing.mutate import changed_file
from fuzzing.seeds import Choices, levels_of
from quantgolf.blob import pack, parse
from quantgolf.blob.header import read_header, write_header
from quantgolf.checkpoint.model import module_from_description
from quantgolf.decoder.source import load
from quantgolf.encode import DTYPES, block_bytes, decode_model, decode_stream, encode_stream
from quantgolf.encode.exponents import decode_exponents, encode_exponents
from quantgolf.encode.levels import Levels, decode_levels, encode_levels
from quantgolf.encode.planes import decode_planes, encode_planes
from quantgolf.encode.steps import Wanted, check_steps, decode_steps
from quantgolf.encode.table import TOTAL, frequencies, read_table, write_table
from quantgolf.encode.varint import Cursor, signed, varint, zigzag
from quantgolf.runtime import restore
from quantgolf.runtime.packed import packed_of
from quantgolf.types import CodedGroups, CodedModel, Groups, QTensor


@dataclass(frozen=True)
class Limits:
    """What an input may ask for.

    Attributes:
        decoded: bytes, as `max_decoded_bytes`.
        symbols: of a stream that is decoded alone.
    """

    decoded: int = 1_000_000
    symbols: int = 100_000


@dataclass(frozen=True)
class Target:
    """One thing to fuzz.

    Attributes:
        what: for the table.
        run: takes the input; anything but a `QuantGolfError` is a finding.
        seeds: inputs to begin with, given golden files.
        mutate: changes an input so that it remains nearly right; None leaves it to libFuzzer.
        folder: of the corpus; targets that take the same inputs share one.
    """

    what: str
    run: Callable[[bytes, Limits], None]
    seeds: Callable[[Sequence[bytes]], list[bytes]]
    mutate: Callable[[bytes, Random], bytes] | None
    folder: str


def bits_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def run_file(data: bytes, limits: Limits) -> None:
    """Parses, restores every tensor, and writes the file again."""
    header, coded = parse(data, limits.decoded)
    tensors = restore(coded)
    assert list(tensors) == [name for t in coded.tensors for name in (t.name, *t.aliases)]
    for tensor in coded.tensors:
        found = tensors[tensor.name]
        assert found.shape == tensor.shape
        if all(block.stored is not None for block in tensor.blocks):
            assert found.dtype == DTYPES[tensor.dtype]
        else:
            assert found.dtype == torch.float32
        if all(block.stored is None for block in tensor.blocks):
            assert found.isfinite().all(), "a quantized weight is not finite"
    assert parse(pack(coded, header.model), limits.decoded) == (type(header)(1, header.model), coded)


def run_openers(data: bytes, limits: Limits) -> None:
    """What follows `parse` before any module is filled: the described module, without memory; costs; packed weights."""
    header, coded = parse(data, limits.decoded)
    costs = block_bytes(coded)
    total = sum(each.total for blocks in costs for each in blocks)
    assert math.isfinite(total) and total <= len(data)
    for _, part in decode_model(coded):
        if isinstance(part, QTensor):
            packed_of(part.codes, part.steps)
    if header.model is not None:
        with torch.device("meta"):
            module_from_description(header.model)


def run_decoder(data: bytes, limits: Limits) -> None:
    """The exported decoder restores whatever quantgolf restores, to the bit; of other files nothing is promised."""
    header, coded = parse(data, limits.decoded)
    expected = restore(coded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact, model = load(data, exact=True)
        plain, _ = load(data)
    assert bool(model) == (header.model is not None)
    assert list(exact) == list(plain) == list(expected)
    for tensor in coded.tensors:
        whole, dtype = expected[tensor.name], DTYPES[tensor.dtype]
        for found, wanted in ((exact[tensor.name], whole), (plain[tensor.name], whole.to(dtype))):
            assert found.dtype == wanted.dtype and found.shape == wanted.shape and bits_of(found) == bits_of(wanted)


def run_header(data: bytes, limits: Limits) -> None:
    """The header alone, before what it says is checked."""
    choices = Choices(data)
    streams = bytes(choices.below(256) << choices.below(8))
    header = choices.rest()
    model, coded = read_header(header, Cursor(streams, "the file"))
    assert len(coded.streams()) <= len(streams)
    again = write_header(coded, model)
    assert read_header(again, Cursor(coded.streams(), "the file")) == (model, coded)


def run_stream(data: bytes, limits: Limits) -> None:
    """One stream, in any codec."""
    cursor = Cursor(data, "a stream")
    count = cursor.varint()
    if count > limits.symbols:
        return
    symbols = decode_stream(cursor.rest(), count)
    assert symbols.shape == (count,) and symbols.dtype == np.uint8
    assert np.array_equal(decode_stream(encode_stream(symbols, "rans"), count), symbols)


def run_table(data: bytes, limits: Limits) -> None:
    """A frequency table."""
    roots = read_table(Cursor(data, "a table"))
    frequency = frequencies(roots)
    assert frequency.sum() == TOTAL and frequency.min() >= 0 and ((frequency > 0) == (roots > 0)).all()
    assert np.array_equal(read_table(Cursor(write_table(roots), "a table")), roots)


def run_planes(data: bytes, limits: Limits) -> None:
    """Byte planes of one to eight bytes a value, of several tensors."""
    choices = Choices(data)
    size, counts = 1 << choices.below(4), [choices.below(256) for _ in range(choices.below(4))]
    cursor = Cursor(choices.rest(), "planes")
    values = decode_planes(cursor, counts, size)
    cursor.finish()
    assert [each.shape for each in values] == [(count, size) for count in counts]
    again = decode_planes(Cursor(encode_planes(values), "planes"), counts, size)
    assert all(np.array_equal(one, other) for one, other in zip(values, again, strict=True))


def run_steps(data: bytes, limits: Limits) -> None:
    """Steps, scales and zeros of several matrices."""
    choices = Choices(data)
    wanted = []
    for _ in range(choices.below(4)):
        shape, bits, kind = (choices.below(9), choices.below(9)), 2 + choices.below(7), choices.below(5)
        groups = None
        if kind and min(shape):
            base = signed(choices.below(256) << choices.below(8)) if kind > 2 else None
            groups = CodedGroups(1 + choices.below(shape[1]), kind % 2 == 0, base)
        wanted.append(Wanted(shape, bits, groups))
    split = choices.below(256)
    rest = choices.rest()
    found = decode_steps(CodedModel((), rest[split:], b"", zeros=rest[:split]), wanted)
    for each, part in zip(wanted, found, strict=True):
        check_steps("w", part, each.shape, each.bits)
        if isinstance(part, Groups):
            assert part.scales().isfinite().all() and (part.scales() >= 0).all()


def run_exponents(data: bytes, limits: Limits) -> None:
    """Exponents and fine steps of several matrices."""
    choices = Choices(data)
    matrices = [(f"w{at}", (choices.below(9), choices.below(9))) for at in range(1 + choices.below(3))]
    found = decode_exponents(choices.rest(), matrices)
    named = [(name, each) for (name, _), each in zip(matrices, found, strict=True)]
    again = decode_exponents(encode_exponents(named), matrices)
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one.row, other.row) and torch.equal(one.column, other.column) and one.spread == other.spread
        steps = one.steps()
        assert steps.column is not None and steps.row.isfinite().all() and steps.column.isfinite().all()


def run_levels(data: bytes, limits: Limits) -> None:
    """Levels of several matrices, down columns and along diagonals, whose steps the input names."""
    frames, trellis, payload = levels_of(data)
    found = decode_levels(payload, frames, trellis)
    assert [each.shape for each in found] == [frame.shape for frame in frames]
    matrices = [
        Levels(levels, frame.spread, frame.row, frame.column, frame.diagonal)
        for levels, frame in zip(found, frames, strict=True)
    ]
    # Whatever is accepted is something the trellis allows, so that it can be coded again.
    again = decode_levels(encode_levels(matrices, trellis), frames, trellis)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


def run_cursor(data: bytes, limits: Limits) -> None:
    """Numbers one after the other; each has one spelling."""
    cursor = Cursor(data, "numbers")
    while cursor.left:
        at = cursor.at
        number = cursor.varint()
        assert 0 <= number < 2**63 and varint(number) == data[at : cursor.at]
        assert zigzag(signed(number)) == number


TARGETS = {
    "file": Target("parse, restore every tensor, write again", run_file, seeds.files, changed_file, "file"),
    "openers": Target("described module, costs, packed weights", run_openers, seeds.files, changed_file, "file"),
    "decoder": Target("the exported decoder beside quantgolf", run_decoder, seeds.files, changed_file, "file"),
    "header": Target("header", run_header, seeds.headers, None, "header"),
    "stream": Target("stream: raw, zstd, rANS", run_stream, seeds.streams, None, "stream"),
    "table": Target("frequency table", run_table, seeds.tables, None, "table"),
    "planes": Target("byte planes", run_planes, seeds.planes, None, "planes"),
    "steps": Target("steps, scales and zeros", run_steps, seeds.steps, None, "steps"),
    "exponents": Target("exponents and fine steps", run_exponents, seeds.exponents, None, "exponents"),
    "levels": Target("levels", run_levels, seeds.levels, None, "levels"),
    "cursor": Target("numbers", run_cursor, seeds.numbers, None, "cursor"),
}
