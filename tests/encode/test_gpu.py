"""What is decoded by ops is what is decoded by compiled loops, and what is damaged for one is damaged for the other.

Here the ops run their reference bodies on the CPU; tests/kernels/test_rans.py has the kernels in their place.
"""

import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantgolf.encode import Entry, Leveled, Quantized, decode_codes, decode_model, encode_codes, encode_model, gpu
from quantgolf.encode.diagonals import unrolled
from quantgolf.encode.levels import Levels, decode_levels, decode_levels_on, encode_levels
from quantgolf.encode.rans import LOWEST
from quantgolf.encode.stream import RANS, RAW, ZSTD, decode_codes_on
from quantgolf.encode.table import SYMBOLS, choose_roots, write_table
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Exponents, QTensor

CPU = torch.device("cpu")


def matrix(rng: np.random.Generator, shape: tuple[int, int], trellis: Trellis, diagonal: bool, wide: float) -> Levels:
    targets = rng.normal(0, wide, shape[::-1])
    coded = np.stack([trellis.quantize(each) for each in targets]) if targets.size else targets.astype(np.int32)
    row, column = (rng.integers(-9, 9, size).astype(np.int16) for size in shape)
    return Levels(unrolled(coded) if diagonal else np.ascontiguousarray(coded.T), -3, row, column, diagonal)


SHAPES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=5)


@given(st.integers(0, 2**32), SHAPES, st.sampled_from([1, 4, 8, 128]), st.integers(1, 9))
@settings(deadline=None)
def test_levels_are_those_of_the_cpu(seed: int, shapes: list[tuple[int, int, bool]], states: int, restart: int) -> None:
    trellis, rng = Trellis(states, restart), np.random.default_rng(seed)
    matrices = [matrix(rng, (n, k), trellis, diagonal, 90) for n, k, diagonal in shapes]
    payload, frames = encode_levels(matrices, trellis), [each.frame for each in matrices]
    found = list(decode_levels_on(CPU, payload, frames, trellis))
    for levels, expected in zip(found, decode_levels(payload, frames, trellis), strict=True):
        assert levels.dtype == torch.int32 and levels.is_contiguous() and expected.flags.c_contiguous
        assert np.array_equal(levels.numpy(), expected)


@pytest.mark.parametrize(("restart", "aside"), [(100, True), (200_000, False)])
def test_many_lanes_in_either_order(restart: int, aside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart beyond the rows of a tall matrix makes one lane of all of it, and others empty."""
    trellis, rng, strides = Trellis(8, restart), np.random.default_rng(0), []

    def watched(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        strides.append(arguments[4])
        found: tuple[torch.Tensor, torch.Tensor] = rans_levels(*arguments)
        return found

    rans_levels = gpu.rans_levels
    monkeypatch.setattr(gpu, "rans_levels", watched)
    shapes = [(700, 500), (1, 77), (129, 1000)] if aside else [(40_000, 2)]
    matrices = [matrix(rng, shape, trellis, at == 2, 3) for at, shape in enumerate(shapes)]
    payload, frames = encode_levels(matrices, trellis), [each.frame for each in matrices]
    for levels, each in zip(decode_levels_on(CPU, payload, frames, trellis), matrices, strict=True):
        assert np.array_equal(levels.numpy(), each.levels)
    assert strides == [16 if aside else 0]


def test_every_cut_and_every_flip_of_levels_is_judged_alike() -> None:
    trellis, rng = Trellis(8, 6), np.random.default_rng(3)
    matrices = [matrix(rng, (14, 5), trellis, True, 5), matrix(rng, (7, 4), trellis, False, 120)]
    frames, payload = [each.frame for each in matrices], encode_levels(matrices, trellis)
    damaged = [payload[:end] for end in range(0, len(payload), 3)] + [payload + b"\0\0"]
    for i in range(0, 8 * len(payload), 3):
        changed = bytearray(payload)
        changed[i // 8] ^= 1 << i % 8
        damaged.append(bytes(changed))
    for each in damaged:
        found, messages = [], []
        try:
            found.append([levels.tolist() for levels in decode_levels(each, frames, trellis)])
        except FormatError as error:
            messages.append(str(error))
        try:
            found.append([levels.tolist() for levels in decode_levels_on(CPU, each, frames, trellis)])
        except FormatError as error:
            messages.append(str(error))
        assert (len(found), len(messages)) in ((2, 0), (0, 2))
        assert found[1:] == found[:1] and messages[1:] == messages[:1]


def codes(seed: int, *shape: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, 2, shape).round().clip(-7, 7).astype(np.int8))


def test_codes_of_every_codec_come_in_turn() -> None:
    given = [
        codes(1, 300, 250), torch.arange(-128, 128).to(torch.int8)[None], codes(2, 30, 40), torch.zeros(2, 0).char(),
        torch.arange(100).char().repeat(50, 1), codes(3, 50, 30),
    ]  # fmt: skip
    streams = [(encode_codes(each), tuple(each.shape), f"codes {at}") for at, each in enumerate(given)]
    assert [payload[0] for payload, *_ in streams if payload] == [RANS, RAW, RANS, ZSTD, RANS]
    found = list(decode_codes_on(CPU, streams))
    for each, expected in zip(found, given, strict=True):
        assert each.dtype == torch.int8 and torch.equal(each, expected)
    assert list(decode_codes_on(CPU, [])) == []


def test_damaged_codes_are_named_when_their_turn_comes() -> None:
    given = [codes(at, 40, 30) for at in range(3)]
    streams = [(encode_codes(each), (40, 30), f"codes {at}") for at, each in enumerate(given)]
    changed = bytearray(streams[1][0])
    changed[-3] ^= 4
    streams[1] = (bytes(changed), (40, 30), "codes 1")
    found = decode_codes_on(CPU, streams)
    assert torch.equal(next(found), given[0])
    with pytest.raises(FormatError, match="codes 1 does not end where its encoder began"):
        next(found)
    with pytest.raises(FormatError, match="codes 1 does not end where its encoder began"):
        decode_codes(*streams[1])


@given(st.data())
@settings(deadline=None)
def test_changed_codes_are_judged_alike(data: st.DataObject) -> None:
    stream = bytearray(encode_codes(codes(5, 20, 30)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    found = []
    with suppress(FormatError):
        found.append(decode_codes(bytes(stream), (20, 30)).tolist())
    with suppress(FormatError):
        found += [each.tolist() for each in decode_codes_on(CPU, [(bytes(stream), (20, 30), "codes")])]
    assert not found or found[0] == found[1]


def test_a_lane_that_nothing_writes_is_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane of as many symbols as a stream may claim would hold a GPU for hours."""
    monkeypatch.setattr(gpu, "MOST_STEPS", 1000)
    monkeypatch.setattr(gpu, "decode_streams", lambda *_: pytest.fail("went to the GPU"))
    roots = choose_roots(np.bincount([127, 128], minlength=SYMBOLS))
    stream = bytes([RANS]) + write_table(roots) + varint(1) + LOWEST.to_bytes(4, "little")
    with pytest.raises(FormatError, match="codes does not end"):
        list(decode_codes_on(CPU, [(stream, (1001,), "codes")]))


def model() -> tuple[list[Entry], Trellis]:
    trellis, rng = Trellis(8, 4), np.random.default_rng(0)
    leveled = []
    for start, diagonal in ((0, True), (9, False)):
        each = matrix(rng, (9, 7), trellis, diagonal, 3)
        exponents = Exponents(torch.from_numpy(each.row), torch.from_numpy(each.column), -3)
        leveled.append(Leveled(Block("bank", 2, start, start + 9), exponents, torch.from_numpy(each.levels), diagonal))
    coded = [
        Quantized(Block(name, 1, 0, 20), torch.rand(20).half(), 4, encode_codes(codes(at, 20, 30)))
        for at, name in enumerate(("first", "second"))
    ]
    return [
        Entry("first", torch.ones(20, 30), (coded[0],)),
        Entry("bank", torch.ones(4, 9, 7), tuple(leveled)),
        Entry("small", torch.rand(5)),
        Entry("second", torch.ones(20, 30), (coded[1],)),
    ], trellis


def test_a_whole_model_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = encode_model(*model())
    expected = dict(decode_model(coded))
    monkeypatch.setattr(gpu, "decodes_on", lambda device: device == CPU)
    found = dict(decode_model(coded, CPU))
    assert list(found) == list(expected) and len(found) == 6
    for place, part in found.items():
        other = expected[place]
        if isinstance(part, torch.Tensor) or isinstance(other, torch.Tensor):
            assert torch.equal(part, other)  # type: ignore[arg-type]
            continue
        assert torch.equal(part.codes, other.codes) and part.codes.dtype == other.codes.dtype
        assert part.bits == other.bits and torch.equal(part.dequantize(), other.dequantize())
    broken = decode_model(replace(coded, levels=coded.levels[:-2]), CPU)
    assert isinstance(next(broken)[1], QTensor)
    with pytest.raises(FormatError, match="the stream of levels does not end"):
        next(broken)


def test_other_devices_get_what_the_cpu_decoded() -> None:
    found = dict(decode_model(encode_model(*model()), torch.device("meta")))
    for part in found.values():
        tensors = [part] if isinstance(part, torch.Tensor) else [part.codes, part.steps.row]
        assert all(tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize(
    ("triton", "capability", "lacking"),
    [(None, (9, 0), "triton is not installed"), (object(), (7, 5), "compute capability is 7.5, expected at least 8.0")],
)
def test_gpus_without_kernels_are_told_of(
    triton: object, capability: tuple[int, int], lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.warns(UserWarning, match=lacking):
        assert not gpu.decodes_on(torch.device("cuda"))


def test_other_devices_are_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [gpu.decodes_on(torch.device(name)) for name in ("cpu", "meta", "cuda")] == [False, False, True]


def test_levels_are_in_memory_once() -> None:
    """Not as decoded and again as unrolled: every matrix is a part of the same array."""
    trellis, rng = Trellis(8), np.random.default_rng(0)
    matrices = [matrix(rng, (30, 20), trellis, at % 2 == 0, 3) for at in range(4)]
    found = decode_levels(encode_levels(matrices, trellis), [each.frame for each in matrices], trellis)
    bases: list[NDArray[np.int32]] = list(found)
    for at, levels in enumerate(found):
        while isinstance(levels.base, np.ndarray):
            levels = levels.base
        bases[at] = levels
    assert bases[0].size == 2400 and all(base is bases[0] for base in bases)
