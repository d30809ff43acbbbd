"""The container: magic, version, length, compressed header, streams, checksum; bytes in memory, no files.

A reader looks at magic and version, at the length only to tell a cut file from a changed one, and then at nothing
before the checksum agrees. After that a file is still not trusted: whoever writes one can write its checksum too.
"""

from hashlib import blake2b
from typing import Any

from quantgolf.blob.header import WORDS, read_header, write_header
from quantgolf.encode import MAX_DECODED_BYTES, check_model, zstd
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError
from quantgolf.types import BlobHeader, CodedModel

MAGIC = b"QGLF"
VERSION = 1
DRAFT = 0  # what version 1 was called before it was frozen; nothing else of those files differs
DIGEST_BYTES = 8
MAX_HEADER_BYTES = 1 << 22  # 32 for each of as many tensors as there may be
SMALL_HEADER_BYTES = 1 << 12  # read whatever the limit of decoded bytes is
HEADER_WEIGHT = 1 << 12  # a block is two bytes of the header, and up to 9 kB once it is decoded


def pack(coded: CodedModel, model: dict[str, Any] | None) -> bytes:
    """The bytes of a file. Same input, same bytes.

    Args:
        coded: from `encode_model`.
        model: how to rebuild the module, for example {"family": "golf", "config": {…}}: whatever JSON can hold.

    Raises:
        QuantGolfError: tensors or a description that the format cannot hold.
    """
    check_model(coded, MAX_DECODED_BYTES)
    header = write_header(coded, model)
    if len(header) > MAX_HEADER_BYTES:
        raise FormatError(f"the header takes {len(header)} bytes, expected at most {MAX_HEADER_BYTES}; shorten names")
    packed = zstd.compress(header, WORDS)
    body = varint(len(header)) + varint(len(packed)) + packed + coded.streams()
    data = MAGIC + bytes([VERSION]) + varint(len(body) + DIGEST_BYTES) + body
    return data + _digest(data)


def parse(data: bytes, max_decoded_bytes: int = MAX_DECODED_BYTES) -> tuple[BlobHeader, CodedModel]:
    """What `pack` was given; streams stay coded.

    Args:
        data: a complete file.
        max_decoded_bytes: refuse tensors that would take more than that together, each in its own dtype, or in fp32 if
            that is wider and it has quantized rows; and headers of more than 4,096 bytes and a 4,096th of it.

    Raises:
        FormatError: another kind of file, a newer version, a damaged file, or one that no `pack` writes.
    """
    at = check_envelope(data, len(data))
    version = data[len(MAGIC)]
    content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if _digest(content) != digest:
        raise FormatError(f"checksum is {_digest(content).hex()}, expected {digest.hex()}; {DAMAGED}")
    cursor = Cursor(content, "the file", at)
    size = cursor.varint()
    packed = cursor.take(cursor.varint())
    most = min(MAX_HEADER_BYTES, max(SMALL_HEADER_BYTES, max_decoded_bytes // HEADER_WEIGHT))
    if size > most:
        raise FormatError(
            f"the header declares {size} bytes, expected at most {most}; {DAMAGED}, or raise max_decoded_bytes"
        )
    header = zstd.decompress(packed, size, "the header", WORDS)
    model, coded = read_header(header, cursor)
    cursor.finish()
    check_model(coded, max_decoded_bytes)
    return BlobHeader(version, model), coded


def check_envelope(start: bytes, size: int) -> int:
    """Checks magic, version and length against a file that begins with `start`; returns where the header follows.

    Args:
        start: at least the first 16 bytes of the file, or all of it.
        size: bytes of the whole file.

    Raises:
        FormatError: they do not agree.
    """
    if not start.startswith(MAGIC):
        raise FormatError(
            f"this is not a quantgolf file: it starts with {start[: len(MAGIC)]!r}, expected {MAGIC!r}; "
            "give a file that `quantgolf compress` wrote"
        )
    cursor = Cursor(start, "the file", len(MAGIC))
    version = cursor.take(1)[0]
    if version not in (DRAFT, VERSION):
        raise FormatError(f"format version {version} is newer than this reader's {VERSION}; upgrade quantgolf")
    declared = cursor.varint()
    follow = size - cursor.at
    if declared > follow:
        raise FormatError(f"the file is truncated: declares {declared:,} more bytes, has {follow:,}; copy it again")
    if declared < max(follow, DIGEST_BYTES):
        raise FormatError(f"the file declares {declared:,} more bytes and has {follow:,}; {DAMAGED}")
    return cursor.at


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()
