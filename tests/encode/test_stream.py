"""Streams: whatever goes in comes out, each codec wins where it should, and predictions hold."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.encode import Codec, coded_bytes, decode_codes, decode_stream, encode_codes, encode_stream
from quantgolf.encode.stream import RANS, RAW, ZSTD
from quantgolf.errors import FormatError, QuantGolfError


@given(st.binary(max_size=3000))
@settings(deadline=None)
def test_streams_return(data: bytes) -> None:
    symbols = np.frombuffer(data, dtype=np.uint8)
    payload = encode_stream(symbols)
    assert len(payload) <= len(data) + 1
    assert decode_stream(payload, len(data)).tobytes() == data


@pytest.mark.parametrize(
    ("codec", "symbols"),
    [
        (RAW, np.random.default_rng(0).permutation(256).astype(np.uint8)),
        (ZSTD, np.tile(np.arange(100, dtype=np.uint8), 50)),
        (RANS, (np.random.default_rng(0).normal(0, 2, 9000).round() + 128).astype(np.uint8)),
    ],
)
def test_the_smallest_codec_wins_and_returns(codec: int, symbols: np.ndarray) -> None:
    payload = encode_stream(symbols)
    assert payload[0] == codec
    assert np.array_equal(decode_stream(payload, len(symbols)), symbols)


@pytest.mark.parametrize(("codec", "name"), [("rans", RANS), ("zstd", ZSTD)])
def test_a_codec_that_is_asked_for_is_taken_and_returns(codec: Codec, name: int) -> None:
    bell = (np.random.default_rng(0).normal(0, 2, 9000).round() + 128).astype(np.uint8)
    for symbols in (bell, np.tile(np.arange(100, dtype=np.uint8), 50)):
        payload = encode_stream(symbols, codec)
        assert payload[0] == name and np.array_equal(decode_stream(payload, len(symbols)), symbols)
        assert len(payload) >= len(encode_stream(symbols))
    noise = np.random.default_rng(0).permutation(256).astype(np.uint8)
    assert encode_stream(noise, codec)[0] == RAW  # which neither makes smaller
    assert encode_stream(noise[:0], codec) == b""


def test_other_codecs_are_refused() -> None:
    with pytest.raises(QuantGolfError, match="codec is 'lzma', expected one of auto, rans, zstd"):
        encode_stream(np.empty(0, dtype=np.uint8), "lzma")  # type: ignore[arg-type]


@given(st.lists(st.integers(-127, 127), min_size=1, max_size=60))
@settings(deadline=None)
def test_codes_return(values: list[int]) -> None:
    codes = torch.tensor(values, dtype=torch.int8)[None]
    assert torch.equal(decode_codes(encode_codes(codes), codes.shape), codes)


def test_other_integers_are_not_codes() -> None:
    with pytest.raises(QuantGolfError, match=r"torch\.int16, expected torch\.int8"):
        encode_codes(torch.zeros(2, 2, dtype=torch.int16))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [500, 70_000])
def test_predicted_bytes_are_the_real_ones(bits: int, count: int) -> None:
    top = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(bits).normal(0, top / 3, count).round().clip(-top, top).astype(np.int8)
    real = len(encode_codes(torch.from_numpy(codes)[None]))
    predicted = coded_bytes(np.bincount(codes.astype(np.int64) + top, minlength=2 * top + 1))
    assert abs(real - predicted) <= 0.0005 * real + 4


def test_nothing_takes_nothing() -> None:
    assert encode_stream(np.empty(0, dtype=np.uint8)) == b""
    assert len(decode_stream(b"", 0)) == 0
    assert coded_bytes(np.zeros(7, dtype=np.int64)) == 0


@pytest.mark.parametrize(
    ("payload", "count", "message"),
    [
        (b"", 3, "declares 3 symbols in 0 bytes"),
        (b"\x01" + bytes(9), 10**9, "expected at most 32768 a byte"),
        (b"\x07abc", 3, "names codec 7"),
        (b"\x00abc", 2, "1 bytes too many"),
        (b"\x00abc", 4, "asks for 4 bytes"),
        (b"\x01abc", 4, "no zstd frame"),
        (b"x", 0, "1 bytes too many"),
    ],
)
def test_streams_that_nothing_writes_are_refused(payload: bytes, count: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_stream(payload, count)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 200))
@settings(deadline=None)
def test_any_bytes_give_the_count_or_an_error(payload: bytes, count: int) -> None:
    with suppress(FormatError):
        assert len(decode_stream(payload, count)) == count
