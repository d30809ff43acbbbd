"""zstd frames without whatever a stream tells anyway: no size, checksum or dictionary id, and no magic.

Every such frame begins with the same five bytes, which are left out and put back. So no frame can name a size of
its own, and a reader never allocates more than it asked for.
"""

import zstandard

from quantgolf.encode.varint import DAMAGED
from quantgolf.errors import FormatError

START = b"\x28\xb5\x2f\xfd\x00"
LEVEL = 19  # level 22 gained at most 4%, and only where rANS was ahead by more; 3 to 40 MB/s on one core
WINDOW = 1 << 23  # what level 19 asks for at most, and all that a reader grants


def compress(raw: bytes, dictionary: bytes = b"") -> bytes:
    """One frame; `dictionary` is text that the decoder knows too."""
    compressor = zstandard.ZstdCompressor(
        level=LEVEL, dict_data=_raw(dictionary), write_content_size=False, write_checksum=False, write_dict_id=False
    )
    frame = compressor.compress(raw)
    assert frame.startswith(START)
    return frame[len(START) :]


def decompress(packed: bytes, size: int, what: str, dictionary: bytes = b"") -> bytes:
    """The `size` bytes of a frame; `what` names it in messages.

    Raises:
        FormatError: not exactly one frame of so many bytes.
    """
    decompressor = zstandard.ZstdDecompressor(dict_data=_raw(dictionary), max_window_size=WINDOW)
    try:
        raw = decompressor.decompress(START + packed, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what} is no zstd frame of {size} bytes ({error}); {DAMAGED}") from error
    if len(raw) != size:
        raise FormatError(f"{what} unfolds to {len(raw)} bytes, expected {size}; {DAMAGED}")
    return raw


def _raw(dictionary: bytes) -> zstandard.ZstdCompressionDict | None:
    if not dictionary:
        return None
    return zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
