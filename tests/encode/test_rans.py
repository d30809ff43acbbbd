"""rANS against the recurrence written out in Python integers, and against the entropy it promises to reach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantgolf.encode import rans
from quantgolf.encode.table import SYMBOLS, TOTAL, choose_roots, frequencies, symbol_bits
from quantgolf.encode.varint import Cursor
from quantgolf.errors import FormatError


def oracle(symbols: list[int], frequency: list[int], lanes: int) -> tuple[list[int], list[int]]:
    """Final states and words in reading order: Duda's step C(s, x) on 32-bit states, 16 bits at a time."""
    start = [sum(frequency[:symbol]) for symbol in range(len(frequency))]
    states, words = [1 << 16] * lanes, []
    for i in reversed(range(len(symbols))):
        x, f, c = states[i % lanes], frequency[symbols[i]], start[symbols[i]]
        if x >= f * 2**18:
            words.append(x % 2**16)
            x //= 2**16
        states[i % lanes] = x // f * 2**14 + c + x % f
    return states, words[::-1]


def table_of(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    return frequencies(choose_roots(np.bincount(symbols, minlength=SYMBOLS)))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300))
@settings(deadline=None)
def test_words_are_those_of_the_recurrence(values: list[int]) -> None:
    symbols = np.array(values, dtype=np.uint8)
    frequency = table_of(symbols)
    states, words = oracle(values, frequency.tolist(), 1)
    data = rans.encode(symbols, frequency)
    assert data == b"\x01" + np.array(states, "<u4").tobytes() + np.array(words, "<u2").tobytes()
    assert np.array_equal(rans.decode(Cursor(data, "test"), len(values), frequency), symbols)


def test_lanes_are_those_of_the_recurrence() -> None:
    symbols = (np.random.default_rng(0).normal(0, 3, 100_000).round() + 128).astype(np.uint8)
    frequency = table_of(symbols)
    assert rans.lanes_for(len(symbols)) == 3
    states, words = oracle(symbols.tolist(), frequency.tolist(), 3)
    data = rans.encode(symbols, frequency)
    assert data == b"\x03" + np.array(states, "<u4").tobytes() + np.array(words, "<u2").tobytes()
    assert np.array_equal(rans.decode(Cursor(data, "test"), len(symbols), frequency), symbols)


def test_golden_words() -> None:
    frequency = np.zeros(SYMBOLS, dtype=np.int64)
    frequency[[1, 2, 3]] = TOTAL // 2, TOTAL // 4, TOTAL // 4
    symbols = np.array([1, 2, 1, 3, 1, 1, 2, 3, 1, 1, 3, 2, 1, 1, 1, 1], dtype=np.uint8)
    assert rans.encode(symbols, frequency).hex() == GOLDEN


GOLDEN = "0153c0420000c0"


@pytest.mark.parametrize("spread", [0.6, 1.2, 3, 12, 40])
def test_payload_is_within_two_per_mille_of_the_entropy(spread: float) -> None:
    symbols = (np.random.default_rng(1).normal(0, spread, 200_000).round().clip(-127, 127) + 128).astype(np.uint8)
    counts = np.bincount(symbols, minlength=SYMBOLS)
    p = counts[counts > 0] / counts.sum()
    entropy = -(counts[counts > 0] * np.log2(p)).sum() / 8
    frequency = table_of(symbols)
    payload = len(rans.encode(symbols, frequency))
    assert symbol_bits(counts, frequency) / 8 < entropy * 1.001
    assert payload < entropy * 1.002


@given(st.binary(min_size=0, max_size=40), st.integers(1, 50))
@settings(deadline=None)
def test_foreign_bytes_are_refused_or_decode_to_the_count(data: bytes, count: int) -> None:
    frequency = table_of(np.array([5, 5, 6, 7], dtype=np.uint8))
    try:
        symbols = rans.decode(Cursor(data, "test"), count, frequency)
    except FormatError:
        return
    assert len(symbols) == count


def test_a_changed_word_does_not_pass() -> None:
    symbols = (np.random.default_rng(2).normal(0, 2, 500).round() + 128).astype(np.uint8)
    frequency = table_of(symbols)
    data = rans.encode(symbols, frequency)
    passed = 0
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        try:
            passed += np.array_equal(rans.decode(Cursor(changed, "test"), len(symbols), frequency), symbols)
        except FormatError:
            continue
    assert passed == 0


@pytest.mark.parametrize("state", [0, rans.LOWEST - 1])
def test_a_state_that_no_encoder_leaves_is_refused(state: int) -> None:
    symbols = np.arange(50, dtype=np.uint8) % 3
    frequency = table_of(symbols)
    data = rans.encode(symbols, frequency)
    changed = data[:1] + state.to_bytes(4, "little") + data[5:]
    with pytest.raises(FormatError, match=f"has a state of {state}, expected at least 65536"):
        rans.read(Cursor(changed, "test"), len(symbols), frequency)
