"""Codes into planes and back, for every width and any shape."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf_kernels.packing import LARGEST_CODE, Packed, pack, part_columns, parts, row_words, unpack
from quantgolf_kernels.reference import rows, weights

WIDTHS = range(2, 9)


def slow_field(packed: Packed, n: int, k: int) -> int:
    """One field, read from the planes as the module's docstring describes them."""
    each, count = part_columns(packed.bits, packed.columns), parts(packed.bits)
    part, at = divmod(k, each)
    found, low, start = 0, 0, 0
    for plane in (8, 4, 2, 1):
        if packed.bits & plane:
            pieces = count * plane // 32
            word = int(packed.data[n, start + part % pieces * each + at]) & 0xFFFFFFFF
            found |= (word >> (plane * (part // pieces)) & ((1 << plane) - 1)) << low
            low, start = low + plane, start + pieces * each
    return found


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from([None, *WIDTHS]), shape=st.tuples(st.integers(1, 9), st.integers(1, 300)),
    spread=st.floats(0.5, 200), seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.int16, torch.int32]),
)  # fmt: skip
def test_unpack_undoes_pack(
    bits: int | None, shape: tuple[int, int], spread: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.randn(shape, generator=generator) * spread).round().to(dtype)
    row, column = torch.rand(shape[0], generator=generator), torch.rand(shape[1], generator=generator)
    packed = pack(codes, row, column, bits=bits)
    assert packed.bits in WIDTHS and packed.shape == shape
    assert torch.equal(unpack(packed), codes.int())
    assert torch.equal(weights(packed), codes.float() * (row[:, None] * column[None, :]))


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_field_lies_where_the_layout_says(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 150), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    packed = pack(codes, torch.ones(3), bits=bits)
    assert packed.offset == 0 and packed.outliers is None
    assert [[slow_field(packed, n, k) for k in range(150)] for n in range(3)] == codes.tolist()


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_width_wastes_no_bits_where_columns_fill_the_parts(bits: int) -> None:
    assert row_words(bits, 1024) * 32 == 1024 * bits
    packed = pack(torch.zeros(8, 1024, dtype=torch.int8), torch.ones(8), bits=bits)
    assert packed.data.nbytes * 8 == 8 * 1024 * bits
    assert packed.bpw == bits + 32 / 1024  # one fp32 step a row


def test_the_width_is_the_one_that_makes_the_whole_smallest() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (64, 512), generator=generator, dtype=torch.int32)
    assert pack(codes, torch.ones(64)).bits == 4
    codes[0, :3] = 900  # three far ones are listed
    assert pack(codes, torch.ones(64)).bits == 4
    codes[:, :100] *= 2  # a fifth of them reach into the next width
    assert pack(codes, torch.ones(64)).bits == 5
    assert pack(codes.abs().clamp(max=15), torch.ones(64)).bits == 4  # without a sign


def test_columns_are_brought_about_one_without_a_change_of_any_weight() -> None:
    codes = torch.arange(-32, 32, dtype=torch.int32).view(4, 16)
    row, column = torch.tensor([0.3, 5.0, 1e-3, 7.7]), torch.rand(16) * 1e-6 + 1e-7
    packed = pack(codes, row, column)
    assert packed.column is not None and 0.25 <= float(packed.column.median()) <= 2
    assert torch.equal(weights(packed), codes.float() * (row[:, None] * column[None, :]))


def test_chosen_rows_are_those_rows() -> None:
    codes = torch.randint(-4, 4, (9, 40), dtype=torch.int32)
    codes[2, 3], codes[2, 39], codes[8, 0] = 70, -900, 1 << 20
    packed = pack(codes, torch.rand(9), torch.rand(40), bits=3)
    chosen = torch.tensor([8, 2, 2, 0])
    assert torch.equal(weights(rows(packed, chosen)), weights(packed)[chosen])
    assert torch.equal(weights(rows(packed, chosen[:0])), weights(packed)[chosen[:0]])


def test_scales_and_zeros_stay_as_narrow_as_they_come() -> None:
    codes = torch.randint(-8, 8, (5, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    scale, zero = torch.rand(5, 3).half() + 0.1, torch.randint(-8, 8, (5, 3), dtype=torch.int8)
    narrow = pack(codes, torch.ones(5), scale=scale, zero=zero, group_size=16)
    wide = pack(codes, torch.ones(5), scale=scale.double(), zero=zero.float(), group_size=16)
    assert wide.nbytes - narrow.nbytes == 5 * 3 * (2 + 3)
    of = torch.arange(40) // 16
    wanted = (codes.float() - zero[:, of].float()) * scale[:, of].float()
    assert torch.equal(weights(narrow), wanted) and torch.equal(weights(wide), wanted)
    assert torch.equal(weights(rows(narrow, torch.tensor([3, 0]))), wanted[[3, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(2, 3)}, r"codes are torch.float32 \[2, 3\], expected int8"),
        ({"codes": torch.zeros(6, dtype=torch.int8)}, r"codes are torch.int8 \[6\]"),
        ({"row": torch.ones(3)}, r"row is torch.float32 \[3\] on cpu, expected floating point \[2\]"),
        ({"column": torch.ones(2)}, r"column is torch.float32 \[2\]"),
        ({"column": torch.ones(3, dtype=torch.int32)}, "column is torch.int32"),
        ({"bits": 9}, "bits is 9, expected 2 to 8"),
        ({"bits": 1}, "bits is 1, expected 2 to 8"),
        ({"bits": 4.0}, "bits is 4.0, expected 2 to 8"),
        ({"group_size": 16}, "group_size is 16 without a scale"),
        ({"scale": torch.ones(2, 1)}, "group_size is 0 with a scale"),
        ({"scale": torch.ones(2, 1), "group_size": 24}, "group_size is 24 with a scale, expected a multiple of 16"),
        ({"zero": torch.ones(2, 1)}, "zero is given without a scale"),
        ({"scale": torch.ones(2, 1).char(), "group_size": 16}, "scale is torch.int8"),
        ({"scale": torch.ones(2, 1), "zero": torch.ones(2, 1).int(), "group_size": 16}, "zero is torch.int32"),
        ({"scale": torch.ones(2, 2), "group_size": 16}, r"scale is torch.float32 \[2, 2\]"),
        ({"codes": torch.full((2, 3), LARGEST_CODE + 1, dtype=torch.int32)}, "codes reach 16777217, expected at most"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"codes": torch.zeros(2, 3, dtype=torch.int8), "row": torch.ones(2), **change}
    with pytest.raises(ValueError, match=message):
        pack(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "data",
            torch.zeros(2, 4, dtype=torch.int64),
            r"packed data is torch.int64 \[2, 4\] on cpu, expected torch.int32",
        ),
        ("data", torch.zeros(2, 5, dtype=torch.int32), r"\[2, 5\] on cpu, expected torch.int32 \[2, 4\]"),
        ("row", torch.ones(2).half(), "packed row is torch.float16"),
        ("column", torch.ones(6)[::2], "packed column is .* contiguous; make it with pack"),
        ("column", torch.ones(3, device="meta"), "on meta, expected torch.float32 .* on cpu"),
    ],
)
def test_a_packed_matrix_is_what_kernels_take_it_for(name: str, tensor: torch.Tensor, message: str) -> None:
    packed = pack(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2), torch.ones(3), bits=4)
    assert packed.data.shape == (2, 4)
    with pytest.raises(ValueError, match=message):
        replace(packed, **{name: tensor})
