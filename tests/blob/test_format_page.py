"""A second reader, written from the page alone, agrees with ours, so that page and code cannot drift apart."""

from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quantgolf.blob import pack, parse
from quantgolf.checkpoint import read_demo
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents, Groups


def same(page: ModuleType, data: bytes) -> None:
    header, coded = parse(data)
    expected = restore(coded)
    model, found = page.read(data)
    assert model == header.model and set(found) == set(expected)
    for name, tensor in expected.items():
        assert tensor.shape == found[name].shape
        assert torch.equal(tensor.double(), torch.from_numpy(found[name].astype(np.float64))), name


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "golden").glob("*.qg")), ids=lambda path: path.stem)
def test_the_golden_file_is_what_the_page_says(page: ModuleType, path: Path) -> None:
    same(page, path.read_bytes())


FINE = st.just(0) | st.integers(-128, 127)


def allowed(page: ModuleType, k: np.ndarray, trellis: Trellis, diagonal: bool) -> torch.Tensor:
    """The levels int32 [N, K] that a trellis has for indices k, by the page."""
    a, b = page.MACHINE[trellis.states]
    found, s = np.empty_like(k), 0
    for i, j in page.sequence(*k.shape, 10 if diagonal else 9):
        s = s if i % trellis.restart else 0
        found[i, j] = k[i, j] if trellis.states == 1 else 2 * k[i, j] - s % 2 * np.sign(k[i, j])
        s = s // 2 ^ a * (s % 2) ^ b * (k[i, j] % 2)
    return torch.from_numpy(found.astype(np.int32))


TRELLISES = st.builds(Trellis, st.sampled_from([1, 4, 8, 16, 32, 64, 128, 256]), st.integers(1, 5))
INDICES = st.one_of(st.integers(-3, 3), st.sampled_from([-127, 126, 500, -(2**20)]))


@st.composite
def cut_tensors(draw: st.DrawFn, page: ModuleType, trellis: Trellis) -> tuple[Entry, list[list[float]]]:
    """A tensor cut anywhere, and the [R, C] that comes back.

    Its blocks are codes with steps or any groups, or either kind of levels, upright or transposed, or kept.
    """
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    lead = draw(st.integers(0, len(shape)))
    rows, columns = prod(shape[:lead]), prod(shape[lead:])
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    values = torch.tensor(draw(st.lists(st.integers(-256, 256), min_size=rows * columns, max_size=rows * columns)))
    expected = (values / 8).reshape(rows, columns).tolist()
    parts: list[Quantized | Leveled] = []
    stops = sorted(draw(st.sets(st.integers(1, rows))) | {rows})
    for start, stop in pairwise([0, *stops]):
        if draw(st.booleans()):
            continue
        transposed, bits = draw(st.booleans()), draw(st.integers(2, 8))
        n, k = (columns, stop - start) if transposed else (stop - start, columns)
        block = Block("w", lead, start, stop, transposed)
        if draw(st.booleans()):
            k_drawn = draw(st.lists(st.lists(INDICES, min_size=k, max_size=k), min_size=n, max_size=n))
            diagonal = draw(st.booleans())
            levels = allowed(page, np.array(k_drawn, dtype=np.int64), trellis, diagonal)
            # Products of steps from 2^-160, which is zero, to 2^102.
            smallest, lower = draw(st.integers(-440, -200)), draw(st.booleans())
            row, column = (draw(st.lists(st.integers(0, 255), min_size=m, max_size=m)) for m in (n, k))
            scales = Exponents(
                torch.tensor(row, dtype=torch.int16) + smallest,
                torch.tensor(column, dtype=torch.int16) - (200 if lower else smallest // 2),
                draw(st.integers(-4096, 4096)),
                *(torch.tensor(draw(st.lists(FINE, min_size=m, max_size=m)), dtype=torch.int8) for m in (n, k)),
            )
            parts.append(Leveled(block, scales, levels, diagonal))
            assert scales.fine_row is not None and scales.fine_column is not None
            weight = levels.float() * (
                torch.from_numpy(page.steps_of(scales.row.numpy(), scales.fine_row.numpy()))[:, None]
                * torch.from_numpy(page.steps_of(scales.column.numpy(), scales.fine_column.numpy()))
            )
            for r, values_of in enumerate((weight.T if transposed else weight).tolist()):
                expected[start + r] = values_of
            continue
        top = 2 ** (bits - 1) - 1
        size, zeros = draw(st.none() | st.integers(1, k)), draw(st.booleans())
        least = -top - (size is not None and zeros)
        codes = draw(st.lists(st.lists(st.integers(least, top), min_size=k, max_size=k), min_size=n, max_size=n))
        some = n if size is None else n * -(-k // size)
        steps = draw(
            st.lists(st.sampled_from([2.0**-12, 0.375, 3.0, *[-1.0] * (size is None)]), min_size=some, max_size=some)
        )
        groups, zero = None, [0] * some
        if size is not None:
            scale = torch.tensor(steps).half().view(n, -1)
            if draw(st.booleans()):
                e = draw(st.lists(st.integers(-1904, 1904), min_size=some, max_size=some))
                scale, steps = torch.tensor(e).short().view(n, -1), [float(page.power(8 * each)) for each in e]
            zero = draw(st.lists(st.integers(least, top), min_size=some, max_size=some)) if zeros else zero
            groups = Groups(scale, torch.tensor(zero).to(torch.int8).view(n, -1) if zeros else None, size)
        for i in range(n):
            for j in range(k):
                r, c = (j, i) if transposed else (i, j)
                g = i if size is None else i * -(-k // size) + j // size
                expected[start + r][c] = float(np.float32(codes[i][j] - zero[g]) * np.float32(steps[g]))
        stream = encode_codes(torch.tensor(codes).to(torch.int8))
        parts.append(Quantized(block, groups or torch.tensor(steps).half(), bits, stream))
    return Entry("w", (values / 8).reshape(shape).to(dtype), tuple(draw(st.permutations(parts)))), expected


@given(st.data(), TRELLISES)
@settings(deadline=None, max_examples=60)
def test_any_cut_of_any_tensor_comes_back(page: ModuleType, data_of: st.DataObject, trellis: Trellis) -> None:
    drawn = data_of.draw(st.lists(cut_tensors(page, trellis), min_size=1, max_size=3))
    entries = []
    for at, (entry, _) in enumerate(drawn):
        parts = tuple(replace(q, block=replace(q.block, parameter=f"w{at}")) for q in entry.quantized)
        entries.append(replace(entry, name=f"w{at}", quantized=parts))
    coded = encode_model(entries, trellis)
    data = pack(coded, None)
    assert parse(data)[1] == coded
    restored = restore(coded)
    for entry, (_, expected) in zip(entries, drawn, strict=True):
        tensor = restored[entry.name]
        assert tensor.dtype == (torch.float32 if entry.quantized else entry.original.dtype)
        assert tensor.shape == entry.original.shape
        assert tensor.flatten().tolist() == [value for row in expected for value in row]
    same(page, data)


@pytest.mark.parametrize(("bits", "size"), [(2, None), (5, 100)])
def test_a_file_of_real_weights_is_what_the_page_says(page: ModuleType, bits: int, size: int | None) -> None:
    top, entries = 2 ** (bits - 1) - 1, []
    for name, tensor in load_file(read_demo().checkpoint).items():
        parts: tuple[Quantized, ...] = ()
        if tensor.ndim == 2:
            steps: torch.Tensor | Groups = (tensor.float().abs().amax(1) / top).half()
            codes = (tensor / steps[:, None]).round()
            if size is not None:
                of = torch.arange(tensor.shape[1]) // size
                padded = torch.nn.functional.pad(tensor.float(), (0, -tensor.shape[1] % size)).view(
                    len(tensor), -1, size
                )
                exponents = (16 * (padded.abs().amax(2) / top).log2()).round().short()
                zero = (padded.mean(2) / padded.std(2) * top).round().clamp(-top, top).to(torch.int8)
                steps = Groups(exponents, zero, size)
                codes = (tensor / steps.scales()[:, of]).round() + zero[:, of]
            codes = codes.clamp(-top, top).to(torch.int8)
            parts = (Quantized(Block(name, 1, 0, len(tensor)), steps, bits, encode_codes(codes)),)
        entries.append(Entry(name, tensor, parts))
    assert sum(bool(entry.quantized) for entry in entries) > 10
    same(page, pack(encode_model(entries), read_demo().card))


@pytest.mark.parametrize(("states", "diagonal"), [(1, False), (8, False), (8, True)])
def test_many_lanes_of_levels_are_what_the_page_says(page: ModuleType, states: int, diagonal: bool) -> None:
    trellis, rng = Trellis(states, 128), np.random.default_rng(states)
    entries = []
    for name, (n, k), transposed in (("a", (300, 150), False), ("b", (129, 200), True)):
        row, column = (torch.from_numpy(rng.integers(-60, -50, size).astype(np.int16)) for size in (n, k))
        indices = np.rint(rng.normal(0, 2.0 ** ((-50 - row.numpy()[:, None]) / 4), (n, k))).astype(np.int64)
        scales = Exponents(row, column, -100)
        original = torch.zeros((k, n) if transposed else (n, k))
        block = Block(name, 1, 0, len(original), transposed)
        entries.append(
            Entry(name, original, (Leveled(block, scales, allowed(page, indices, trellis, diagonal), diagonal),))
        )
    coded = encode_model(entries, trellis)
    assert (300 * 150 + 129 * 200) // 32768 == 2 and coded.levels[0] > 0
    same(page, pack(coded, None))
