"""A second reader, written from docs/format.md alone and slow, so that page and code cannot drift apart."""

import json
import re
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quantgolf.blob import pack, parse
from quantgolf.checkpoint import read_demo
from quantgolf.encode import Entry, Quantized, encode_codes, encode_model
from quantgolf.runtime import restore
from quantgolf.types import Block

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
DTYPES = dict(
    re.findall(r"(\d+) ([A-Z]+[0-9A-Z_]*)", PAGE.split("one byte, its dtype: ")[1].split(", as safetensors")[0])
)
DICTIONARY = PAGE.split("```")[1].strip("\n").encode()
NUMPY = {"BOOL": "?", "U8": "u1", "I8": "i1", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.take(1)[0]) >= 128:
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift


def unzstd(packed: bytes, size: int, dictionary: bytes = b"") -> bytes:
    words = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    frame = bytes.fromhex("28B52FFD00") + packed
    return zstandard.ZstdDecompressor(dict_data=words).decompress(frame, max_output_size=size)


def symbols(stream: bytes, n: int) -> list[int]:
    if n == 0:
        return []
    r = Reader(stream)
    codec = r.take(1)[0]
    if codec < 2:
        return list(unzstd(stream[1:], n) if codec else stream[1:])
    first, last = r.take(2)
    bits = (byte >> place & 1 for byte in iter(lambda: r.take(1)[0], None) for place in range(8))
    q, roots = 0, [0] * 256
    for symbol in range(first, last + 1):
        k = 0
        while not next(bits):
            k += 1
        m = 2**k + sum(next(bits) << place for place in range(k))
        q += (m - 1) // 2 if m % 2 else -(m // 2)
        roots[symbol] = q
    above = sum(root > 0 for root in roots)
    share = sum((root - 1) ** 2 for root in roots if root)
    sums = [
        sum((root - 1) ** 2 for root in roots[: i + 1] if root) * (2**14 - above) // share
        + sum(root > 0 for root in roots[: i + 1])
        for i in range(256)
    ]
    lanes = r.varint()
    states = np.frombuffer(r.take(4 * lanes), "<u4").tolist()
    words = iter(np.frombuffer(stream[r.at :], "<u2").tolist())
    slots = np.searchsorted(sums, np.arange(2**14), side="right").tolist()
    out = []
    for i in range(n):
        x = states[i % lanes]
        s = slots[x % 2**14]
        start = sums[s - 1] if s else 0
        x = (sums[s] - start) * (x >> 14) + x % 2**14 - start
        states[i % lanes] = x if x >= 2**16 else x << 16 | next(words)
        out.append(s)
    assert states == [2**16] * lanes and next(words, None) is None
    return out


def planes(r: Reader, count: int, size: int) -> bytes:
    if count == 0:
        return b""
    split = [symbols(r.take(r.varint()), count) for _ in range(size)]
    return np.array(split, dtype=np.uint8).T.tobytes()


def read(data: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    assert data[:5] == b"QGLF\0" and blake2b(data[:-8], digest_size=8).digest() == data[-8:]
    file = Reader(data[5:])
    assert file.varint() == len(file.data) - file.at
    size, packed = file.varint(), file.varint()
    r = Reader(unzstd(file.take(packed), size, DICTIONARY))
    model = json.loads(r.take(r.varint()) or b"null")
    every = range(r.varint())
    more, name, names = [r.varint() for _ in every], b"", []
    for extra in more:
        names.append([name := name[: r.varint()] + r.take(r.varint()) for _ in range(1 + extra)])
    shapes = [[r.varint() for _ in range(r.varint())] for _ in every]
    r.take(len(every))
    storage = r.take(len(every))
    blocks: list[tuple[int, int, int, int]] = []  # tensor, rows, columns, storage
    for i in every:
        lead = storage[i] < 128
        blocks.append((i, prod(shapes[i][:lead]), prod(shapes[i][lead:]), storage[i]))
    for i in (i for i in every if storage[i] == 1):
        lead, count = r.varint(), r.varint()
        rows = [r.varint() for _ in range(count)]
        assert sum(rows) == prod(shapes[i][:lead]) and min(rows) > 0
        parts = [(i, n, prod(shapes[i][lead:]), kind) for n, kind in zip(rows, r.take(count), strict=True)]
        at = next(at for at, block in enumerate(blocks) if block[0] == i)
        blocks[at : at + 1] = parts
    lengths = [r.varint() if kind < 128 else 0 for *_, kind in blocks]
    steps_size, small_size = r.varint(), r.varint()
    assert r.at == len(r.data)
    streams = [file.take(length) for length in lengths]
    steps, small = Reader(file.take(steps_size)), Reader(file.take(small_size))
    assert file.at == len(file.data) - 8
    found: dict[int, np.ndarray] = {}
    heights = [(c if kind > 64 else n) if kind < 128 else 0 for _, n, c, kind in blocks]
    row = np.frombuffer(planes(steps, sum(heights), 2), "<f2").astype(np.float32)
    for at, (_, n, c, kind) in enumerate(blocks):
        if kind < 128:
            codes = np.array(symbols(streams[at], n * c), dtype=np.float32).reshape(heights[at], -1) - 128
            assert abs(codes).max(initial=0) < 2 ** (kind % 64 - 1)
            weight, row = codes * row[: heights[at], None], row[heights[at] :]
            found[at] = weight.T if kind > 64 else weight
    for itemsize in (1, 2, 4, 8):
        kinds = {at: DTYPES[str(kind - 128)] for at, (*_, kind) in enumerate(blocks) if kind >= 128}
        group = [at for at, kind in kinds.items() if np.dtype(NUMPY[kind]).itemsize == itemsize]
        values = planes(small, sum(blocks[at][1] * blocks[at][2] for at in group), itemsize)
        for at in group:
            size = blocks[at][1] * blocks[at][2] * itemsize
            here, values = np.frombuffer(values[:size], NUMPY[kinds[at]]), values[size:]
            if kinds[at] == "BF16":
                here = (here.astype("<u4") << 16).view("<f4")
            found[at] = here.reshape(blocks[at][1:3])
    tensors = [
        np.concatenate([found[at] for at, block in enumerate(blocks) if block[0] == i]).reshape(shapes[i])
        for i in every
    ]
    return model, {alias.decode(): tensors[i] for i in every for alias in names[i]}


def same(data: bytes) -> None:
    header, coded = parse(data)
    expected = restore(coded)
    model, found = read(data)
    assert model == header.model and set(found) == set(expected)
    for name, tensor in expected.items():
        assert tensor.shape == found[name].shape
        assert torch.equal(tensor.double(), torch.from_numpy(found[name].astype(np.float64))), name


def test_the_golden_file_is_what_the_page_says() -> None:
    same((Path(__file__).parent / "golden_v0.qg").read_bytes())


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[Entry, list[list[float]]]:
    """A tensor cut anywhere, blocks quantized upright, transposed or kept, and the [R, C] that has to come back."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    lead = draw(st.integers(0, len(shape)))
    rows, columns = prod(shape[:lead]), prod(shape[lead:])
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    values = torch.tensor(draw(st.lists(st.integers(-256, 256), min_size=rows * columns, max_size=rows * columns)))
    expected = (values / 8).reshape(rows, columns).tolist()
    parts = []
    stops = sorted(draw(st.sets(st.integers(1, rows))) | {rows})
    for start, stop in pairwise([0, *stops]):
        if draw(st.booleans()):
            continue
        transposed, bits = draw(st.booleans()), draw(st.integers(2, 8))
        n, k = (columns, stop - start) if transposed else (stop - start, columns)
        top = 2 ** (bits - 1) - 1
        codes = draw(st.lists(st.lists(st.integers(-top, top), min_size=k, max_size=k), min_size=n, max_size=n))
        steps = draw(st.lists(st.sampled_from([2.0**-12, 0.375, -1.0, 3.0]), min_size=n, max_size=n))
        for i in range(n):
            for j in range(k):
                r, c = (j, i) if transposed else (i, j)
                expected[start + r][c] = codes[i][j] * steps[i]
        block = Block("w", lead, start, stop, transposed)
        parts.append(
            Quantized(block, torch.tensor(steps).half(), bits, encode_codes(torch.tensor(codes).to(torch.int8)))
        )
    return Entry("w", (values / 8).reshape(shape).to(dtype), tuple(draw(st.permutations(parts)))), expected


@given(st.lists(cut_tensors(), min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_any_cut_of_any_tensor_comes_back(drawn: list[tuple[Entry, list[list[float]]]]) -> None:
    entries = []
    for at, (entry, _) in enumerate(drawn):
        parts = tuple(replace(q, block=replace(q.block, parameter=f"w{at}")) for q in entry.quantized)
        entries.append(replace(entry, name=f"w{at}", quantized=parts))
    coded = encode_model(entries)
    data = pack(coded, None)
    assert parse(data)[1] == coded
    restored = restore(coded)
    for entry, (_, expected) in zip(entries, drawn, strict=True):
        tensor = restored[entry.name]
        assert tensor.dtype == (torch.float32 if entry.quantized else entry.original.dtype)
        assert tensor.shape == entry.original.shape
        assert tensor.flatten().tolist() == [value for row in expected for value in row]
    same(data)


@pytest.mark.parametrize("bits", [2, 5])
def test_a_file_of_real_weights_is_what_the_page_says(bits: int) -> None:
    top, entries = 2 ** (bits - 1) - 1, []
    for name, tensor in load_file(read_demo().checkpoint).items():
        parts: tuple[Quantized, ...] = ()
        if tensor.ndim == 2:
            steps = (tensor.float().abs().amax(1) / top).half()
            codes = (tensor / steps[:, None]).round().clamp(-top, top).to(torch.int8)
            parts = (Quantized(Block(name, 1, 0, len(tensor)), steps, bits, encode_codes(codes)),)
        entries.append(Entry(name, tensor, parts))
    assert sum(bool(entry.quantized) for entry in entries) > 10
    same(pack(encode_model(entries), read_demo().card))
