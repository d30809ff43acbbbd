"""Coders: whatever goes in comes out, and only what is present is used."""

import brotli
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe import coders

from quantgolf.encode.varint import Cursor
from quantgolf.errors import FormatError, QuantGolfError


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["none", "brotli", "lzma", "zstd"]))
def test_bytes_come_back(raw: bytes, coder: str) -> None:
    cursor = Cursor(coders.pack(raw, (coder,)) + b"after", "a stream")
    assert coders.unpack(cursor) == raw and cursor.rest() == b"after"


def test_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(coders.CODERS, "zstd", (lambda raw: brotli.compress(raw) + b"longer", brotli.decompress))
    raw = b"to be or not to be " * 50
    packed = coders.pack(raw, ("none", "zstd", "brotli"))
    assert coders.NAMES[packed[0]] == "brotli"
    noise = np.random.default_rng(0).bytes(500)
    assert coders.NAMES[coders.pack(noise, ("none", "brotli"))[0]] == "none"


def test_unknown_coders_are_refused() -> None:
    with pytest.raises(FormatError, match="names coder 9"):
        coders.unpack(Cursor(b"\x09\x00", "a stream"))


def test_zpaq_without_its_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "zpaq" not in coders.present()
    packed = bytes([coders.NAMES.index("zpaq"), 1, 0])
    with pytest.raises(QuantGolfError, match="lrzip is missing"):
        coders.unpack(Cursor(packed, "a stream"))


@pytest.mark.skipif("zpaq" not in coders.present(), reason="lrzip is not installed")
def test_zpaq_comes_back() -> None:
    raw = np.random.default_rng(0).integers(-3, 4, 5000).astype(np.int8).tobytes()
    packed = coders.pack(raw, ("none", "zpaq"))
    assert len(packed) < 2300 and coders.unpack(Cursor(packed, "a stream")) == raw
