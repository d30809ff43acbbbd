"""Bounds of what decoders take, from both sides: the last number that is taken, and the first that is not."""

import numpy as np
import pytest
import torch

from quantgolf.encode import Entry, Quantized, decode_model, decode_stream, encode_codes, encode_model
from quantgolf.encode.exponents import check_exponents, check_levels, decode_exponents, encode_exponents
from quantgolf.encode.groups import check_groups
from quantgolf.encode.levels import Frame, Levels, decode_levels, decode_levels_on, encode_levels
from quantgolf.encode.table import read_table, write_table
from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import FormatError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor, Exponents, Groups

WHOLE = write_table(np.eye(1, 256, 128, dtype=np.int64)[0] * 2)  # the table of a symbol that has the whole share
START = (2**16).to_bytes(4, "little")


def exponents(row: int, column: int, spread: int) -> Exponents:
    return Exponents(torch.tensor([row], dtype=torch.int16), torch.tensor([column], dtype=torch.int16), spread)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("end", [-4096, 4096])
def test_exponents_reach_both_ends_and_no_further(side: int, end: int) -> None:
    """Of a matrix without weights, because products of the others overflow."""
    shape = (1 - side, side)

    def given(value: int, spread: int) -> Exponents:
        sides = [torch.full((count,), value, dtype=torch.int16) for count in shape]
        return Exponents(*sides, spread)

    check_exponents("w", given(end, end), shape)
    (found,) = decode_exponents(encode_exponents([("w", given(end, end))]), [("w", shape)])
    assert (found.row if side == 0 else found.column).tolist() == [end] and found.spread == end
    beyond = end + end // 4096
    for wrong in (given(beyond, 0), given(0, beyond)):
        with pytest.raises(FormatError, match="expected ±4096"):
            check_exponents("w", wrong, shape)
        with pytest.raises(FormatError, match=r"expected ±4096|beyond ±4096"):
            decode_exponents(encode_exponents([("w", wrong)]), [("w", shape)])


@pytest.mark.parametrize(
    "fine", [torch.zeros(3, dtype=torch.int8), torch.zeros(2, dtype=torch.int16), torch.zeros(2, 1, dtype=torch.int8)]
)
@pytest.mark.parametrize("side", ["fine_row", "fine_column"])
def test_fine_steps_have_their_dtype_and_shape(fine: torch.Tensor, side: str) -> None:
    short = torch.zeros(2, dtype=torch.int16)
    with pytest.raises(FormatError, match=f"fine {side[5:]}s"):
        check_exponents("w", Exponents(short, short, 0, **{side: fine}), (2, 2))


@pytest.mark.parametrize(("values", "shape"), [(torch.zeros(2).int(), 2), (torch.zeros(3).short(), 2)])
@pytest.mark.parametrize("side", [0, 1])
def test_exponents_have_their_dtype_and_shape(values: torch.Tensor, shape: int, side: int) -> None:
    sides = [torch.zeros(2).short(), torch.zeros(2).short()]
    sides[side] = values
    with pytest.raises(FormatError, match=f"{('row', 'column')[side]} exponents"):
        check_exponents("w", Exponents(*sides, 0), (2, 2))


def test_products_are_finite() -> None:
    """2^127 is the largest power of two of fp32, 508 quarter octaves."""
    check_levels("w", exponents(508, 0, 0), 1)
    check_levels("w", exponents(507, 0, 0), 2)
    for given, largest in (((512, 0, 0), 1), ((500, 12, 0), 1), ((508, 0, 0), 2)):
        with pytest.raises(FormatError, match="products that are finite in fp32"):
            check_levels("w", exponents(*given), largest)
    none = torch.zeros(0, dtype=torch.int16)
    check_levels("w", Exponents(none, torch.tensor([4096]).short(), 0), 1)
    check_levels("w", Exponents(torch.tensor([4096]).short(), none, 0), 1)


def test_roots_reach_their_largest_and_no_further() -> None:
    roots = np.zeros(256, dtype=np.int64)
    roots[3:5] = 65535, 1
    assert np.array_equal(read_table(Cursor(write_table(roots), "")), roots)
    roots[4] = 65536
    with pytest.raises(FormatError, match="holds 65536, expected 0 to 65535"):
        read_table(Cursor(write_table(roots), ""))
    roots[3:5] = 65536, 0
    with pytest.raises(FormatError, match=r"holds 65536, expected 0 to 65535|a difference above 17 bits"):
        read_table(Cursor(write_table(roots), ""))
    with pytest.raises(FormatError, match="a difference above 17 bits"):
        read_table(Cursor(bytes([0, 0]) + bytes(3), ""))
    below = np.packbits([1, 0, 1, 0, 0, 0, 0, 0], bitorder="little").tobytes()  # differences 0 and -1
    with pytest.raises(FormatError, match="holds -1, expected 0 to 65535"):
        read_table(Cursor(bytes([0, 1]) + below, ""))


def test_streams_unfold_so_far_and_no_further() -> None:
    for payload, count, message in (
        (b"\0", 32768, "asks for 32768 bytes"),
        (b"\0", 32769, "declares 32769 symbols in 1 bytes"),
        (b"\3", 1, "names codec 3, expected"),
        (b"\2" + WHOLE + varint(0) + START, 2, "has 0 lanes"),
        (b"\2" + WHOLE + varint(3) + 3 * START, 2, "has 3 lanes"),
        (b"\2" + WHOLE + varint(2) + 2 * START + b"\0", 2, "expected an even number"),
        (b"\2" + WHOLE + varint(1) + b"\1\0\1\0", 2, "does not end where its encoder began"),
        (b"\2" + WHOLE + varint(1) + START + b"\0\0", 2, "does not end where its encoder began"),
    ):
        with pytest.raises(FormatError, match=message):
            decode_stream(payload, count)
    for lanes in (1, 2):
        assert decode_stream(b"\2" + WHOLE + varint(lanes) + lanes * START, 2).tolist() == [128, 128]


def test_a_stream_of_no_levels_is_empty() -> None:
    """On a GPU too, which is not asked for anything then."""
    none = Frame((0, 1), 0, np.zeros(0, dtype=np.int16), np.zeros(1, dtype=np.int16))
    assert decode_levels(b"", [none], Trellis(8))[0].shape == (0, 1)
    assert [each.shape for each in decode_levels_on(torch.device("cpu"), b"", [none], Trellis(8))] == [(0, 1)]
    with pytest.raises(FormatError, match="1 bytes too many"):
        decode_levels(b"\0", [none], Trellis(8))
    with pytest.raises(FormatError, match="1 bytes too many"):
        list(decode_levels_on(torch.device("cpu"), b"\0", [none], Trellis(8)))


def frame(spread: int = 0, rows: int = 1) -> Frame:
    return Frame((rows, 1), spread, np.arange(rows, dtype=np.int16), np.zeros(1, dtype=np.int16))


def test_states_are_at_least_two_to_the_sixteenth() -> None:
    """One below would be mended by the next word, so that a stream had two spellings."""
    zero = write_table(np.eye(1, 256, 127, dtype=np.int64)[0] * 2)
    with pytest.raises(FormatError, match="does not end where its encoder began"):
        decode_levels(b"\0" + zero + b"\0" + (1).to_bytes(4, "little") + bytes(2), [frame()], Trellis(1))


def test_models_are_checked_before_they_are_decoded() -> None:
    tensor = CodedTensor("w", (1,) * 17, "U8", 0, (CodedBlock(1, "U8", None, b""),))
    with pytest.raises(FormatError, match="expected up to 16 sizes"):
        list(decode_model(CodedModel((tensor,), b"", b"\2\0\1")))


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_codes_reach_both_ends_of_their_width_and_no_further(bits: int, zeros: bool) -> None:
    half = 2 ** (bits - 1)
    zero = torch.zeros(1, 1, dtype=torch.int8) if zeros else None
    steps = Groups(torch.ones(1, 1).half(), zero, 2) if zeros else torch.ones(1).half()

    def decoded(*codes: int) -> list[object]:
        stream = encode_codes(torch.tensor([codes], dtype=torch.int8))
        part = Quantized(Block("w", 1, 0, 1), steps, bits, stream)
        return list(decode_model(encode_model([Entry("w", torch.zeros(1, 2), (part,))])))

    least = -half if zeros else 1 - half
    assert len(decoded(least, half - 1)) == 1
    for codes in ((0, half), (least - 1, 0)):
        if min(codes) >= -128 and max(codes) <= 127:
            with pytest.raises(FormatError, match=f"expected {least} to {half - 1} for {bits} bits"):
                decoded(*codes)


def test_truth_values_are_none_or_one() -> None:
    assert len(list(decode_model(encode_model([Entry("w", torch.zeros(0, dtype=torch.bool))])))) == 1
    tensor = CodedTensor("w", (2,), "BOOL", 0, (CodedBlock(1, "BOOL", None, b""),))
    assert len(list(decode_model(CodedModel((tensor,), b"", b"\3\0\0\1")))) == 1
    with pytest.raises(FormatError, match="a truth value of 2"):
        list(decode_model(CodedModel((tensor,), b"", b"\3\0\0\2")))


@pytest.mark.parametrize("spread", [-(2**15), 2**15 - 1])
def test_spreads_are_within_int16(spread: int) -> None:
    zero = write_table(np.eye(1, 256, 127, dtype=np.int64)[0] * 2)
    payload = b"\0" + zero + b"\0" + START
    assert decode_levels(payload, [frame(spread)], Trellis(1))[0].tolist() == [[0]]
    with pytest.raises(FormatError, match="one within int16"):
        decode_levels(payload, [frame(spread + (1 if spread > 0 else -1))], Trellis(1))


@pytest.mark.parametrize(
    ("shape", "dtypes", "message"),
    [
        ((2, 1), (np.int16, np.int16), "column steps"),
        ((1, 2), (np.int16, np.int16), "column steps"),
        ((1, 1), (np.int32, np.int16), "expected int16"),
        ((1, 1), (np.int16, np.int32), "expected int16"),
    ],
)
def test_frames_fit_their_matrix(shape: tuple[int, int], dtypes: tuple[type, type], message: str) -> None:
    row, column = (np.zeros(1, dtype=each) for each in dtypes)
    with pytest.raises(FormatError, match=message):
        decode_levels(b"", [Frame(shape, 0, row, column)], Trellis(1))


@pytest.mark.parametrize("more", [63, 64])
def test_classes_are_at_most_64(more: int) -> None:
    zero = write_table(np.eye(1, 256, 127, dtype=np.int64)[0] * 2)
    payload = varint(more) + bytes(more) + zero * (more + 1) + b"\0" + START
    if more == 63:
        assert not decode_levels(payload, [frame(rows=70)], Trellis(1))[0].any()
    else:
        with pytest.raises(FormatError, match="65 classes, expected at most 64"):
            decode_levels(payload, [frame(rows=70)], Trellis(1))


@pytest.mark.parametrize("bits", [2, 8])
def test_groups_reach_both_ends_and_no_further(bits: int) -> None:
    half = 2 ** (bits - 1)
    for exponent in (-1904, 1904):
        check_groups("w", Groups(torch.tensor([[exponent]]).short(), None, 1), (1, 1), bits)
        with pytest.raises(FormatError, match="expected exponents within ±1904"):
            check_groups("w", Groups(torch.tensor([[exponent + exponent // 1904]]).short(), None, 1), (1, 1), bits)
    ones = torch.ones(1, 1).half()
    for zero in (-half, half - 1):
        check_groups("w", Groups(ones, torch.tensor([[zero]], dtype=torch.int8), 1), (1, 1), bits)
    for zero in (-half - 1, half) if bits < 8 else ():
        with pytest.raises(FormatError, match="has zeros from"):
            check_groups("w", Groups(ones, torch.tensor([[zero]], dtype=torch.int8), 1), (1, 1), bits)
    check_groups("w", Groups(0 * ones, None, 1), (1, 1), bits)
    for wrong in (-ones, ones / 0, 0 * ones / 0):
        with pytest.raises(FormatError, match="negative or not finite"):
            check_groups("w", Groups(wrong, None, 1), (1, 1), bits)
    for wrong in (1, 9):
        with pytest.raises(FormatError, match="expected 2 to 8"):
            check_groups("w", Groups(ones, None, 1), (1, 1), wrong)


def test_there_are_as_many_escapes_as_weights_and_no_more() -> None:
    """What is read of them before any weight takes memory."""
    matrix = Levels(np.array([[10**6, -(10**6)]], dtype=np.int32), 0, np.zeros(1, np.int16), np.zeros(2, np.int16))
    payload = encode_levels([matrix], Trellis(1))
    assert decode_levels(payload, [matrix.frame], Trellis(1))[0].tolist() == [[10**6, -(10**6)]]
    at = payload.index(b"\x02" + varint(10**6 - 127))
    more = payload[:at] + b"\x03" + varint(5) + payload[at + 1 :]
    with pytest.raises(FormatError, match="has 3 escapes, expected at most 2, its weights"):
        decode_levels(more, [matrix.frame], Trellis(1))
