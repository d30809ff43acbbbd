"""Whole models through their streams: nothing is lost, and what does not fit is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.encode import (
    Entry,
    Leveled,
    Quantized,
    block_bytes,
    check_model,
    decode_model,
    encode_codes,
    encode_model,
    tensor_bytes,
)
from quantgolf.encode.dtypes import DTYPES, stored_name
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor, Exponents, QTensor, Steps


def solved(rows: int, columns: int, bits: int, seed: int = 0) -> QTensor:
    generator = torch.Generator().manual_seed(seed)
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (rows, columns), generator=generator).to(torch.int8)
    return QTensor(codes, Steps((torch.rand(rows, generator=generator) + 0.01).half()), bits)


def coded_as(block: Block, tensor: QTensor) -> Quantized:
    return Quantized(block, tensor.steps.row, tensor.bits, encode_codes(tensor.codes))


def whole(name: str, tensor: QTensor) -> tuple[Quantized, ...]:
    return (coded_as(Block(name, 1, 0, len(tensor.codes)), tensor),)


# A bank of four matrices [5, 7]: the last comes first, the third stays, the second is transposed.
BANK = {
    Block("bank", 2, 15, 20): solved(5, 7, 3, seed=3),
    Block("bank", 2, 0, 5): solved(5, 7, 4, seed=4),
    Block("bank", 2, 5, 10, transposed=True): solved(7, 5, 5, seed=5),
}
WHOLE = {"a": solved(5, 7, 4), "conv": solved(4, 6, 8)}


def entries() -> list[Entry]:
    generator = torch.Generator().manual_seed(1)
    kept = [
        Entry(f"kept.{name}", torch.ones(2, 3).to(dtype), aliases=("other",) if name == "F16" else ())
        for name, dtype in DTYPES.items()
    ]
    return [
        Entry("a", torch.zeros(5, 7), whole("a", WHOLE["a"])),
        *kept,
        Entry("bank", torch.arange(140).reshape(4, 5, 7).float(), tuple(coded_as(*part) for part in BANK.items())),
        Entry("conv", torch.zeros(4, 3, 2, dtype=torch.bfloat16), whole("conv", WHOLE["conv"])),
        Entry("noise", torch.randn(300, generator=generator)),
        Entry("exact", torch.randn(300, generator=generator, dtype=torch.float64)),
        Entry("scalar", torch.tensor(7)),
        Entry("nothing", torch.empty(0, 3)),
    ]


TRELLIS = Trellis(8, 4)


def leveled(block: Block, rows: int, columns: int, seed: int = 0) -> Leveled:
    rng = np.random.default_rng(seed)
    targets = rng.normal(0, 3, (rows, columns))
    levels = np.stack([TRELLIS.quantize(targets[:, j]) for j in range(columns)], axis=1)
    row, column = (torch.from_numpy(rng.integers(-20, 5, size).astype(np.int16)) for size in (rows, columns))
    return Leveled(block, Exponents(row, column, -9), torch.from_numpy(levels))


# The same bank, with two matrices of levels around one of codes, and a tensor that is nothing else.
MIXED = {
    part.block: part
    for part in (
        leveled(Block("mixed", 2, 15, 20), 5, 7, seed=3),
        leveled(Block("mixed", 2, 5, 10, transposed=True), 7, 5, seed=5),
        leveled(Block("ladder", 1, 0, 9), 9, 4, seed=6),
    )
}
MIXED_CODES = Block("mixed", 2, 10, 15)


def mixed_entries() -> list[Entry]:
    bank = tuple(part for part in MIXED.values() if part.block.parameter == "mixed")
    codes = coded_as(MIXED_CODES, solved(5, 7, 4))
    return [
        *entries(),
        Entry("mixed", torch.arange(140).reshape(4, 5, 7).float(), (bank[0], codes, bank[1])),
        Entry("ladder", torch.zeros(9, 2, 2), (MIXED[Block("ladder", 1, 0, 9)],)),
        Entry("last", torch.ones(3)),
    ]


def test_models_with_levels_return() -> None:
    coded = encode_model(mixed_entries(), TRELLIS)
    assert (coded.states, coded.restart) == (8, 4) and coded.levels and coded.exponents
    assert sum(block.levels for tensor in coded.tensors for block in tensor.blocks) == 3
    found = dict(decode_model(coded))
    for block, part in MIXED.items():
        weight = found[block]
        assert weight.bits is None and weight.codes.dtype == torch.int32 and weight.codes.is_contiguous()
        assert torch.equal(weight.codes, part.levels)
        row, column = (2 ** (each.double() / 4) for each in (part.exponents.row, part.exponents.column))
        expected = part.levels.double() * row[:, None] * column
        torch.testing.assert_close(weight.dequantize().double(), expected, rtol=3e-7, atol=0)
    assert torch.equal(found[MIXED_CODES].codes, solved(5, 7, 4).codes)
    assert torch.equal(found[Block("mixed", 2, 0, 5)], torch.arange(35).reshape(5, 7).float())
    assert encode_model(mixed_entries(), TRELLIS) == coded


def test_models_without_levels_keep_their_bytes() -> None:
    coded = encode_model(entries())
    assert encode_model(entries(), TRELLIS) == coded and not coded.has_levels
    assert (coded.exponents, coded.levels, coded.states, coded.restart) == (b"", b"", 0, 0)


def test_levels_are_decoded_when_the_first_is_asked_for() -> None:
    coded = encode_model(mixed_entries(), TRELLIS)
    broken = decode_model(replace(coded, levels=coded.levels[:-1]))
    first = sum(len(tensor.blocks) for tensor in coded.tensors if tensor.name not in ("mixed", "ladder", "last"))
    assert len([next(broken) for _ in range(first + 1)]) == first + 1  # and the rows of the bank that stay
    with pytest.raises(FormatError, match="the stream of levels"):
        next(broken)


def ladder(**changes: object) -> Leveled:
    return replace(MIXED[Block("ladder", 1, 0, 9)], **changes)  # type: ignore[arg-type]


def steps(row: object = 0, column: object = 0, spread: int = 0) -> dict[str, object]:
    return {
        "exponents": Exponents(
            torch.zeros(9, dtype=torch.int16) + torch.tensor(row, dtype=torch.int16),
            torch.zeros(4, dtype=torch.int16) + torch.tensor(column, dtype=torch.int16),
            spread,
        )
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": torch.zeros(9, 4)}, "ladder has torch.float32 levels"),
        ({"levels": torch.zeros(4, 9, dtype=torch.int32)}, r"levels \[4, 9\], expected torch.int32 \[9, 4\]"),
        ({"levels": torch.full((9, 4), 1, dtype=torch.int32)}, "level 1 at row 0 of column 0"),
        (steps(row=[0] * 8 + [256]), "row exponents that lie 256 quarter octaves apart, expected at most 255"),
        (steps(column=[0, 0, -200, 56]), "column exponents that lie 256"),
        (steps(row=4097), r"row exponents from 4097 to 4097, expected ±4096"),
        (steps(column=-(2**15)), r"column exponents from -32768"),
        (steps(spread=-4097), "spread of -4097"),
        (steps(row=512), "ladder has levels up to 1 and steps up to 2"),
        (steps(row=400, column=112), "finite in fp32"),
        (steps(row=255, column=250), r"levels up to \d+ and steps"),
        ({"exponents": Exponents(torch.zeros(8).short(), torch.zeros(4).short(), 0)}, r"row exponents \[8\]"),
        ({"exponents": Exponents(torch.zeros(9).short(), torch.zeros(4), 0)}, "float32 column exponents"),
    ],
)
def test_levels_the_format_cannot_hold_are_refused(changes: dict[str, object], message: str) -> None:
    entry = Entry("ladder", torch.zeros(9, 4), (ladder(**changes),))
    with pytest.raises(QuantGolfError, match=message):
        encode_model([entry], TRELLIS)


def test_levels_need_their_trellis_and_a_floating_point_tensor() -> None:
    with pytest.raises(QuantGolfError, match="ladder has levels, expected the trellis"):
        encode_model([Entry("ladder", torch.zeros(9, 4), (ladder(),))])
    with pytest.raises(QuantGolfError, match="floating point"):
        encode_model([Entry("ladder", torch.zeros(9, 4).long(), (ladder(),))], TRELLIS)
    with pytest.raises(QuantGolfError, match="restarts after"):
        encode_model([Entry("ladder", torch.zeros(9, 4), (ladder(levels=torch.zeros(9, 4).int()),))], Trellis(8, 2**21))


@pytest.mark.parametrize(
    "changes", [{"bits": 4}, {"stored": "F32"}, {"codes": b"a"}, {"levels": False}, {"levels": False, "bits": 4}]
)
def test_blocks_of_levels_that_nothing_writes_are_refused(changes: dict[str, object]) -> None:
    coded = encode_model([Entry("ladder", torch.zeros(9, 4), (ladder(),))], TRELLIS)
    blocks = (replace(coded.tensors[0].blocks[0], **changes),)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        check_model(replace(coded, tensors=(replace(coded.tensors[0], blocks=blocks),)))


@given(st.data(), st.sampled_from(["exponents", "levels"]))
@settings(deadline=None, max_examples=200)
def test_changed_streams_end_in_an_error_or_finite_weights(data: st.DataObject, which: str) -> None:
    coded = encode_model([Entry("ladder", torch.zeros(9, 4), (ladder(),))], TRELLIS)
    stream = bytearray(getattr(coded, which))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        ((_, weight),) = decode_model(replace(coded, **{which: bytes(stream)}))
    except FormatError:
        return
    assert weight.codes.shape == (9, 4) and weight.dequantize().isfinite().all()


def test_levels_that_overflow_are_refused_when_read() -> None:
    high = ladder(**steps(row=255, column=240))
    coded = encode_model([Entry("ladder", torch.zeros(9, 4), (high,))], TRELLIS)
    assert next(decode_model(coded))[1].dequantize().isfinite().all()
    raised = encode_model([Entry("ladder", torch.zeros(9, 4), (ladder(**steps(row=255, column=254), levels=ZEROS),))],
                          TRELLIS).exponents  # fmt: skip
    with pytest.raises(FormatError, match=r"ladder has levels up to \d+ and steps up to 2\^\(255/4\)"):
        list(decode_model(replace(coded, exponents=raised)))


ZEROS = torch.zeros(9, 4, dtype=torch.int32)


def test_models_return() -> None:
    made = entries()
    coded = encode_model(made)
    assert [t.name for t in coded.tensors] == [e.name for e in made]
    for entry, tensor in zip(made, coded.tensors, strict=True):
        assert tensor.shape == entry.original.shape and DTYPES[tensor.dtype] == entry.original.dtype
        assert tensor.aliases == entry.aliases
    found = dict(decode_model(coded))
    weights = {Block(name, 1, 0, len(tensor.codes)): tensor for name, tensor in WHOLE.items()} | BANK
    for place, tensor in weights.items():
        assert torch.equal(found[place].codes, tensor.codes) and torch.equal(found[place].steps.row, tensor.steps.row)
        assert found[place].bits == tensor.bits
    assert torch.equal(found[Block("bank", 2, 10, 15)], torch.arange(70, 105).reshape(5, 7).float())
    kept = {entry.name: entry.original for entry in made if not entry.quantized}
    assert len(found) == len(kept) + len(weights) + 1
    for name, original in kept.items():
        tensor = found[Block(name, 0, 0, 1)]
        assert tensor.dtype == original.dtype and tensor.shape == (1, original.numel())
        torch.testing.assert_close(tensor[0].double(), original.flatten().double(), rtol=2**-11, atol=1e-3)
    assert encode_model(made) == coded


def test_rows_beside_each_other_that_stay_are_one_block() -> None:
    tensor = solved(2, 3, 4)
    entry = Entry("b", torch.zeros(5, 2, 3), (coded_as(Block("b", 2, 4, 6), tensor),))
    assert [(b.rows, b.bits) for b in encode_model([entry]).tensors[0].blocks] == [(4, None), (2, 4), (4, None)]


def test_bytes_of_levels_add_up() -> None:
    coded = encode_model(mixed_entries(), TRELLIS)
    spent, blocks = tensor_bytes(coded), block_bytes(coded)
    assert sum(s.codes + s.steps + s.small for s in spent) == pytest.approx(len(coded.streams()))
    names = [tensor.name for tensor in coded.tensors]
    mixed, (alone,) = blocks[names.index("mixed")], blocks[names.index("ladder")]
    total = 35 + 35 + 36
    assert mixed[1].codes == mixed[3].codes == pytest.approx(len(coded.levels) * 35 / total)
    assert alone.codes == pytest.approx(len(coded.levels) * 36 / total)
    assert alone.steps == pytest.approx(len(coded.exponents) * 13 / 37) and alone.small == 0
    assert mixed[2].codes == len(coded.tensors[names.index("mixed")].blocks[2].codes)
    assert mixed[2].steps == pytest.approx(blocks[names.index("a")][0].steps)


def test_bytes_add_up() -> None:
    coded = encode_model(entries())
    spent, blocks = tensor_bytes(coded), block_bytes(coded)
    streams = sum(len(b.codes) for t in coded.tensors for b in t.blocks) + len(coded.steps) + len(coded.small)
    assert sum(s.codes + s.steps + s.small for s in spent) == pytest.approx(streams)
    assert sum(s.codes + s.steps + s.small for each in blocks for s in each) == pytest.approx(streams)
    for tensor, whole, each in zip(coded.tensors, spent, blocks, strict=True):
        assert whole.codes == sum(len(block.codes) for block in tensor.blocks)
        for block, share in zip(tensor.blocks, each, strict=True):
            assert share.codes == len(block.codes)
            assert (share.steps > 0) == (block.bits is not None)
    (bank,) = (each for tensor, each in zip(coded.tensors, blocks, strict=True) if tensor.name == "bank")
    assert bank[1].steps / bank[0].steps == pytest.approx(7 / 5) and bank[2].small > 0


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.tensor([1.0, -0.5, 3.14159, 0.0]), "F16"),
        (torch.randn(999, generator=torch.Generator().manual_seed(0)) * 1e-2, "F16"),
        (torch.tensor([1e5]), "F32"),
        (torch.tensor([torch.nan]), "F32"),
        (torch.randn(999, generator=torch.Generator().manual_seed(0)) * 1e-6, "F32"),
        (torch.tensor([1e5], dtype=torch.float64), "F32"),
        (torch.tensor([1e300], dtype=torch.float64), "F64"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "BF16"),
        (torch.tensor([2**40]), "I64"),
    ],
)
def test_values_are_stored_as_narrow_as_they_survive(tensor: Tensor, name: str) -> None:
    (original,) = (key for key, dtype in DTYPES.items() if dtype == tensor.dtype)
    assert stored_name(tensor, original) == name


def one(rows: int, columns: int, bits: int = 4, **place: object) -> Quantized:
    """A matrix of parameter w; `place` changes where it lies."""
    given = {"parameter": "w", "lead": 1, "start": 0, "stop": rows} | place
    return coded_as(Block(**given), solved(rows, columns, min(bits, 8)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("w", torch.zeros(5, 7), (one(6, 7),)), "has Block.*at least one of the rows 0 to 5"),
        (Entry("w", torch.zeros(5, 7), (one(5, 7), one(2, 7, start=3, stop=5))), "rows 5 to 5 that no block before"),
        (Entry("w", torch.zeros(5, 7), (one(2, 7), one(3, 7, start=2, stop=2))), "has Block"),
        (Entry("w", torch.zeros(5, 7), (one(2, 7, start=-2, stop=0),)), "has Block"),
        (Entry("w", torch.zeros(5, 7), (one(5, 7, parameter="v"),)), "has Block.*parameter='v'"),
        (Entry("w", torch.zeros(2, 3, 4), (one(1, 12), one(3, 4, lead=2, start=3, stop=6))), "expected lead=1"),
        (Entry("w", torch.zeros(0, 7), (one(0, 7),)), "has Block"),
        (Entry("w", torch.zeros(4), (one(4, 1, lead=2),)), "merges 2 dimensions, expected 0 to 1"),
        (Entry("w", torch.zeros(5, 7), (replace(one(5, 7), bits=9),)), "bits 9, expected one of 2"),
        (Entry("w", torch.zeros(5, 7), (one(4, 7, stop=5),)), r"steps \[4\], expected finite torch.float16 \[5\]"),
        (Entry("w", torch.zeros(5, 7), (one(5, 7, transposed=True),)), r"steps \[5\], expected .* \[7\]"),
        (Entry("w", torch.zeros(5, 7), (replace(one(5, 7), row=torch.ones(5)),)), "float32 steps"),
        (Entry("w", torch.zeros(2, 3), (replace(one(2, 3), row=torch.tensor([1, np.inf]).half()),)), "expected finite"),
        (Entry("w", torch.zeros(5, 7, dtype=torch.int64), (one(5, 7),)), "floating point"),
        (Entry("w", torch.zeros(2, dtype=torch.complex64)), "complex64, expected one of"),
        (Entry("w", torch.zeros(2), aliases=("w",)), "used twice"),
        (Entry("", torch.zeros(2)), "empty or used twice"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(entry: Entry, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        encode_model([entry])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "F12"}, "dtype 'F12'"),
        ({"dtype": "I64"}, "floating point"),
        ({"lead": 3}, r"merges 3 dimensions, expected 0 to 2"),
        ({"lead": -1}, "merges -1 dimensions"),
        ({"lead": 2}, "5 together, expected 1 or more, 35 together"),
        ({"shape": ()}, "merges 1 dimensions, expected 0 to 0"),
        ({"shape": (1,) * 17}, "expected up to 16 sizes"),
        ({"shape": (5, 2**40)}, "decoded bytes"),
        ({"shape": (5, 2**60, 0)}, "decoded bytes"),
        ({"blocks": ()}, "0 blocks of 0 rows"),
    ],
)
def test_tensors_that_nothing_writes_are_refused(changes: dict[str, object], message: str) -> None:
    coded = encode_model([Entry("w", torch.zeros(5, 7), (one(5, 7),))])
    with pytest.raises(FormatError, match=message):
        check_model(replace(coded, tensors=(replace(coded.tensors[0], **changes),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 1}, "bits 1"),
        ({"stored": "F32"}, "stored dtype F32"),
        ({"bits": None, "stored": "I64"}, "stored dtype I64"),
        ({"bits": None}, "stored dtype None"),
        ({"bits": None, "stored": "F32"}, "bytes of codes and transposed=False, expected no codes"),
        ({"bits": None, "stored": "F32", "codes": b"", "transposed": True}, "transposed=True"),
        ({"rows": 6}, "6 together, expected 1 or more, 5 together"),
        ({"rows": 0}, "1 blocks of 0 rows"),
    ],
)
def test_blocks_that_nothing_writes_are_refused(changes: dict[str, object], message: str) -> None:
    coded = encode_model([Entry("w", torch.zeros(5, 7), (one(5, 7),))])
    blocks = (replace(coded.tensors[0].blocks[0], **changes),)
    with pytest.raises(FormatError, match=message):
        check_model(replace(coded, tensors=(replace(coded.tensors[0], blocks=blocks),)))


def test_no_block_of_a_cut_tensor_is_empty() -> None:
    blocks = tuple(CodedBlock(rows, "F32", None, b"") for rows in (3, 0, 2))
    with pytest.raises(FormatError, match="3 blocks of 0 rows or more, 5 together"):
        check_model(CodedModel((CodedTensor("w", (5, 7), "F32", 1, blocks),), b"", b""))


def test_streams_that_do_not_fit_are_refused() -> None:
    coded = encode_model([Entry("w", torch.zeros(5, 7), (one(5, 7),)), Entry("b", torch.ones(9) > 0)])
    first, second = coded.tensors

    def changed(**changes: object) -> CodedModel:
        return replace(coded, tensors=(replace(first, blocks=(replace(first.blocks[0], **changes),)), second))

    for broken in (
        replace(coded, steps=coded.steps + b"\0"),
        replace(coded, steps=b""),
        replace(coded, small=coded.small + b"\0"),
        replace(coded, small=coded.small[:-1]),
        changed(codes=first.blocks[0].codes + b"\0"),
        changed(codes=b""),
        changed(transposed=True),
    ):
        with pytest.raises(FormatError):
            list(decode_model(broken))
    with pytest.raises(FormatError, match="w has a code of magnitude 7, expected at most 1 for 2 bits"):
        list(decode_model(changed(bits=2)))


def test_truth_values_are_zero_or_one() -> None:
    kept = CodedBlock(1, "BOOL", None, b"")
    coded = CodedModel((CodedTensor("b", (3,), "BOOL", 0, (kept,)),), b"", b"\x04\x00\x00\x01\x02")
    with pytest.raises(FormatError, match="truth value of 2"):
        decode_model(coded)


def test_steps_that_are_not_finite_are_refused_when_read() -> None:
    coded = encode_model([Entry("w", torch.zeros(1, 1), (one(1, 1),))])
    infinite = b"\x02\x00\x00\x02\x00\x7c"  # two planes of one byte each, raw: fp16 0x7c00
    with pytest.raises(FormatError, match=r"w has .* expected finite"):
        list(decode_model(replace(coded, steps=infinite)))
