"""A second reader, written from docs/format.md alone and slow, so that page and code cannot drift apart."""

import json
import re
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from quantgolf.blob import read_blob
from quantgolf.compress import compress
from quantgolf.runtime import restore

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
DTYPES = dict(
    re.findall(r"(\d+) ([A-Z]+[0-9A-Z_]*)", PAGE.split("one byte, its dtype: ")[1].split(", as safetensors")[0])
)
DICTIONARY = PAGE.split("```")[1].strip("\n").encode()
NUMPY = {"BOOL": "?", "U8": "u1", "I8": "i1", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}


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
    lengths = [r.varint() if kind < 128 else 0 for kind in storage]
    steps_size, small_size = r.varint(), r.varint()
    streams = [file.take(length) for length in lengths]
    steps, small = Reader(file.take(steps_size)), Reader(file.take(small_size))
    assert file.at == len(file.data) - 8
    quantized = [i for i in every if storage[i] < 128]
    rows = np.frombuffer(planes(steps, sum(shapes[i][0] for i in quantized), 2), "<f2").astype(np.float32)
    tensors: dict[int, np.ndarray] = {}
    for i in quantized:
        n, rows_here = shapes[i][0], rows[: shapes[i][0]]
        codes = np.array(symbols(streams[i], prod(shapes[i])), dtype=np.float32).reshape(n, -1) - 128
        tensors[i], rows = (codes * rows_here[:, None]).reshape(shapes[i]), rows[n:]
    for itemsize in (1, 2, 4, 8):
        kinds = {i: np.dtype(NUMPY[DTYPES[str(storage[i] - 128)]]) for i in every if storage[i] >= 128}
        group = [i for i in kinds if kinds[i].itemsize == itemsize]
        values = planes(small, sum(prod(shapes[i]) for i in group), itemsize)
        for i in group:
            size = prod(shapes[i]) * itemsize
            tensors[i], values = np.frombuffer(values[:size], kinds[i]).reshape(shapes[i]), values[size:]
    return model, {alias.decode(): tensors[i] for i in every for alias in names[i]}


def same(path: Path) -> None:
    header, coded = read_blob(path)
    expected = restore(coded)
    model, found = read(path.read_bytes())
    assert model == header.model and set(found) == set(expected)
    for name, tensor in expected.items():
        assert tensor.shape == found[name].shape
        assert torch.equal(tensor.double(), torch.from_numpy(found[name].astype(np.float64))), name


def test_the_golden_file_is_what_the_page_says() -> None:
    same(Path(__file__).parent / "golden_v0.qg")


@pytest.mark.parametrize("bits", [2, 5])
def test_the_demo_file_is_what_the_page_says(demo: Any, tmp_path: Path, bits: int) -> None:
    result = compress(demo.source, demo.stats, rules=[("*", bits)], solver="rtn")
    result.write(tmp_path / "a.qg")
    same(tmp_path / "a.qg")
