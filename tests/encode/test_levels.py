"""Levels: whatever a trellis allows comes back, from our decoder and from a second reader; nothing else gets in."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantgolf.encode.lanes import MOST_CLASSES, lane_starts
from quantgolf.encode.levels import Frame, Levels, decode_levels, encode_levels, predicted_bits
from quantgolf.encode.table import SYMBOLS, choose_roots, frequencies, read_table, write_table
from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis


def second_reader(payload: bytes, frames: Sequence[Frame], trellis: Trellis) -> list[NDArray[np.int64]]:
    """A decoder from the module docstring alone, all lanes at once, as an exported decoder would have it."""
    c, scalar, n = Cursor(payload, "test"), trellis.states == 1, sum(f.shape[0] * f.shape[1] for f in frames)
    spread = np.concatenate([(f.spread - f.row[:, None].astype(int) - f.column).T.ravel() for f in frames])
    fresh = np.concatenate([np.tile(np.arange(f.shape[0]) % trellis.restart == 0, f.shape[1]) for f in frames])
    thresholds = np.cumsum([spread.min()] + [1 + c.varint() for _ in range(c.varint())])
    frequency = np.zeros((2 * len(thresholds), 256), dtype=np.int64)
    for context in range(0, len(frequency), 1 + scalar):
        if c.data[c.at] == 255:
            c.take(1)
        else:
            frequency[context] = frequencies(read_table(c))
    start = np.cumsum(frequency, axis=1) - frequency
    slots = np.array(
        [np.resize(np.repeat(np.arange(256), f), 16384) for f in np.where(frequency.any(1), frequency.T, 64).T]
    )
    context = 2 * np.searchsorted(thresholds[1:], spread, side="right")
    escapes = iter([c.varint() for _ in range(c.varint())])
    segments, lanes = np.flatnonzero(fresh), max(1, n // 32768)
    at = np.append(segments, n)[np.searchsorted(segments, np.arange(lanes) * n // lanes)]
    end, state, found = np.append(at[1:], n), np.zeros(lanes, dtype=int), np.zeros(n, dtype=int)
    x, words, used = np.frombuffer(c.take(4 * lanes), "<u4").astype(int), np.frombuffer(c.rest(), "<u2").astype(int), 0
    while len(lane := np.flatnonzero(at < end)):
        place, s = at[lane], np.where(fresh[at[lane]], 0, state[lane])
        odd, slot = s & 1, x[lane] & 16383
        which = context[place] + odd
        symbol = slots[which, slot]
        y = frequency[which, symbol] * (x[lane] >> 14) + slot - start[which, symbol]
        low = y < 65536
        y[low] = y[low] << 16 | words[used : (used := used + low.sum())]
        k = symbol - 127
        for i in np.flatnonzero(abs(k) == 127):
            k[i] += np.sign(k[i]) * next(escapes)
        found[place] = k if scalar else 2 * k - odd * np.sign(k)
        x[lane], state[lane] = y, trellis.after[s, k & 1]
        at[lane] += 1
    assert used == len(words) and (x == 65536).all() and not list(escapes)
    cuts = np.cumsum([f.shape[0] * f.shape[1] for f in frames])[:-1]
    return [part.reshape(f.shape[::-1]).T for part, f in zip(np.split(found, cuts), frames, strict=True)]


def allowed(k: NDArray[np.int64], trellis: Trellis) -> NDArray[np.int32]:
    """The levels of indices k [N, K], by the definition."""
    if trellis.states == 1:
        return k.astype(np.int32)
    levels = np.empty(k.shape, dtype=np.int32)
    state = np.zeros(k.shape[1], dtype=np.int64)
    for i, row in enumerate(k):
        state = np.zeros_like(state) if i % trellis.restart == 0 else state
        levels[i] = 2 * row - (state & 1) * np.sign(row)
        state = trellis.after[state, row & 1]
    return levels


def gaussian(rng: np.random.Generator, shape: tuple[int, int], trellis: Trellis, spread: int = -12) -> Levels:
    """A matrix as the solver leaves it: steps that vary by row and column, columns quantized one by one."""
    row = rng.integers(spread - 16, spread - 5, shape[0]).astype(np.int16)
    column = rng.integers(-4, 6, shape[1]).astype(np.int16)
    steps = 2.0 ** ((row[:, None].astype(int) + column) / 4)
    targets = rng.normal(0, 2 ** (spread / 4), shape) / steps
    levels = np.stack([trellis.quantize(targets[:, j]) for j in range(shape[1])], axis=1)
    return Levels(levels, spread, row, column)


def check(matrices: list[Levels], trellis: Trellis) -> bytes:
    payload = encode_levels(matrices, trellis)
    frames = [matrix.frame for matrix in matrices]
    decoded = decode_levels(payload, frames, trellis)
    assert len(decoded) == len(matrices)
    for matrix, found in zip(matrices, decoded, strict=True):
        assert found.dtype == np.int32 and np.array_equal(found, matrix.levels)
    if payload:
        for matrix, again in zip(matrices, second_reader(payload, frames, trellis), strict=True):
            assert np.array_equal(again, matrix.levels)
    return payload


INDEX = st.one_of(st.integers(-3, 3), st.integers(-130, 130), st.sampled_from([-(2**30) + 1, -127, 0, 127, 2**30 - 1]))
INT16 = st.one_of(st.integers(-5, 5), st.integers(-(2**15), 2**15 - 1))


@given(
    st.data(),
    st.sampled_from([1, 4, 8, 32]),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_levels_return(data: st.DataObject, states: int, restart: int, shapes: list[tuple[int, int]]) -> None:
    trellis = Trellis(states, restart)
    matrices = []
    for rows, columns in shapes:
        k = np.array(data.draw(st.lists(INDEX, min_size=rows * columns, max_size=rows * columns)), dtype=np.int64)
        row = np.array(data.draw(st.lists(INT16, min_size=rows, max_size=rows)), dtype=np.int16)
        column = np.array(data.draw(st.lists(INT16, min_size=columns, max_size=columns)), dtype=np.int16)
        matrices.append(Levels(allowed(k.reshape(rows, columns), trellis), data.draw(INT16), row, column))
    assert (check(matrices, trellis) == b"") == (sum(rows * columns for rows, columns in shapes) == 0)


@pytest.mark.parametrize(("states", "restart"), [(1, 128), (8, 128), (8, 100), (32, 200_000)])
def test_many_lanes_return(states: int, restart: int) -> None:
    trellis, rng = Trellis(states, restart), np.random.default_rng(states)
    shapes = [(300, 180), (1, 77), (0, 5), (40_000, 1), (129, 100)]
    matrices = [
        gaussian(rng, shape, trellis, spread) for shape, spread in zip(shapes, (-12, 3, 0, -20, 7), strict=True)
    ]
    assert sum(matrix.levels.size for matrix in matrices) // 32768 == 3
    check(matrices, trellis)


@pytest.mark.parametrize("states", [1, 8])
def test_constant_zeros_cost_their_lanes(states: int) -> None:
    zeros = Levels(np.zeros((512, 130), np.int32), 0, np.zeros(512, np.int16), np.zeros(130, np.int16))
    assert len(check([zeros], Trellis(states))) <= 4 * 2 + 8


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 1000)), min_size=1, max_size=4), st.integers(1, 400))
@settings(deadline=None)
def test_lanes_begin_where_segments_do(shapes: list[tuple[int, int]], restart: int) -> None:
    segments, at = [], 0
    for rows, columns in shapes:
        segments += [at + j * rows + i for j in range(columns) for i in range(0, rows, restart)]
        at += rows * columns
    if at:
        lanes = max(1, at // 32768)
        expected = [next((s for s in segments if s >= lane * at // lanes), at) for lane in range(lanes)]
        assert lane_starts(np.array(shapes), restart).tolist() == expected


def test_golden_bytes() -> None:
    trellis = Trellis(4, 3)
    k = np.array([[0, 1, -1, 2, 0], [1, 0, 0, -1, 150], [-2, 0, 1, 0, 0], [0, -1, 1, 3, -127]])
    row, column = np.array([-2, 0, 1, -1], np.int16), np.array([0, 0, 3, -3, -20], np.int16)
    payload = check([Levels(allowed(k, trellis), 1, row, column)], trellis)
    assert payload.hex() == GOLDEN


GOLDEN = "031700007e8258a7017d7f58243cfefe3001ff00003001ff7f7f3001ff021700c361bd5d309a"


@pytest.mark.parametrize("states", [1, 4, 8])
def test_bytes_are_the_predicted_ones_and_near_the_entropy(states: int) -> None:
    trellis, rng = Trellis(states), np.random.default_rng(5)
    matrices = [gaussian(rng, (256, 200), trellis, spread) for spread in (-12, -3, 0, 5)]
    payload = check(matrices, trellis)
    predicted = predicted_bits(matrices, trellis)
    assert abs(len(payload) * 8 / predicted - 1) < 0.0005
    # Against the ideal code for each spread and parity apart, its tables free: 204,800 weights share our tables' bytes.
    spreads = np.concatenate([(m.spread - m.row[:, None].astype(int) - m.column).T.ravel() for m in matrices])
    levels = np.concatenate([m.levels.T.ravel() for m in matrices]).astype(int)
    odd = np.concatenate([parity_of(m.levels, trellis).T.ravel() for m in matrices])
    ideal = 0.0
    for key in np.unique(2 * spreads + odd):
        counts = np.unique(levels[2 * spreads + odd == key], return_counts=True)[1]
        ideal -= (counts * np.log2(counts / counts.sum())).sum()
    assert len(payload) * 8 < 1.007 * ideal


def parity_of(levels: NDArray[np.int32], trellis: Trellis) -> NDArray[np.int64]:
    state = np.zeros(levels.shape[1], dtype=np.int64)
    odd = np.empty(levels.shape, dtype=np.int64)
    for i, row in enumerate(levels.astype(np.int64)):
        state = np.zeros_like(state) if i % trellis.restart == 0 else state
        odd[i] = state & 1
        state = trellis.after[state, (row + odd[i] * np.sign(row)) // 2 & 1]
    return odd


def test_many_spreads_share_classes() -> None:
    trellis = Trellis(8)
    wide = np.arange(-150, 150, dtype=np.int16)
    k = np.random.default_rng(1).normal(0, 2.0 ** (np.arange(300)[:, None] / 60), (300, 150)).round().astype(np.int64)
    payload = check([Levels(allowed(k, trellis), 0, -wide, np.zeros(150, np.int16))], trellis)
    assert 1 < payload[0] < MOST_CLASSES


def test_every_cut_and_every_flip_is_noticed() -> None:
    trellis, rng = Trellis(8, 16), np.random.default_rng(3)
    matrices = [gaussian(rng, (40, 5), trellis), gaussian(rng, (7, 4), trellis, 3)]
    k = rng.integers(-140, 140, (5, 2))
    matrices.append(Levels(allowed(k, trellis), 9, np.zeros(5, np.int16), np.zeros(2, np.int16)))
    frames, payload = [matrix.frame for matrix in matrices], encode_levels(matrices, trellis)
    for end in range(len(payload)):
        with pytest.raises(FormatError):
            decode_levels(payload[:end], frames, trellis)
    for extra in (b"\0", b"\0\0", payload):
        with pytest.raises(FormatError):
            decode_levels(payload + extra, frames, trellis)
    for i in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[i // 8] ^= 1 << i % 8
        try:
            found = decode_levels(bytes(changed), frames, trellis)
        except FormatError:
            continue
        assert not all(np.array_equal(m.levels, f) for m, f in zip(matrices, found, strict=True))


@given(st.binary(max_size=60), st.sampled_from([1, 8]))
@settings(deadline=None)
def test_foreign_bytes_are_refused_or_decode_to_the_shape(payload: bytes, states: int) -> None:
    frame = Frame((5, 7), 0, np.arange(5, dtype=np.int16), np.zeros(7, np.int16))
    try:
        (levels,) = decode_levels(payload, [frame], Trellis(states))
    except FormatError:
        return
    assert levels.shape == (5, 7)


TABLE = write_table(choose_roots(np.eye(SYMBOLS, dtype=np.int64)[127]))
START = (1 << 16).to_bytes(4, "little")
ESCAPES = write_table(np.where(np.isin(np.arange(SYMBOLS), (0, 254)), 12, 0))
STRANGE = write_table(np.where(np.isin(np.arange(SYMBOLS), (127, 255)), 12, 0))


def test_the_smallest_stream() -> None:
    frame = Frame((1, 1), 0, np.zeros(1, np.int16), np.zeros(1, np.int16))
    assert decode_levels(b"\0" + TABLE + b"\xff\0" + START, [frame], Trellis(8))[0].tolist() == [[0]]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "asks for 1 bytes"),
        (b"\x40" + TABLE, "65 classes, expected at most 64"),
        (b"\x01\x00" + TABLE, "begin at spread 1, where no weight is"),
        (b"\x01" + varint(2**62), "where no weight is"),
        (b"\0\xff\xff\0" + START, "does not end"),
        (b"\0" + STRANGE + b"\xff\0" + START, "symbol 255, which no level has"),
        (b"\0" + TABLE + b"\xff" + varint(2**62), "escapes, expected at most 1, its weights"),
        (b"\0" + TABLE + b"\xff\x01", "asks for 1 bytes"),
        (b"\0" + TABLE + b"\xff\x01\x05" + START, "does not end"),
        (b"\0" + TABLE + b"\xff\0" + START[:3], "asks for 4 bytes"),
        (b"\0" + TABLE + b"\xff\0" + START + b"\0", "expected an even number"),
        (b"\0" + TABLE + b"\xff\0" + START + b"\0\0", "does not end"),
        (b"\0" + TABLE + b"\xff\0" + b"\1\0\1\0", "does not end"),
        (b"\0" + ESCAPES + b"\xff\0" + START, "does not end"),
        (b"\0" + ESCAPES + b"\xff\x01" + varint(2**30) + b"\0\x80\0\0", "does not end"),
    ],
)
def test_streams_that_nothing_writes_are_refused(payload: bytes, message: str) -> None:
    frame = Frame((1, 1), 0, np.zeros(1, np.int16), np.zeros(1, np.int16))
    with pytest.raises(FormatError, match=message):
        decode_levels(payload, [frame], Trellis(8), "the test")


def test_a_small_payload_makes_no_large_array() -> None:
    huge = Frame((2**15, 2**15), 0, np.zeros(2**15, np.int16), np.zeros(2**15, np.int16))
    with pytest.raises(FormatError, match="asks for 2097152 bytes where 996 are left"):  # the states of all lanes
        decode_levels(b"\0\xff\xff\0" + bytes(996), [huge] * 16, Trellis(8))
    with pytest.raises(FormatError, match="1 bytes too many"):
        decode_levels(b"\0", [], Trellis(8))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame((1, 2), 0, np.zeros(1, np.int16), np.zeros(1, np.int16)), "column steps"),
        (Frame((-1, 1), 0, np.zeros(1, np.int16), np.zeros(1, np.int16)), "column steps"),
        (Frame((1, 1), 0, np.zeros(1, np.int64), np.zeros(1, np.int16)), "expected int16"),
        (Frame((1, 1), 2**15, np.zeros(1, np.int16), np.zeros(1, np.int16)), "within int16"),
    ],
)
def test_frames_that_make_no_sense_are_refused(frame: Frame, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_levels(b"", [frame], Trellis(8))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.array([[1]], np.int32), "level 1 at row 0 of column 0"),
        (np.array([[0], [1]], np.int32), "level 1 at row 1 of column 0"),
        (np.array([[-(2**31)]], np.int32), "expected at least -2147483647"),
        (np.array([[0]], np.int64), "int64 levels"),
        (np.array([0], np.int32), "expected int32"),
    ],
)
def test_levels_that_no_trellis_makes_are_refused(levels: NDArray[np.int32], message: str) -> None:
    steps = np.zeros(len(levels), np.int16)
    with pytest.raises(QuantGolfError, match=message):
        encode_levels([Levels(levels, 0, steps, np.zeros(1, np.int16))], Trellis(8))
