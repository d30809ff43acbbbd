"""Models that nothing writes, and streams that do not fit them, are refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quantgolf.encode import Entry, Quantized, check_model, decode_model, encode_codes, encode_model
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor


def one(rows: int, columns: int, bits: int = 4, **place: object) -> Quantized:
    """A matrix of parameter w; `place` changes where it lies."""
    given = {"parameter": "w", "lead": 1, "start": 0, "stop": rows} | place
    generator = torch.Generator().manual_seed(0)
    top = 2 ** (min(bits, 8) - 1) - 1
    codes = torch.randint(-top, top + 1, (rows, columns), generator=generator).to(torch.int8)
    steps = (torch.rand(rows, generator=generator) + 0.01).half()
    return Quantized(Block(**given), steps, min(bits, 8), encode_codes(codes))  # type: ignore[arg-type]


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
        (Entry("w", torch.zeros(5, 7), (replace(one(5, 7), steps=torch.ones(5)),)), "float32 steps"),
        (Entry("w", torch.zeros(1, 3), (replace(one(1, 3), steps=torch.tensor([np.inf]).half()),)), "expected finite"),
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
        check_model(replace(coded, tensors=(replace(coded.tensors[0], **changes),)), 2**36)


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
    with pytest.raises(FormatError, match="w has codes from -7 to 7, expected -1 to 1 for 2 bits without zeros"):
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
