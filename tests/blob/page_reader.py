"""A second reader of files, written from docs/format.md alone, and slow."""

import json
import re
from hashlib import blake2b
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
DTYPES = dict(
    re.findall(r"(\d+) ([A-Z]+[0-9A-Z_]*)", PAGE.split("one byte, its dtype: ")[1].split(", as safetensors")[0])
)
DICTIONARY = PAGE.split("```")[1].strip("\n").encode()
NUMPY = {"BOOL": "?", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"} | {
    name: f"<{name[0].lower()}{int(name[1:]) // 8}" for name in DTYPES.values() if name[1:].isdigit()
}
Grouped = dict[int, tuple[int, bool, int | None]]  # columns of a group, whether zeros, base of logarithms


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


def table(r: Reader) -> list[int]:
    """The sums of frequencies up to each symbol."""
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
    return [
        sum((root - 1) ** 2 for root in roots[: i + 1] if root) * (2**14 - above) // share
        + sum(root > 0 for root in roots[: i + 1])
        for i in range(256)
    ]


def symbols(stream: bytes, n: int) -> list[int]:
    if n == 0:
        return []
    r = Reader(stream)
    codec = r.take(1)[0]
    if codec < 2:
        return list(unzstd(stream[1:], n) if codec else stream[1:])
    sums = table(r)
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


def signed(m: int) -> int:
    return m // 2 if m % 2 == 0 else -(m + 1) // 2


def widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Values of a dtype that numpy does not have, of those whose bits they are."""
    if dtype == "BF16":
        return (raw.astype("<u4") << 16).view("<f4")
    if dtype == "F8_E5M2":
        return (raw.astype("<u2") << 8).view("<f2")
    if dtype == "F8_E4M3":
        sign, exponent, mantissa = 1 - 2.0 * (raw >> 7), raw >> 3 & 15, raw & 7
        normal = (8 + mantissa) * 2.0 ** (exponent.astype(int) - 10)
        return np.where(raw & 127 == 127, np.nan, sign * np.where(exponent == 0, mantissa / 512, normal))
    return raw


def coded_steps(
    steps: Reader, zeros: Reader, blocks: dict[int, tuple[tuple[int, int], int]], grouped: Grouped
) -> dict[int, tuple[np.ndarray, np.ndarray | None]]:
    """Scales [N, K] or [N, 1], fp32, and zeros [N, K] or None, of each block of codes, given its shape and storage."""
    counts = {at: (n, -(-k // grouped[at][0]) if at in grouped else 1) for at, ((n, k), _) in blocks.items()}
    values = planes(steps, sum(map(prod, counts.values())), 2)
    found: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    for at, (shape, _) in blocks.items():
        here, values = values[: 2 * prod(counts[at])], values[2 * prod(counts[at]) :]
        size, _, base = grouped.get(at, (1, False, None))
        scale = np.frombuffer(here, "<f2").astype(np.float32).reshape(counts[at])
        if base is not None:
            e = np.frombuffer(here, "<i2").astype(np.int64) + base
            assert abs(e).max() <= 1904
            scale = np.array([power(8 * each) for each in e.tolist()], "<f4").reshape(counts[at])
        if at in grouped:
            assert 1 <= size <= shape[1] and shape[0] and np.isfinite(scale).all() and (scale >= 0).all()
            scale = scale[:, np.arange(shape[1]) // size]
        found[at] = scale, None
    for bits in range(2, 9):
        some = [at for at, (_, kind) in blocks.items() if kind % 16 == bits and at in grouped and grouped[at][1]]
        plane = planes(zeros, sum(prod(counts[at]) for at in some), 1)
        for at in some:
            here, plane = plane[: prod(counts[at])], plane[prod(counts[at]) :]
            zero = np.frombuffer(here, "u1").astype(np.int64).reshape(counts[at]) - 128
            assert -(2 ** (bits - 1)) <= zero.min() <= zero.max() < 2 ** (bits - 1)
            found[at] = found[at][0], zero[:, np.arange(blocks[at][0][1]) // grouped[at][0]]
    assert (steps.at, zeros.at) == (len(steps.data), len(zeros.data))
    return found


PAIRS = re.findall(r"\((\d+),\s(\d+)\)\sfor\s(\d+)", PAGE.split("with (A, B) = ")[1])
MACHINE = {int(states): (int(a), int(b)) for a, b, states in PAIRS}
Known = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]


def exponents(r: Reader, shapes: list[tuple[int, int]]) -> list[Known]:
    """Of each matrix exponents of rows and columns, their steps, and its spread."""
    heads = [[signed(r.varint()) for _ in range(3)] for _ in shapes]
    parts = []
    for axis in (0, 1):
        values = np.array(symbols(r.take(r.varint()), sum(shape[axis] for shape in shapes)), dtype=np.int64)
        cuts = np.cumsum([shape[axis] for shape in shapes])[:-1]
        parts.append([v + head[axis] for v, head in zip(np.split(values, cuts), heads, strict=True)])
    steps = [[steps_of(side) for side in sides] for sides in parts]
    if r.at < len(r.data):
        for axis in (0, 1):
            stream, count = r.take(r.varint()), sum(shape[axis] for shape in shapes)
            values = np.array(symbols(stream, count) if stream else [128] * count, dtype=np.int64) - 128
            cuts = np.cumsum([shape[axis] for shape in shapes])[:-1]
            steps[axis] = [steps_of(e, f) for e, f in zip(parts[axis], np.split(values, cuts), strict=True)]
    assert r.at == len(r.data)
    return [(*sides, head[2]) for *sides, head in zip(*parts, *steps, heads, strict=True)]


def steps_of(e: np.ndarray, fine: np.ndarray | int = 0) -> np.ndarray:
    return np.array([power(p) for p in (32 * e.astype(np.int64) + fine).tolist()], "<f4")


def power(p: int) -> np.float32:
    return np.float32(float(np.float32(2 ** (p % 128 / 128))) * 2.0 ** (p // 128))


def sequence(n: int, k: int, storage: int) -> list[tuple[int, int]]:
    """Row and column of each weight of a matrix [n, k], in the order their levels come in."""
    if storage % 64 == 9:
        return [(i, j) for j in range(k) for i in range(n)]
    assert storage % 64 == 10
    return [(i, (d - i) % k) for d in range(k) for i in range(n)]


def levels(r: Reader, known: list[Known], kinds: list[int], states: int, restart: int) -> list[np.ndarray]:
    """One weight after another, without a thought for speed; `kinds` are what the matrices have as storage."""
    spreads, starts, orders = [], [], []
    for (row, column, _, _, spread), kind in zip(known, kinds, strict=True):
        orders.append(sequence(len(row), len(column), kind))
        for i, j in orders[-1]:
            if i % restart == 0:
                starts.append(len(spreads))
            spreads.append(int(spread - row[i] - column[j]))
    n = len(spreads)
    if n == 0:
        assert r.data == b""
        return [np.zeros((len(row), len(column))) for row, column, _ in known]
    classes = [min(spreads)]
    for _ in range(r.varint()):
        classes.append(classes[-1] + r.varint() + 1)
    tables: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for at in range(len(classes)):
        for odd in range(1 if states == 1 else 2):
            if r.data[r.at] == 255:
                r.take(1)
                continue
            sums = table(r)
            tables[at, odd] = sums, np.searchsorted(sums, np.arange(2**14), side="right").tolist()
    escapes = iter([r.varint() for _ in range(r.varint())])
    lanes = max(1, n // 32768)
    begin = [next((s for s in starts if s >= lane * n // lanes), n) for lane in range(lanes)] + [n]
    x = np.frombuffer(r.take(4 * lanes), "<u4").tolist()
    words = iter(np.frombuffer(r.take(len(r.data) - r.at), "<u2").tolist())
    fresh, state, out = set(starts), [0] * lanes, [0] * n
    for t in range(max(b - a for a, b in pairwise(begin))):
        for lane in range(lanes):
            at = begin[lane] + t
            if at >= begin[lane + 1]:
                continue
            s = 0 if at in fresh else state[lane]
            sums, slots = tables[sum(spreads[at] >= threshold for threshold in classes) - 1, s % 2]
            symbol = slots[x[lane] % 2**14]
            start = sums[symbol - 1] if symbol else 0
            y = (sums[symbol] - start) * (x[lane] >> 14) + x[lane] % 2**14 - start
            x[lane] = y if y >= 2**16 else y << 16 | next(words)
            k = symbol - 127
            sign = (k > 0) - (k < 0)
            if symbol in (0, 254):
                k += sign * next(escapes)
            out[at] = k if states == 1 else 2 * k - sign * (s % 2)
            a, b = MACHINE[states]
            state[lane] = s // 2 ^ a * (s % 2) ^ b * (k % 2)
    assert x == [2**16] * lanes and next(words, None) is None and next(escapes, None) is None
    found = []
    for (row, column, *_), order in zip(known, orders, strict=True):
        found.append(np.zeros((len(row), len(column)), dtype=np.int64))
        for (i, j), level in zip(order, out[: len(order)], strict=True):
            found[-1][i, j] = level
        out = out[len(order) :]
    return found


def read(data: bytes) -> tuple[Any, dict[str, np.ndarray]]:
    assert data[:4] == b"QGLF" and data[4] in (0, 1) and blake2b(data[:-8], digest_size=8).digest() == data[-8:]
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
    grouped: Grouped = {}
    for at, (*_, kind) in enumerate(blocks):
        if kind < 128 and kind % 64 > 15:
            number = r.varint()
            grouped[at] = number // 2, number % 2 == 1, signed(r.varint()) if kind % 64 >= 32 else None
    lengths = [r.varint() if kind < 128 and kind % 16 < 9 else 0 for *_, kind in blocks]
    steps_size, small_size = r.varint(), r.varint()
    leveled = [at for at, (*_, kind) in enumerate(blocks) if kind < 128 and kind % 64 in (9, 10)]
    states, restart, exponents_size, levels_size = [r.varint() if leveled else 0 for _ in range(4)]
    zeros_size = r.varint() if grouped else 0
    assert r.at == len(r.data)
    streams = [file.take(length) for length in lengths]
    steps, zeros, small = Reader(file.take(steps_size)), Reader(file.take(zeros_size)), Reader(file.take(small_size))
    scales, ladder = Reader(file.take(exponents_size)), Reader(file.take(levels_size))
    assert file.at == len(file.data) - 8
    found: dict[int, np.ndarray] = {}
    shape_of = {at: (c, n) if kind > 64 else (n, c) for at, (_, n, c, kind) in enumerate(blocks) if kind < 128}
    coded = {at: (shape, blocks[at][3]) for at, shape in shape_of.items() if at not in leveled}
    for at, (scale, zero) in coded_steps(steps, zeros, coded, grouped).items():
        kind, bits = blocks[at][3], blocks[at][3] % 16
        codes = np.array(symbols(streams[at], prod(shape_of[at])), dtype=np.float32).reshape(shape_of[at]) - 128
        assert -(2 ** (bits - 1)) + (zero is None) <= codes.min(initial=0) <= codes.max(initial=0) < 2 ** (bits - 1)
        weight = (codes - (0 if zero is None else zero.astype(np.float32))) * scale
        found[at] = weight.T if kind > 64 else weight
    known = exponents(scales, [shape_of[at] for at in leveled]) if leveled else []
    climbed = levels(ladder, known, [blocks[at][3] for at in leveled], states, restart)
    for at, ladder_of, (*_, e, f, _) in zip(leveled, climbed, known, strict=True):
        weight = ladder_of.astype(np.float32) * (e[:, None] * f[None, :])
        found[at] = weight.T if blocks[at][3] > 64 else weight
    for itemsize in (1, 2, 4, 8):
        kinds = {at: DTYPES[str(kind - 128)] for at, (*_, kind) in enumerate(blocks) if kind >= 128}
        group = [at for at, kind in kinds.items() if np.dtype(NUMPY[kind]).itemsize == itemsize]
        values = planes(small, sum(blocks[at][1] * blocks[at][2] for at in group), itemsize)
        for at in group:
            size = blocks[at][1] * blocks[at][2] * itemsize
            here, values = np.frombuffer(values[:size], NUMPY[kinds[at]]), values[size:]
            found[at] = widened(here, kinds[at]).reshape(blocks[at][1:3])
    tensors = [
        np.concatenate([found[at] for at, block in enumerate(blocks) if block[0] == i]).reshape(shapes[i])
        for i in every
    ]
    return model, {alias.decode(): tensors[i] for i in every for alias in names[i]}
