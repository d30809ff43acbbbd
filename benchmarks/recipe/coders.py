"""General coders for bytes: brotli at quality 11, ZPAQ where the binary `lrzip` is present, LZMA and zstd.

The record coded its codes with `lrzip -z -L 9` and everything else with brotli. Here the smallest wins each time.
"""

import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import brotli
import zstandard

from quantgolf.encode.varint import Cursor, varint
from quantgolf.errors import FormatError, QuantGolfError

LZMA_WINDOW = 1 << 26  # what preset 9 has


def _lrzip(*options: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.lrz", Path(folder) / "out.lrz"
            source.write_bytes(data)
            # One thread: with more, lrzip cuts the stream into parts that learn nothing from one another. And no
            # nice level of its own.
            command = ["lrzip", "-Q", "-N", "0", "-p", "1", *options, "-o", str(target), str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise QuantGolfError(f"lrzip ended with {done.returncode} ({done.stderr.strip()}), expected 0")
            return target.read_bytes()

    return run


def _lzma(window: int) -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0, "dict_size": window}]


def _to_lzma(raw: bytes) -> bytes:
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=_lzma(min(LZMA_WINDOW, max(4096, len(raw)))))


def _to_zstd(raw: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(22, source_size=len(raw))
    return zstandard.ZstdCompressor(compression_params=parameters).compress(raw)


CODERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "none": (lambda raw: raw, lambda packed: packed),
    "brotli": (lambda raw: brotli.compress(raw, quality=11, lgwin=24), brotli.decompress),
    "lzma": (_to_lzma, lambda packed: lzma.decompress(packed, lzma.FORMAT_RAW, filters=_lzma(LZMA_WINDOW))),
    "zstd": (_to_zstd, lambda packed: zstandard.ZstdDecompressor().decompress(packed)),
    "zpaq": (_lrzip("-z", "-L", "9", "-T"), _lrzip("-d")),
}
NAMES = tuple(CODERS)
# On the codes of the golf model LZMA takes 3% more than brotli, zstd more still, and ZPAQ 0.7% less.
FOR_CODES = ("none", "brotli", "zpaq")
SHORT = 4096  # bytes: lrzip's own header and its start cost more than it saves on less


def present(wanted: Sequence[str] = NAMES) -> tuple[str, ...]:
    """Those of `wanted` that this machine has."""
    return tuple(name for name in wanted if name != "zpaq" or shutil.which("lrzip"))


def pack(raw: bytes, wanted: Sequence[str] = NAMES) -> bytes:
    """A coder's number, a length, and what the best of `wanted` makes of `raw`."""
    if not raw:
        return bytes([0]) + varint(0)
    have = present(wanted)
    if len(raw) < SHORT and have != ("zpaq",):
        have = tuple(name for name in have if name != "zpaq")
    found = [(name, CODERS[name][0](raw)) for name in have]
    name, packed = min(found, key=lambda pair: len(pair[1]))
    return bytes([NAMES.index(name)]) + varint(len(packed)) + packed


def unpack(cursor: Cursor) -> bytes:
    """What `pack` was given.

    Raises:
        FormatError: a coder that does not exist.
        QuantGolfError: `lrzip` is needed and missing, or fails.
    """
    number = cursor.take(1)[0]
    if number >= len(NAMES):
        raise FormatError(f"{cursor.what} names coder {number}, expected less than {len(NAMES)}")
    if NAMES[number] not in present():
        raise QuantGolfError("the file holds ZPAQ streams and lrzip is missing, expected the binary; install it")
    return CODERS[NAMES[number]][1](cursor.take(cursor.varint()))
