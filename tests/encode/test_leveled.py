"""Models with levels, down columns and along diagonals: they return, and what a file cannot hold is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.encode import Entry, Leveled, block_bytes, check_model, decode_model, encode_model
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor, Exponents, QTensor

TRELLIS = Trellis(8, 4)


def leveled(block: Block, rows: int, columns: int, seed: int = 0, diagonal: bool = False) -> Leveled:
    rng = np.random.default_rng(seed)
    targets = rng.normal(0, 3, (rows, columns))
    i, j = np.ogrid[:rows, :columns]
    coded = i, ((j - i) % columns if diagonal else j + 0 * i)
    levels = np.empty((rows, columns), dtype=np.int32)
    levels[coded] = np.stack([TRELLIS.quantize(column) for column in targets[coded].T], axis=1)
    row, column = (torch.from_numpy(rng.integers(-20, 5, size).astype(np.int16)) for size in (rows, columns))
    return Leveled(block, Exponents(row, column, -9), torch.from_numpy(levels), diagonal)


BOTH = {
    part.block: part
    for part in (
        leveled(Block("bank", 2, 0, 5), 5, 7, seed=1, diagonal=True),
        leveled(Block("bank", 2, 5, 10), 5, 7, seed=2),
        leveled(Block("bank", 2, 15, 20, transposed=True), 7, 5, seed=3, diagonal=True),
        leveled(Block("tall", 1, 0, 50), 50, 3, seed=4, diagonal=True),
        leveled(Block("wide", 1, 0, 3), 3, 50, seed=5, diagonal=True),
        leveled(Block("last", 1, 0, 4, transposed=True), 6, 4, seed=6),
    )
}


def test_diagonals_and_columns_share_a_model() -> None:
    shapes = {"bank": (4, 5, 7), "tall": (50, 3), "wide": (3, 50), "last": (4, 6)}
    entries = [
        Entry(name, torch.ones(shape), tuple(part for block, part in BOTH.items() if block.parameter == name))
        for name, shape in shapes.items()
    ]
    coded = encode_model(entries, TRELLIS)
    kinds = [(block.levels, block.diagonal) for tensor in coded.tensors for block in tensor.blocks]
    assert kinds == [(True, True), (True, False), (False, False)] + 3 * [(True, True)] + [(True, False)]
    found = dict(decode_model(coded))
    for block, part in BOTH.items():
        weight = found[block]
        assert isinstance(weight, QTensor) and weight.codes.is_contiguous()
        assert torch.equal(weight.codes, part.levels)
        row, column = (2 ** (each.double() / 4) for each in (part.exponents.row, part.exponents.column))
        expected = part.levels.double() * row[:, None] * column
        torch.testing.assert_close(weight.dequantize().double(), expected, rtol=3e-7, atol=0)
    assert torch.equal(found[Block("bank", 2, 10, 15)], torch.ones(5, 7))
    spent = block_bytes(coded)
    weights = sum(part.levels.numel() for part in BOTH.values())
    assert spent[1][0].codes == pytest.approx(len(coded.levels) * 150 / weights)
    assert spent[1][0].steps == pytest.approx(len(coded.exponents) * 53 / (12 * 3 + 53 * 2 + 10))
    assert sum(s.codes + s.steps + s.small for each in spent for s in each) == pytest.approx(len(coded.streams()))


def test_levels_of_one_kind_are_not_read_as_the_other() -> None:
    """The file has to say it: the streams are as long for both, and what is read otherwise is refused or differs."""
    part = leveled(Block("w", 1, 0, 12), 12, 9, seed=7, diagonal=True)
    coded = encode_model([Entry("w", torch.zeros(12, 9), (part,))], TRELLIS)
    block = replace(coded.tensors[0].blocks[0], diagonal=False)
    other = replace(coded, tensors=(replace(coded.tensors[0], blocks=(block,)),))
    try:
        ((_, weight),) = decode_model(other)
    except FormatError:
        return
    assert isinstance(weight, QTensor) and not torch.equal(weight.codes, part.levels)


def ladder(**changes: object) -> Leveled:
    return replace(leveled(Block("ladder", 1, 0, 9), 9, 4, seed=6), **changes)  # type: ignore[arg-type]


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
@pytest.mark.parametrize("diagonal", [False, True])
def test_blocks_of_levels_that_nothing_writes_are_refused(changes: dict[str, object], diagonal: bool) -> None:
    part = leveled(Block("ladder", 1, 0, 9), 9, 4, diagonal=diagonal)
    coded = encode_model([Entry("ladder", torch.zeros(9, 4), (part,))], TRELLIS)
    blocks = (replace(coded.tensors[0].blocks[0], **changes),)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        check_model(replace(coded, tensors=(replace(coded.tensors[0], blocks=blocks),)))


@pytest.mark.parametrize("block", [CodedBlock(9, None, 4, b""), CodedBlock(9, "F32", None, b"")])
def test_only_levels_lie_along_diagonals(block: CodedBlock) -> None:
    model = CodedModel((CodedTensor("w", (9, 4), "F32", 1, (replace(block, diagonal=True),)),), b"", b"")
    with pytest.raises(FormatError, match="w has rows coded along diagonals that are no levels"):
        check_model(model)


@given(st.data(), st.sampled_from(["exponents", "levels"]), st.booleans())
@settings(deadline=None, max_examples=200)
def test_changed_streams_end_in_an_error_or_finite_weights(data: st.DataObject, which: str, diagonal: bool) -> None:
    part = leveled(Block("ladder", 1, 0, 9), 9, 4, seed=6, diagonal=diagonal)
    coded = encode_model([Entry("ladder", torch.zeros(9, 4), (part,))], TRELLIS)
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
