"""Frames of zstd: one, of so many bytes, in no more memory than its window may take."""

import pytest
import zstandard

from quantgolf.encode import zstd
from quantgolf.encode.zstd import START, WINDOW
from quantgolf.errors import FormatError


def framed(raw: bytes, window_log: int) -> bytes:
    """A frame without its first five bytes that asks for a window of 2^window_log bytes, whatever it holds."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=0)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packer.compress(raw) + packer.flush()
    assert frame.startswith(START)
    return frame[len(START) :]


def test_frames_return() -> None:
    for raw in (b"a", b"ab" * 5000):
        assert zstd.decompress(zstd.compress(raw), len(raw), "it") == raw
        assert zstd.decompress(zstd.compress(raw, b"words"), len(raw), "it", b"words") == raw


def test_a_window_is_at_most_what_the_page_grants() -> None:
    raw, most = b"ab" * 5000, WINDOW.bit_length() - 1
    assert zstd.decompress(framed(raw, most), len(raw), "it") == raw
    with pytest.raises(FormatError, match="it is no zstd frame of 10000 bytes"):
        zstd.decompress(framed(raw, most + 1), len(raw), "it")


@pytest.mark.parametrize("behind", [b"\0", b"\x28\xb5\x2f\xfd\x00", START + zstd.compress(b"more")])
def test_nothing_lies_behind_a_frame(behind: bytes) -> None:
    with pytest.raises(FormatError, match="it is no zstd frame of 4 bytes"):
        zstd.decompress(zstd.compress(b"data") + behind, 4, "it")


@pytest.mark.parametrize("size", [3, 5])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(FormatError, match=f"(no zstd frame of|expected) {size}"):
        zstd.decompress(zstd.compress(b"data"), size, "it")
