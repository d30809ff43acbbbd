"""Diagonals: rolled and back by the definition, and levels along them coded as those of the rolled matrix are."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantgolf.encode.diagonals import TILE, rolled, unrolled
from quantgolf.encode.lanes import count_levels, segment_bits
from quantgolf.encode.levels import Levels, decode_levels, encode_levels, predicted_bits
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.solve.trellis import Trellis

SIZES = st.integers(1, 3 * TILE + 2)


@given(SIZES, SIZES, st.sampled_from([np.int16, np.int32]), st.sampled_from("CFA"), st.integers(0, 99))
@example(1, 1, np.int32, "C", 0)
@example(1, 7, np.int32, "C", 0)
@example(7, 1, np.int32, "F", 0)
@example(100, 3, np.int16, "C", 0)
@example(3, 100, np.int16, "F", 0)
@settings(deadline=None)
def test_rolled_is_as_defined_and_turns_back(n: int, k: int, dtype: type, order: str, seed: int) -> None:
    info = np.iinfo(dtype)
    levels = np.random.default_rng(seed).integers(-info.max, info.max, (n, k), dtype=dtype, endpoint=True)
    given = np.repeat(levels, 2, axis=1)[:, ::2] if order == "A" else np.asarray(levels, order=order)
    found = rolled(given)
    assert found.dtype == dtype and found.shape == (k, n) and found.flags.c_contiguous
    assert found.tolist() == [[levels[i, (d - i) % k] for i in range(n)] for d in range(k)]
    back = unrolled(found)
    assert back.dtype == dtype and back.flags.c_contiguous and np.array_equal(back, levels)
    assert np.array_equal(unrolled(found.copy(order="F")), levels)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_is_rolled_to_nothing(shape: tuple[int, int]) -> None:
    assert rolled(np.zeros(shape, np.int32)).shape == shape[::-1]
    assert unrolled(np.zeros(shape, np.int32)).shape == shape[::-1]


def along(k: NDArray[np.int64], trellis: Trellis, diagonal: bool) -> NDArray[np.int32]:
    """The levels of indices k [N, K] by the definition, one after another."""
    found, state = np.empty(k.shape, dtype=np.int32), 0
    for d in range(k.shape[1]):
        for i in range(k.shape[0]):
            j = (d - i) % k.shape[1] if diagonal else d
            state = 0 if i % trellis.restart == 0 else state
            scalar = trellis.states == 1
            found[i, j] = k[i, j] if scalar else 2 * k[i, j] - (state & 1) * np.sign(k[i, j])
            state = int(trellis.after[state, k[i, j] & 1])
    return found


INDEX = st.one_of(st.integers(-3, 3), st.integers(-130, 130), st.sampled_from([-(2**30) + 1, -127, 127, 2**30 - 1]))
INT16 = st.one_of(st.integers(-5, 5), st.integers(-(2**15), 2**15 - 1))


def values(draw: st.DrawFn, of: st.SearchStrategy[int], *shape: int) -> NDArray[np.int64]:
    count = int(np.prod(shape))
    return np.array(draw(st.lists(of, min_size=count, max_size=count)), dtype=np.int64).reshape(shape)


@st.composite
def drawn_matrix(draw: st.DrawFn, trellis: Trellis) -> Levels:
    n, k, diagonal = draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.booleans())
    row, column = (values(draw, INT16, size).astype(np.int16) for size in (n, k))
    return Levels(along(values(draw, INDEX, n, k), trellis, diagonal), draw(INT16), row, column, diagonal)


@given(st.data(), st.sampled_from([1, 4, 8, 16, 32, 64, 128, 256]), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_matrices_of_both_kinds_return(data: st.DataObject, states: int, restart: int) -> None:
    trellis = Trellis(states, restart)
    matrices = data.draw(st.lists(drawn_matrix(trellis), max_size=4))
    payload = encode_levels(matrices, trellis)
    found = decode_levels(payload, [matrix.frame for matrix in matrices], trellis)
    for matrix, levels in zip(matrices, found, strict=True):
        assert levels.dtype == np.int32 and levels.shape == matrix.levels.shape
        assert np.array_equal(levels, matrix.levels)


def gaussian(shape: tuple[int, int], trellis: Trellis, seed: int, equal: bool = False) -> Levels:
    """A diagonal matrix as a solver leaves it; all its columns may have `equal` steps."""
    rng = np.random.default_rng(seed)
    row = rng.integers(-28, -17, shape[0]).astype(np.int16)
    column = np.zeros(shape[1], np.int16) if equal else rng.integers(-9, 9, shape[1]).astype(np.int16)
    steps = 2.0 ** ((row[:, None].astype(int) + column) / 4)
    targets = rng.normal(0, 1 / 8, shape) / steps
    i, d = np.arange(shape[0]), np.arange(shape[1])[:, None]
    coded = np.stack([trellis.quantize(diagonal) for diagonal in targets[i, (d - i) % shape[1]]])
    return Levels(unrolled(coded), -12, row, column, diagonal=True)


@pytest.mark.parametrize("shape", [(300, 250), (40, 2000), (2500, 31)])
def test_many_lanes_along_diagonals_are_those_of_the_rolled_matrix(shape: tuple[int, int]) -> None:
    trellis = Trellis(8, 100)
    matrix = gaussian(shape, trellis, 1, equal=True)
    payload = encode_levels([matrix], trellis)
    columns = Levels(rolled(matrix.levels).T, matrix.spread, matrix.row, matrix.column)
    assert encode_levels([columns], trellis) == payload
    assert np.array_equal(decode_levels(payload, [matrix.frame], trellis)[0], matrix.levels)
    assert np.array_equal(decode_levels(payload, [columns.frame], trellis)[0], columns.levels)


def test_the_spread_of_a_level_is_that_of_its_own_column() -> None:
    """Columns of very different steps: looked up by diagonal, the contexts would tell nothing and bits be lost."""
    trellis = Trellis(8)
    matrix = gaussian((256, 200), trellis, 2)
    predicted = predicted_bits([matrix], trellis)
    assert abs(8 * len(encode_levels([matrix], trellis)) / predicted - 1) < 0.002
    shifted = Levels(matrix.levels, matrix.spread, matrix.row, np.roll(matrix.column, 1), diagonal=True)
    assert predicted < 0.97 * predicted_bits([shifted], trellis)


GOLDEN = "031700007d8218c6a8027f807002fefe3001ff00003001ff7f7f3001ff021700375b0300d1b3e439"


def test_golden_bytes() -> None:
    trellis = Trellis(4, 3)
    k = np.array([[0, 1, -1, 2, 0], [1, 0, 0, -1, 150], [-2, 0, 1, 0, 0], [0, -1, 1, 3, -127]])
    row, column = np.array([-2, 0, 1, -1], np.int16), np.array([0, 0, 3, -3, -20], np.int16)
    matrix = Levels(along(k, trellis, True), 1, row, column, diagonal=True)
    payload = encode_levels([matrix], trellis)
    assert payload.hex() == GOLDEN
    assert np.array_equal(decode_levels(payload, [matrix.frame], trellis)[0], matrix.levels)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 23), (23, 5)])
@pytest.mark.parametrize("states", [1, 8])
def test_counts_and_bits_of_segments_add_up(states: int, n: int, k: int, diagonal: bool) -> None:
    trellis, rng = Trellis(states, 4), np.random.default_rng(n)
    indices = rng.integers(-140, 141, (n, k))
    levels, row, above = along(indices, trellis, diagonal), rng.integers(0, 9, n), rng.integers(8, 20, k)
    class_at, costs = np.arange(20, dtype=np.uint8) // 3, rng.random((14, 256))
    expected, by_segment = np.zeros((20, 2, 256), dtype=np.int64), np.zeros(-(-n // 4))
    for i in range(n):
        for j in range(k):
            odd = int(trellis.states > 1 and indices[i, j] != 0 and levels[i, j] % 2)
            if trellis.states > 1 and indices[i, j] == 0:
                odd = odd_at(indices, i, j, trellis, diagonal)
            spread, symbol = above[j] - row[i], min(max(indices[i, j] + 127, 0), 254)
            expected[spread, odd, symbol] += 1
            by_segment[i // 4] += costs[2 * class_at[spread] + odd, symbol]
    coded = rolled(levels) if diagonal else np.ascontiguousarray(levels.T)
    counts, bits = np.zeros_like(expected), np.zeros(-(-n // 4))
    escapes = count_levels(coded, row, above, trellis.after, 4, counts, diagonal)
    assert np.array_equal(counts, expected) and escapes == (abs(indices) >= 127).sum()
    segment_bits(coded.astype(np.int16), row, above, class_at, costs, trellis.after, 4, bits, diagonal)
    np.testing.assert_allclose(bits, by_segment)


def odd_at(indices: NDArray[np.int64], i: int, j: int, trellis: Trellis, diagonal: bool) -> int:
    """Whether weight (i, j) is met in an odd state, which a level of zero does not tell."""
    state = 0
    for before in range(i // trellis.restart * trellis.restart, i):
        there = (j + i - before) % indices.shape[1] if diagonal else j
        state = int(trellis.after[state, indices[before, there] & 1])
    return state & 1


def test_levels_for_columns_are_refused_along_diagonals() -> None:
    trellis, steps = Trellis(8), (np.zeros(3, np.int16), np.zeros(3, np.int16))
    levels = np.array([[2, 0, 0], [0, 0, 0], [1, 0, 0]], np.int32)  # after 2 and 0 the state is odd
    encode_levels([Levels(levels, 0, *steps)], trellis)
    with pytest.raises(QuantGolfError, match=r"level 1 at row 2 of column 0 is one that .* 8 states, down diagonals"):
        encode_levels([Levels(levels, 0, *steps, diagonal=True)], trellis)


@given(st.binary(max_size=60), st.sampled_from([1, 8]))
@settings(deadline=None)
def test_foreign_bytes_are_refused_or_decode_to_the_shape(payload: bytes, states: int) -> None:
    frame = Levels(np.zeros((5, 7), np.int32), 0, np.arange(5, dtype=np.int16), np.zeros(7, np.int16), True).frame
    try:
        (levels,) = decode_levels(payload, [frame], Trellis(states))
    except FormatError:
        return
    assert levels.shape == (5, 7)
