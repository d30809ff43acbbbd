"""Scales and zeros by groups of columns: any size, either kind of scale, and nothing that no encoder writes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.blob import pack, parse
from quantgolf.encode import (
    Codec,
    Entry,
    Quantized,
    block_bytes,
    check_model,
    decode_model,
    encode_codes,
    encode_model,
    scale_bytes,
    side_bytes,
)
from quantgolf.encode.groups import decode_zeros, encode_zeros
from quantgolf.encode.stream import RANS, RAW, ZSTD
from quantgolf.encode.varint import Cursor
from quantgolf.errors import FormatError
from quantgolf.runtime import restore
from quantgolf.types import Block, CodedModel, Groups, QTensor


def drawn(
    rows: int, columns: int, bits: int, size: int, zeros: bool = False, logarithmic: bool = False, seed: int = 0
) -> QTensor:
    """Codes, scales and zeros anywhere in their ranges."""
    generator, shape = torch.Generator().manual_seed(seed), (rows, -(-columns // size))
    scale = torch.rand(shape, generator=generator).half()
    if logarithmic:
        scale = torch.randint(-1904, 1905, shape, generator=generator).short()
    half = 2 ** (bits - 1)
    zero = torch.randint(-half, half, shape, generator=generator).to(torch.int8) if zeros else None
    codes = torch.randint(-half + (not zeros), half, (rows, columns), generator=generator).to(torch.int8)
    return QTensor(codes, Groups(scale, zero, size), bits)


def entry(tensor: QTensor, transposed: bool = False, name: str = "w") -> Entry:
    assert isinstance(tensor.steps, Groups) and tensor.bits is not None
    shape = tensor.codes.shape[::-1] if transposed else tensor.codes.shape
    part = Quantized(Block(name, 1, 0, shape[0], transposed), tensor.steps, tensor.bits, encode_codes(tensor.codes))
    return Entry(name, torch.zeros(shape), (part,))


def groups_of(part: QTensor | Tensor) -> Groups:
    assert isinstance(part, QTensor) and isinstance(part.steps, Groups)
    return part.steps


def slow(tensor: QTensor) -> list[list[float]]:
    """Weight by weight, in float64 up to the one rounding of the product."""
    steps = groups_of(tensor)
    exponents = steps.scale.dtype == torch.int16
    found = []
    for i, row in enumerate(tensor.codes.tolist()):
        found.append([])
        for j, code in enumerate(row):
            scale = steps.scale[i, j // steps.size].item()
            # A power of two apart, the sixteenths of an octave are fp32 numbers that are rounded once.
            step = float(np.float32(2 ** (scale % 16 / 16))) * 2.0 ** (scale // 16) if exponents else scale
            zero = 0 if steps.zero is None else steps.zero[i, j // steps.size].item()
            found[i].append(float(np.float32((code - zero) * step)))
    return found


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 40)), st.integers(2, 8), st.data(), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from(["auto", "rans", "zstd"]), st.integers(0, 2**31),
)  # fmt: skip
@settings(deadline=None, max_examples=120)
def test_any_groups_return(
    shape: tuple[int, int], bits: int, data: st.DataObject, zeros: bool, logarithmic: bool, transposed: bool,
    codec: Codec, seed: int,
) -> None:  # fmt: skip
    tensor = drawn(*shape, bits, data.draw(st.integers(1, shape[1])), zeros, logarithmic, seed)
    coded = parse(pack(encode_model([entry(tensor, transposed)], codec=codec), None))[1]
    ((_, part),) = decode_model(coded)
    found, given_groups = groups_of(part), groups_of(tensor)
    assert found.size == given_groups.size and torch.equal(found.scale, given_groups.scale)
    assert (found.zero is None) if given_groups.zero is None else torch.equal(found.zero, given_groups.zero)  # type: ignore[arg-type]
    weight = restore(coded)["w"]
    assert (weight.T if transposed else weight).tolist() == slow(tensor)


def test_groups_of_many_kinds_share_their_streams() -> None:
    tensors = {
        f"{bits}.{size}.{zeros}.{logarithmic}": drawn(7, 50, bits, size, zeros, logarithmic, seed=bits)
        for bits in (3, 2, 8, 3)
        for size in (1, 16, 49, 50)
        for zeros in (False, True)
        for logarithmic in (False, True)
    }
    steps = torch.linspace(-0.1, 0.1, 7).half()
    rows = Quantized(Block("rows", 1, 0, 7), steps, 4, encode_codes(torch.ones(7, 50).char()))
    entries = [entry(tensor, name=name) for name, tensor in tensors.items()]
    entries.insert(5, Entry("rows", torch.zeros(7, 50), (rows,)))
    coded = encode_model([*entries, Entry("kept", torch.ones(3))])
    assert parse(pack(coded, None))[1] == coded
    restored = restore(coded)
    for name, tensor in tensors.items():
        assert torch.equal(restored[name], tensor.dequantize())
    assert torch.equal(restored["rows"], steps.float()[:, None].expand(7, 50))
    spent = dict(zip(restored, block_bytes(coded), strict=True))
    assert sum(s.total for each in spent.values() for s in each) == pytest.approx(len(coded.streams()))
    assert spent["rows"][0].steps == pytest.approx(len(coded.steps) - scale_bytes(coded))
    assert spent["3.1.True.True"][0].zeros == pytest.approx(50 * spent["3.50.True.False"][0].zeros)
    assert spent["3.1.False.True"][0].zeros == spent["rows"][0].zeros == spent["kept"][0].steps == 0


def test_a_model_without_groups_has_none() -> None:
    coded = encode_model([Entry("kept", torch.ones(3))])
    assert not coded.has_groups and coded.zeros == b"" and scale_bytes(coded) == 0


@pytest.mark.parametrize("codec", ["rans", "zstd"])
def test_a_codec_is_that_of_all_streams(codec: Codec) -> None:
    tensors = [drawn(40, 300, 4, 10, True, logarithmic, seed=int(logarithmic)) for logarithmic in (False, True)]
    codes = [encode_codes(tensor.codes, codec) for tensor in tensors]
    entries = [entry(tensor, name=str(at)) for at, tensor in enumerate(tensors)]
    coded = encode_model([*entries, Entry("kept", torch.randn(999, dtype=torch.float64))], codec=codec)
    allowed = {RAW, RANS if codec == "rans" else ZSTD}
    streams = [*codes, *lengths(coded.steps), *lengths(coded.zeros), *lengths(coded.small)]
    assert {stream[0] for stream in streams} == allowed and all(stream[0] in allowed - {RAW} for stream in codes)
    assert all(torch.equal(restore(coded)[str(at)], tensor.dequantize()) for at, tensor in enumerate(tensors))


def lengths(payload: bytes) -> list[bytes]:
    """The streams of planes."""
    cursor, found = Cursor(payload, "planes"), []
    while cursor.left:
        found.append(cursor.take(cursor.varint()))
    return found


GOOD = Groups(torch.ones(5, 3).half(), torch.zeros(5, 3, dtype=torch.int8), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, r"groups of 0 columns in a matrix \[5, 7\], expected 1 to 7"),
        ({"size": -3}, "groups of -3 columns"),
        ({"size": 8}, "groups of 8 columns"),
        ({"size": 4}, r"scales \[5, 3\], expected .* \[5, 2\]"),
        ({"scale": torch.ones(5).half()}, r"scales \[5\]"),
        ({"scale": torch.ones(5, 3)}, "torch.float32 scales"),
        ({"scale": torch.full((5, 3), -1.0).half()}, "negative or not finite"),
        ({"scale": torch.full((5, 3), torch.inf).half()}, "negative or not finite"),
        ({"scale": torch.full((5, 3), torch.nan).half()}, "negative or not finite"),
        ({"scale": torch.full((5, 3), 1905).short()}, r"scales from 2\^\(1905/16\) to .* within ±1904"),
        ({"scale": torch.full((5, 3), -(2**15)).short()}, r"2\^\(-32768/16\)"),
        ({"zero": torch.full((5, 3), 8).char()}, "zeros from 8 to 8, expected -8 to 7 for 4 bits"),
        ({"zero": torch.full((5, 3), -9).char()}, "zeros from -9 to -9"),
        ({"zero": torch.zeros(5, 3)}, "torch.float32 zeros"),
        ({"zero": torch.zeros(5, 4).char()}, r"zeros \[5, 4\], expected torch.int8 \[5, 3\]"),
    ],
)
def test_groups_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    part = Quantized(Block("w", 1, 0, 5), replace(GOOD, **changes), 4, encode_codes(torch.ones(5, 7).char()))  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=f"w has .*{message}"):
        encode_model([Entry("w", torch.zeros(5, 7), (part,))])


@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(bits: int) -> None:
    part = Quantized(Block("w", 1, 0, 5), GOOD, bits, encode_codes(torch.ones(5, 7).char()))
    with pytest.raises(FormatError, match=f"w has codes of {bits} bits, expected 2 to 8"):
        encode_model([Entry("w", torch.zeros(5, 7), (part,))])


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_without_weights_have_no_groups(transposed: bool) -> None:
    groups = Groups(torch.ones((0, 3) if transposed else (3, 0)).half(), None, 1)
    part = Quantized(Block("w", 1, 0, 3, transposed), groups, 4, b"")
    with pytest.raises(FormatError, match="and weights"):
        encode_model([Entry("w", torch.zeros(3, 0), (part,))])


def with_block(coded: CodedModel, **changes: object) -> CodedModel:
    tensor = coded.tensors[0]
    return replace(coded, tensors=(replace(tensor, blocks=(replace(tensor.blocks[0], **changes),)), *coded.tensors[1:]))  # type: ignore[arg-type]


def test_blocks_with_groups_that_nothing_writes_are_refused() -> None:
    coded = encode_model([entry(drawn(5, 7, 4, 3, True, True))])
    groups = coded.tensors[0].blocks[0].groups
    assert groups is not None and groups.base is not None
    for changes, message in (
        ({"groups": replace(groups, size=0)}, "groups of 0 columns"),
        ({"groups": replace(groups, size=8)}, "groups of 8 columns"),
        ({"groups": replace(groups, base=4097)}, "base of 4097, expected one within ±4096"),
        ({"bits": None, "stored": "F32", "codes": b""}, "groups of rows that are no fixed-width codes"),
    ):
        with pytest.raises(FormatError, match=message):
            check_model(with_block(coded, **changes))
    with pytest.raises(FormatError, match="bytes of zeros, but no groups"):
        check_model(with_block(coded, groups=None))
    for size, base in ((7, groups.base), (2, groups.base), (3, None)):  # other counts; exponents that are no fp16
        with pytest.raises(FormatError):
            list(decode_model(with_block(coded, groups=replace(groups, size=size, base=base))))
    for streams in ({"zeros": coded.zeros + b"\0"}, {"zeros": b""}, {"steps": coded.steps[:-1]}):
        with pytest.raises(FormatError):
            list(decode_model(replace(coded, **streams)))  # type: ignore[arg-type]


def test_values_that_leave_their_range_are_refused_when_read() -> None:
    """A forged base must not wrap exponents around, nor a width let through a zero or a code of another one."""
    high = drawn(5, 7, 4, 3)
    coded = encode_model([entry(replace(high, steps=Groups(torch.full((5, 3), 1904).short(), None, 3)))])
    groups = coded.tensors[0].blocks[0].groups
    assert groups is not None and groups.base is not None
    for base in (groups.base + 1, 4096, -4096):
        with pytest.raises(FormatError, match="expected exponents within ±1904"):
            list(decode_model(with_block(coded, groups=replace(groups, base=base))))
    lowest = replace(high, codes=torch.full((5, 7), -8).char(), steps=GOOD)
    assert list(decode_model(encode_model([entry(lowest)])))
    without = encode_model([entry(replace(lowest, steps=replace(GOOD, zero=None)))])
    with pytest.raises(FormatError, match="codes from -8 to -8, expected -7 to 7 for 4 bits without zeros"):
        list(decode_model(without))
    zeros = encode_zeros([(4, torch.full((5, 3), 3).char())])
    assert decode_zeros(zeros, [(4, (5, 3))])[0].tolist() == [[3] * 3] * 5
    narrow = encode_model([entry(drawn(5, 7, 2, 3, True))])
    with pytest.raises(FormatError, match="zeros from 3 to 3, expected -2 to 1 for 2 bits"):
        list(decode_model(replace(narrow, zeros=zeros)))


def test_scales_count_towards_the_limit_before_they_are_there() -> None:
    """Groups of one column are as many scales as weights: 4 bytes each, and one more with a zero."""
    tensor = drawn(64, 64, 4, 1, True, True)
    coded = encode_model([entry(tensor)])
    check_model(coded, 64 * 64 * (4 + 5))
    with pytest.raises(FormatError, match="decoded bytes"):
        check_model(coded, 64 * 64 * (4 + 5) - 1)
    check_model(encode_model([entry(drawn(64, 64, 4, 64))]), 64 * 64 * 4 + 64 * 4)


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_predicted_side_bytes_are_about_the_real_ones(logarithmic: bool, zeros: bool) -> None:
    """Of matrices whose fp16 scales do not lie at the same place, which their streams do not know."""
    rng, entries, predicted = np.random.default_rng(0), [], 0
    for at in range(12):
        octaves = rng.normal(-6 - at / 8, 0.5, (100, 8))
        scale = torch.from_numpy(np.rint(16 * octaves) if logarithmic else 2**octaves)
        zero = torch.from_numpy(np.rint(rng.normal(0, 1.5, (100, 8))).clip(-8, 7)).char() if zeros else None
        groups = Groups(scale.short() if logarithmic else scale.half(), zero, 16)
        entries.append(entry(QTensor(torch.ones(100, 128).char(), groups, 4), name=f"w{at}"))
        predicted += side_bytes(groups)
    coded = encode_model(entries)
    real = len(coded.steps) + len(coded.zeros)
    assert abs(predicted - real) < 0.05 * real


def test_side_bytes_of_steps_of_rows() -> None:
    steps = (2 ** torch.randn(3000, generator=torch.Generator().manual_seed(0))).half()
    rows = Quantized(Block("w", 1, 0, 3000), steps, 4, encode_codes(torch.ones(3000, 1).char()))
    real = len(encode_model([Entry("w", torch.zeros(3000, 1), (rows,))]).steps)
    assert abs(side_bytes(steps) - real) < 0.02 * real
    assert side_bytes(steps[:0]) == 0
