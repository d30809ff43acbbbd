"""The checks within the compiled loops of the decoders, on streams small enough for those loops as plain Python too.

`benchmarks/reader_mutants.py` runs them so: compiled, a loop whose check is gone would read beyond its arrays.
"""

import numpy as np
import pytest

from quantgolf.encode import rans
from quantgolf.encode.levels import Frame, Levels, decode_levels, encode_levels
from quantgolf.encode.table import choose_roots, frequencies, write_table
from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import FormatError
from quantgolf.solve.trellis import Trellis

SCALAR = Trellis(1, 8)
LARGEST = 2**31 - 1


def frame(rows: int) -> Frame:
    return Frame((rows, 1), 0, np.zeros(rows, dtype=np.int16), np.zeros(1, dtype=np.int16))


def encoded(levels: list[int]) -> bytes:
    matrix = np.array(levels, dtype=np.int32)[:, None]
    known = frame(len(levels))
    return encode_levels([Levels(matrix, known.spread, known.row, known.column)], SCALAR)


def decoded(payload: bytes, rows: int) -> list[int]:
    return decode_levels(payload, [frame(rows)], SCALAR)[0][:, 0].tolist()


def test_words_of_codes_run_out() -> None:
    symbols = (np.arange(400) * 37 % 11).astype(np.uint8)
    frequency = frequencies(choose_roots(np.bincount(symbols, minlength=256)))
    payload = rans.encode(symbols, frequency)
    assert np.array_equal(rans.decode(Cursor(payload, "codes"), 400, frequency), symbols)
    for cut in (2, 20):
        with pytest.raises(FormatError, match="codes does not end where its encoder began"):
            rans.decode(Cursor(payload[:-cut], "codes"), 400, frequency)
    with pytest.raises(FormatError, match="does not end"):
        rans.decode(Cursor(payload + b"\0\0", "codes"), 400, frequency)


def test_words_of_levels_run_out() -> None:
    levels = [at * 37 % 11 - 5 for at in range(400)]
    payload = encoded(levels)
    assert decoded(payload, 400) == levels
    for changed in (payload[:-2], payload[:-20], payload + b"\0\0"):
        with pytest.raises(FormatError, match="does not end where its encoder began"):
            decoded(changed, 400)


def test_escapes_run_out_or_are_too_many() -> None:
    levels = [0, 500, -3, 1]
    payload = encoded(levels)
    escape = varint(1) + varint(500 - 127)
    assert decoded(payload, 4) == levels and payload.count(escape) == 1
    for others in (varint(0), varint(2) + escape[1:] + varint(5)):
        with pytest.raises(FormatError, match="does not end where its encoder began"):
            decoded(payload.replace(escape, others), 4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_levels_reach_to_their_largest_and_no_further(sign: int) -> None:
    levels = [0, sign * LARGEST, sign]
    payload = encoded(levels)
    escape = varint(1) + varint(LARGEST - 127)
    assert decoded(payload, 3) == levels and payload.count(escape) == 1
    for beyond in (LARGEST - 126, LARGEST, 2**63 - 1):
        with pytest.raises(FormatError, match="does not end where its encoder began"):
            decoded(payload.replace(escape, varint(1) + varint(beyond)), 3)


def test_a_context_without_a_table_decodes_nothing() -> None:
    """The state and the word would end where they have to if the symbol that stands for none were taken."""
    state, word = (2**16 + 1).to_bytes(4, "little"), bytes(2)
    with pytest.raises(FormatError, match="does not end where its encoder began"):
        decoded(varint(0) + b"\xff" + varint(1) + varint(5) + state + word, 1)


def test_the_last_symbol_is_in_no_table() -> None:
    roots = np.zeros(256, dtype=np.int64)
    roots[127], roots[255] = 9, 9
    with pytest.raises(FormatError, match="symbol 255, which no level has"):
        decoded(varint(0) + write_table(roots) + varint(0) + (2**16).to_bytes(4, "little"), 1)
