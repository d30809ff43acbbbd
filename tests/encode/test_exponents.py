"""Exponents: they return exactly, as few bits, and stand for the same fp32 numbers everywhere."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.encode.exponents import decode_exponents, encode_exponents
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError
from quantgolf.types import Exponents


def sides(smallest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(smallest, smallest + 255), max_size=6)


def fine(seed: int, count: int) -> torch.Tensor | None:
    rng = np.random.default_rng(seed)
    return None if seed == 0 else torch.from_numpy(rng.integers(-128, 128, count).astype(np.int8) * (seed > 2))


@given(st.lists(st.tuples(st.integers(-4096, 0).flatmap(sides), st.integers(-4096, 0).flatmap(sides),
                          st.integers(-4096, 4096), st.integers(0, 9)), min_size=1, max_size=4))  # fmt: skip
@settings(deadline=None)
def test_exponents_return(drawn: list[tuple[list[int], list[int], int, int]]) -> None:
    given_ones = [
        Exponents(torch.tensor(row, dtype=torch.int16), torch.tensor(column, dtype=torch.int16), spread,
                  fine(tuned, len(row)), fine(tuned // 3, len(column)))
        for row, column, spread, tuned in drawn
    ]  # fmt: skip
    payload = encode_exponents([("w", each) for each in given_ones])
    found = decode_exponents(payload, [("w", (len(each.row), len(each.column))) for each in given_ones])
    for one, other in zip(given_ones, found, strict=True):
        assert torch.equal(one.row, other.row) and torch.equal(one.column, other.column) and one.spread == other.spread
        for sides in ((one.fine_row, other.fine_row), (one.fine_column, other.fine_column)):
            mine, back = (torch.zeros(0) if side is None or not side.any() else side for side in sides)
            assert torch.equal(mine, back)  # nothing but zeros comes back as None


def test_steps_are_the_correctly_rounded_powers() -> None:
    """Against integers: a power of two times a mantissa of 24 bits, rounded half to even where it is subnormal."""
    with localcontext(prec=40):
        mantissas = [int((2 ** (Decimal(i) / 128) * 2**23).to_integral_value()) for i in range(128)]
    assert [mantissas[i] for i in range(0, 128, 32)] == [0x800000, 0x9837F0, 0xB504F3, 0xD744FD]
    exponents = torch.arange(-700, 513, dtype=torch.int16)
    fine = (torch.arange(-700, 513) * 37 % 256 - 128).to(torch.int8)
    found = Exponents(exponents, torch.zeros(1, dtype=torch.int16), 0, fine).steps()
    assert found.row.dtype == torch.float32 and found.column is not None and found.column.tolist() == [1.0]
    for e, f, step in zip(exponents.tolist(), fine.tolist(), found.row.tolist(), strict=True):
        p = 32 * e + f
        exact = math.ldexp(mantissas[p % 128], p // 128 - 23)  # a double holds it
        expected = math.inf if p >= 128 * 128 else round(exact * 2.0**149) / 2.0**149 if p < -126 * 128 else exact
        assert step == expected, p


def test_a_few_bits_each() -> None:
    rng = np.random.default_rng(0)
    row, column = (torch.from_numpy(rng.normal(-40, 2, size).round().astype(np.int16)) for size in (4000, 1000))
    assert len(encode_exponents([("w", Exponents(row, column, 0))])) * 8 < 3.3 * 5000


def split(values: bytes) -> bytes:
    return varint(1 + len(values)) + b"\0" + values


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "asks for"),
        (bytes(3) + split(b"\1\2") + split(b"\0"), "smallest exponent of 0 .* no row or column has"),
        (varint(2 * 4097) + bytes(2) + split(b"\0\0") + split(b"\0"), "smallest exponent of 4097"),
        (varint(2**62) + bytes(2) + split(b"\0\0") + split(b"\0"), "smallest exponent of"),
        (varint(2 * 4000) + bytes(2) + split(b"\0\xff") + split(b"\0"), "from 4000 to 4255, expected ±4096"),
        (bytes(2) + varint(2 * 4097) + split(b"\0\0") + split(b"\0"), "spread of 4097"),
        (varint(2 * 512) + bytes(2) + split(b"\0\0") + split(b"\0"), "finite in fp32"),
        (bytes(3) + split(b"\0") + split(b"\0"), "asks for"),
        (bytes(3) + split(b"\0\0") + split(b"\0\0"), "too many"),
        (bytes(3) + split(b"\0\0") + split(b"\0") + b"\0", "asks for"),
        (bytes(3) + split(b"\0\0") + split(b"\0") + b"\0\0", "two empty streams"),
        (bytes(3) + split(b"\0\0") + split(b"\0") + split(b"\x80\x80") + b"\0", "tunes none"),
        (bytes(3) + split(b"\0\0") + split(b"\0") + split(b"\x80\x81") + b"\0\0", "too many"),
        (bytes(3) + varint(2**62), "asks for"),
    ],
)
def test_bytes_that_nothing_writes_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_exponents(payload, [("w", (2, 1))])


def test_a_matrix_without_columns_has_a_smallest_one_of_zero() -> None:
    with pytest.raises(FormatError, match="no row or column has"):
        decode_exponents(bytes([0, 2, 0]) + split(b"\0") + varint(0), [("w", (1, 0))])
    (found,) = decode_exponents(bytes([3, 0, 0]) + split(b"\0") + varint(0), [("w", (1, 0))])
    assert found.row.tolist() == [-2] and found.column.shape == (0,)


def test_counts_are_bound_by_the_bytes() -> None:
    with pytest.raises(FormatError, match="declares"):
        decode_exponents(bytes(3) + split(b"\0"), [("w", (2**33, 1))])
