"""Frequency tables: always exactly 2^14, never a zero for a symbol that occurs, and back from their bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.encode.table import SYMBOLS, TOTAL, choose_roots, frequencies, read_table, write_table
from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import FormatError

COUNTS = st.dictionaries(st.integers(0, 255), st.integers(1, 10**9), min_size=1)


@given(COUNTS)
@settings(deadline=None)
def test_tables_sum_up_and_return(histogram: dict[int, int]) -> None:
    counts = np.zeros(SYMBOLS, dtype=np.int64)
    counts[list(histogram)] = list(histogram.values())
    roots = choose_roots(counts)
    frequency = frequencies(roots)
    assert frequency.sum() == TOTAL
    assert np.array_equal(frequency > 0, counts > 0)
    cursor = Cursor(write_table(roots), "test")
    assert np.array_equal(read_table(cursor), roots)
    cursor.finish()


def test_golden_table() -> None:
    roots = np.zeros(SYMBOLS, dtype=np.int64)
    roots[[126, 127, 128, 129, 130]] = 2, 9, 20, 9, 2
    assert frequencies(roots)[126:131].tolist() == [34, 2136, 12043, 2136, 35]
    assert write_table(roots).hex() == GOLDEN


GOLDEN = "7e820c0f0f1a1a"


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x05\x05", b"\x00\xff" + bytes(40), b"\x00\x03\x02\x02\x02"])
def test_tables_that_nothing_writes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        frequencies(read_table(Cursor(data, "test")))


@given(st.binary(max_size=80))
def test_no_table_gets_past_its_bounds(data: bytes) -> None:
    cursor = Cursor(data, "test")
    try:
        roots = read_table(cursor)
        frequency = frequencies(roots)
    except FormatError:
        return
    assert frequency.sum() == TOTAL and frequency.min() >= 0
    assert write_table(roots) == data[: cursor.at]


@pytest.mark.parametrize(
    ("bits", "wrong"),
    [("1 00111", True), ("00111 00101", True), ("00111 1 01", True), ("00111 1 00", False), ("00111 010", False)],
)  # fmt: skip
def test_a_table_has_one_spelling(bits: str, wrong: bool) -> None:
    """Roots 0 at the first end, at the last, and a bit behind."""
    ones = np.array([int(bit) for bit in bits.replace(" ", "")], dtype=np.uint8)
    cursor = Cursor(bytes([9, 10]) + np.packbits(ones, bitorder="little").tobytes(), "test")
    if wrong:
        with pytest.raises(FormatError, match="spells a table as no encoder does"):
            read_table(cursor)
    else:
        assert read_table(cursor)[9:11].min() > 0


@given(st.integers(0, 2**63 - 1))
def test_numbers_return_from_their_bytes(value: int) -> None:
    cursor = Cursor(varint(value), "test")
    assert cursor.varint() == value
    cursor.finish()


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x01"])
def test_numbers_have_one_spelling_and_an_end(data: bytes) -> None:
    with pytest.raises(FormatError):
        Cursor(data, "test").varint()
