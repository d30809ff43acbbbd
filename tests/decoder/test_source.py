"""The decoder's source restores what quantgolf restores, to the bit and in the same dtypes, whatever a file holds."""

import ast
import json
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.blob import pack, parse
from quantgolf.decoder import ALL, Features, export_decoder, features_of
from quantgolf.decoder.export import SOURCE
from quantgolf.decoder.source import load
from quantgolf.encode import DTYPES, Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedModel, Exponents, Groups

F16, F32 = frozenset({"F16"}), frozenset({"F32"})
BLOB = Path(__file__).parents[1] / "blob"
GOLDEN = sorted((BLOB / "golden").glob("*.qg"))
LONG = ("lanes_v1", "large_v1")  # numpy goes through their lanes a symbol a step, for seconds


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def same(data: bytes, loader: Any = load) -> CodedModel:
    """Checks both ways to load against quantgolf's own reading."""
    header, coded = parse(data)
    expected = restore(coded)
    exact, model = loader(data, exact=True)
    found, _ = loader(data)
    assert (json.loads(model) if model else None) == header.model
    assert list(exact) == list(found) == list(expected)
    for entry in coded.tensors:
        whole, dtype = expected[entry.name], DTYPES[entry.dtype]
        for tensor, wanted in ((exact[entry.name], whole), (found[entry.name], whole.to(dtype))):
            assert tensor.dtype == wanted.dtype and tensor.shape == wanted.shape
            assert bits(tensor) == bits(wanted), entry.name
        assert all(found[alias] is found[entry.name] for alias in entry.aliases)
    return coded


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files(path: Path) -> None:
    if path.stem not in LONG:
        same(path.read_bytes())
    found, expected = load(path, exact=True)[0], restore(parse(path.read_bytes())[1])
    assert list(found) == list(expected)
    assert all(bits(found[name]) == bits(tensor) for name, tensor in expected.items())


def allowed(k: np.ndarray[Any, np.dtype[np.int64]], trellis: Trellis, diagonal: bool = False) -> Tensor:
    """The levels int32 [N, K] that a trellis has for indices k."""
    i, j = np.ogrid[: k.shape[0], : k.shape[1]]
    coded = i, ((j - i) % max(1, k.shape[1]) if diagonal else j + 0 * i)
    found, state = np.empty_like(k), np.zeros(k.shape[1], dtype=np.int64)
    for at, row in enumerate(k[coded]):
        state = state * (at % trellis.restart > 0)
        found[at, coded[1][at]] = row if trellis.states == 1 else 2 * row - state % 2 * np.sign(row)
        state = trellis.after[state, row % 2]
    return torch.from_numpy(found.astype(np.int32))


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
# From one that is coded to those that leave 8 bits, on both sides, to the largest there is.
INDEX = st.one_of(st.integers(-3, 3), st.sampled_from([-(2**30) + 1, -500, -128, -127, -126, 126, 127, 2**30 - 1]))


def drawn_fine(draw: st.DrawFn, count: int) -> Tensor | None:
    """What tuning adds to steps: often nothing, which the file says in two ways."""
    kind = st.sampled_from([None, st.just(0), st.integers(-128, 127)])
    values = draw(kind)
    return (
        None if values is None else torch.tensor(draw(st.lists(values, min_size=count, max_size=count))).to(torch.int8)
    )


def drawn_groups(draw: st.DrawFn, n: int, k: int, bits_of: int) -> Groups:
    """Scales and zeros of any groups, from the least there is to the largest."""
    size = draw(st.integers(1, k))
    counts = n, -(-k // size)
    logs, halves = st.sampled_from([-1904, -1900, -37, 0, 5, 1904]), st.sampled_from([0.0, 2.0**-24, 0.3, 65504.0])
    logarithmic, least = draw(st.booleans()), -(2 ** (bits_of - 1))
    scale = [draw(logs if logarithmic else halves) for _ in range(prod(counts))]
    zero = None
    if draw(st.booleans()):
        zero = torch.tensor([draw(st.integers(least, -least - 1)) for _ in scale], dtype=torch.int8).view(counts)
    return Groups(torch.tensor(scale, dtype=torch.int16 if logarithmic else torch.float16).view(counts), zero, size)


@st.composite
def drawn_tensor(draw: st.DrawFn, name: str, trellis: Trellis) -> Entry:
    """A tensor of any dtype, kept, or cut into blocks of codes and levels, upright and transposed, and kept rows."""
    dtype = draw(st.sampled_from([*DTYPES.values()]))
    aliases = tuple(f"{name}.{i}" for i in range(draw(st.integers(0, 2))))
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    if draw(st.booleans()) or dtype not in FLOATS:
        shape = draw(st.sampled_from([shape, [0], [0, 5], [2, 0, 3]]))
        if dtype == torch.bool:
            return Entry(name, torch.rand(shape) < 0.5, (), aliases)
        size = prod(shape) * dtype.itemsize
        raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8).copy()
        values = torch.empty(size, dtype=torch.uint8).copy_(torch.from_numpy(raw)).view(dtype).reshape(shape)
        return Entry(name, values, (), aliases)
    lead = draw(st.integers(0, len(shape)))
    rows, columns = prod(shape[:lead]), prod(shape[lead:])
    parts: list[Quantized | Leveled] = []
    for start, stop in pairwise([0, *sorted(draw(st.sets(st.integers(1, rows))) | {rows})]):
        kind, transposed = draw(st.sampled_from(["kept", "codes", "groups", "levels"])), draw(st.booleans())
        n, k = (columns, stop - start) if transposed else (stop - start, columns)
        block = Block(name, lead, start, stop, transposed)
        if kind in ("codes", "groups"):
            bits_of = draw(st.integers(2, 8))
            groups = drawn_groups(draw, n, k, bits_of) if kind == "groups" else None
            top = 2 ** (bits_of - 1) - 1
            least = -top - (groups is not None and groups.zero is not None)
            codes = draw(st.lists(st.integers(least, top), min_size=n * k, max_size=n * k))
            steps = torch.tensor(draw(st.lists(st.sampled_from([2.0**-12, 0.3, -1.0, 3.0]), min_size=n, max_size=n)))
            stream = encode_codes(torch.tensor(codes, dtype=torch.int8).view(n, k))
            parts.append(Quantized(block, groups or steps.half(), bits_of, stream))
        elif kind == "levels":
            indices = np.array(draw(st.lists(INDEX, min_size=n * k, max_size=n * k)), dtype=np.int64).reshape(n, k)
            # Products of steps down to 2^-250, which is zero; through every subnormal; up to 2^90.
            smallest = draw(st.sampled_from([-600, -580, -560, -100, 300]))
            row, column = (draw(st.lists(st.integers(0, 30), min_size=m, max_size=m)) for m in (n, k))
            scales = Exponents(
                torch.tensor(row, dtype=torch.int16) + smallest, torch.tensor(column, dtype=torch.int16),
                draw(st.integers(-4096, 4096)), *(drawn_fine(draw, m) for m in (n, k)),
            )  # fmt: skip
            diagonal = draw(st.booleans())
            parts.append(Leveled(block, scales, allowed(indices, trellis, diagonal), diagonal))
    values = torch.tensor(draw(st.lists(st.integers(-256, 256), min_size=rows * columns, max_size=rows * columns)))
    original = (values / 7).to(torch.float64).reshape(shape).to(dtype)
    return Entry(name, original, tuple(draw(st.permutations(parts))), aliases)


@given(
    st.data(),
    st.sampled_from([1, 4, 8, 16, 32, 64, 128, 256]),
    st.integers(1, 5),
    st.sampled_from([None, {"x": [1, "é"]}]),
)
@settings(deadline=None, max_examples=80)
def test_any_tensors(data: st.DataObject, states: int, restart: int, model: dict[str, Any] | None) -> None:
    trellis = Trellis(states, restart)
    names = [f"blocks.{i}.w" for i in range(data.draw(st.integers(0, 4)))]
    same(pack(encode_model([data.draw(drawn_tensor(name, trellis)) for name in names], trellis), model))


def ladder(
    name: str, shape: tuple[int, int], trellis: Trellis, seed: int, transposed: bool = False, diagonal: bool = False
) -> tuple[Tensor, Leveled]:
    """Random levels of a few bits under steps that vary, whose contexts fill many classes."""
    rng, (n, k) = np.random.default_rng(seed), shape
    row, column = rng.integers(-60, -40, n), rng.integers(-9, 9, k)
    indices = np.rint(rng.normal(0, 2.0 ** ((-44 - row[:, None] - column) / 4), shape)).astype(np.int64)
    scales = Exponents(torch.from_numpy(row.astype(np.int16)), torch.from_numpy(column.astype(np.int16)), -40)
    original = torch.zeros(shape[::-1] if transposed else shape, dtype=torch.float16)
    block, levels = Block(name, 1, 0, len(original), transposed), allowed(indices, trellis, diagonal)
    return original, Leveled(block, scales, levels, diagonal)


@pytest.mark.parametrize(("states", "restart", "diagonal"), [(1, 128, False), (8, 100, False), (8, 100, True)])
def test_many_lanes_and_classes_of_levels(states: int, restart: int, diagonal: bool) -> None:
    trellis = Trellis(states, restart)
    entries = []
    for at, (shape, transposed) in enumerate([((300, 180), False), ((1, 77), False), ((129, 100), True)]):
        original, part = ladder(f"w{at}", shape, trellis, states + at, transposed, diagonal)
        entries.append(Entry(f"w{at}", original, (part,)))
    coded = same(pack(encode_model(entries, trellis), None))
    assert coded.levels[0] > 8 and sum(entry.original.numel() for entry in entries) // 32768 == 2


def test_every_codec_and_many_lanes_of_codes() -> None:
    rng = np.random.default_rng(1)
    kinds = {
        b"\0": np.arange(5),
        b"\1": np.tile(np.arange(100), 50),
        b"\2": np.rint(rng.normal(0, 3, 65_537)).clip(-127, 127),
    }
    entries = []
    for codec, values in kinds.items():
        stream = encode_codes(torch.from_numpy(values.astype(np.int8))[None])
        assert stream[:1] == codec
        part = Quantized(Block(codec.hex(), 1, 0, 1), torch.tensor([0.3]).half(), 8, stream)
        entries.append(Entry(codec.hex(), torch.zeros(1, len(values)), (part,)))
    entries.append(Entry("kept", torch.from_numpy(rng.normal(0, 1, 3000))))
    same(pack(encode_model(entries), None))


def test_matrices_without_weights() -> None:
    trellis = Trellis(8)
    entries = []
    for name, shape, diagonal in (("a", (3, 0), False), ("b", (2, 0), False), ("c", (2, 0), True)):
        rows, none = torch.zeros(shape[0], dtype=torch.int16), torch.zeros(0, dtype=torch.int16)
        block, levels = Block(name, 1, 0, shape[0]), torch.zeros(shape, dtype=torch.int32)
        part = Leveled(block, Exponents(rows, none, 0), levels, diagonal)
        entries.append(Entry(name, torch.zeros(shape), (part,)))
    same(pack(encode_model(entries, trellis), None))


def test_features_are_those_of_the_file() -> None:
    assert features_of(parse((BLOB / "golden" / "levels_v1.qg").read_bytes())[1]).levels
    trellis = Trellis(4)
    original, part = ladder("w", (4, 5), trellis, 0)
    plain = features_of(encode_model([Entry("w", original, (part,)), Entry("g", torch.ones(3))], trellis))
    assert plain == Features(levels=True, diagonals=False, codes=False, groups=False, cuts=False, dtypes=F16 | F32)
    original, turned = ladder("w", (4, 5), trellis, 0, diagonal=True)
    along = features_of(encode_model([Entry("w", original, (turned,)), Entry("g", torch.ones(3))], trellis))
    assert along == replace(plain, diagonals=True)
    bank = Quantized(Block("w", 1, 0, 2), torch.ones(2).half(), 3, encode_codes(torch.zeros(2, 5, dtype=torch.int8)))
    cut = features_of(encode_model([Entry("w", original, (bank,))]))
    by_groups = replace(bank, steps=Groups(torch.ones(2, 3).half(), None, 2))
    assert features_of(encode_model([Entry("w", original, (by_groups,))])) == replace(cut, groups=True)
    assert cut == Features(levels=False, diagonals=False, codes=True, groups=False, cuts=True, dtypes=F16)


def run(code: bytes) -> Any:
    """`load` of an exported file."""
    space: dict[str, Any] = {"__name__": "decoder"}
    exec(compile(code, "decoder.py", "exec"), space)
    return space["load"]


@pytest.mark.parametrize("options", [{}, {"readable": True}, {"ascii_only": True}])
@pytest.mark.parametrize("path", [path for path in GOLDEN if path.stem not in LONG], ids=lambda path: path.stem)
def test_exported_files_read_what_they_were_made_for(path: Path, options: dict[str, bool]) -> None:
    data = path.read_bytes()
    for features in (ALL, features_of(parse(data)[1])):
        same(data, run(export_decoder(features, **options)))


def test_a_decoder_without_a_feature_is_smaller_and_lacks_it() -> None:
    trellis = Trellis(8)
    original, part = ladder("w", (40, 50), trellis, 0)
    coded = encode_model([Entry("w", original, (part,)), Entry("g", torch.ones(3))], trellis)
    code = export_decoder(features_of(coded))
    same(pack(coded, None), run(code))
    assert len(code) < len(export_decoder()) - 100
    text = export_decoder(features_of(coded), readable=True).decode()
    assert "steps.view" not in text and "bfloat16" not in text and "float16" in text
    assert "block[2] > 9" not in text and "np.roll" not in text
    original, part = ladder("w", (40, 50), trellis, 0, diagonal=True)
    turned = encode_model([Entry("w", original, (part,))], trellis)
    same(pack(turned, None), run(export_decoder(features_of(turned))))
    assert "np.roll" in export_decoder(features_of(turned), readable=True).decode()
    with pytest.raises((AssertionError, ValueError)):  # whatever the wrong tables lead to
        same(pack(turned, None), run(export_decoder(replace(features_of(turned), diagonals=False))))
    fixed = export_decoder(Features(False, False, True, False, False, F16 | F32), readable=True).decode()
    assert not any(name in fixed for name in ("def leveled", "def power", "def grouped", "LEVELS", "GROUPS"))


def imported(text: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    return modules


def test_only_allowed_modules_are_imported() -> None:
    standard = {"collections", "math", "sys", "typing"}
    assert imported(SOURCE.read_text()) == standard | {"numpy", "torch", "zstandard"}


# With python-minifier 3.4.0; the sizes docs/format.md names.
SIZES = [
    ({}, ALL, 2658),
    ({"ascii_only": True}, ALL, 3255),
    ({}, Features(True, False, False, False, False, F16), 2278),
    ({}, Features(True, True, False, False, False, F16), 2322),
    ({}, Features(False, False, True, False, False, F16), 1912),
    ({}, Features(False, False, True, True, False, F16), 2147),
]


@pytest.mark.parametrize(("options", "features", "most"), SIZES)
def test_size_does_not_grow(options: dict[str, bool], features: Features, most: int) -> None:
    code = export_decoder(features, **options)
    assert code == export_decoder(features, **options)
    assert len(code) <= most


def test_ascii_is_ascii() -> None:
    assert export_decoder(ascii_only=True).isascii()
    assert export_decoder().startswith(b"#coding:l1\n")
