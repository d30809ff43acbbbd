"""A stream: bytes in a row coded by rANS, by zstd or not at all, whichever is smallest.

rANS wins on codes, which are almost independent draws from a bell curve; zstd wins where runs of symbols repeat.
One byte a symbol goes into zstd, never packed bits: packing hides what structure there is. No codec can unfold a
stream to more than 32,768 times its bytes (a lane for every 32,768 symbols, four bytes for a zstd block of 128 KiB),
so a reader may check that before it allocates anything.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode import gpu, rans, zstd
from quantgolf.encode.table import SYMBOLS, choose_roots, frequencies, read_table, symbol_bits, write_table
from quantgolf.encode.varint import DAMAGED, UNKNOWN, Cursor
from quantgolf.errors import FormatError, QuantGolfError

Codec = Literal["auto", "rans", "zstd"]
CODECS: tuple[Codec, ...] = ("auto", "rans", "zstd")
RAW, ZSTD, RANS = 0, 1, 2
LARGEST_EXPANSION = 32768
SIGN = np.uint8(0x80)


def encode_stream(symbols: NDArray[np.uint8], codec: Codec = "auto") -> bytes:
    """The smallest of the three codings of symbols [n], one byte for the codec's name in front; b"" for n = 0.

    Args:
        symbols: uint8 [n].
        codec: "rans" or "zstd" leaves the other one out; bytes that neither makes smaller are kept as they are.

    Raises:
        QuantGolfError: another codec.
    """
    if codec not in CODECS:
        raise QuantGolfError(f"codec is {codec!r}, expected one of {', '.join(CODECS)}")
    if not len(symbols):
        return b""
    raw = symbols.tobytes()
    found = [bytes([RAW]) + raw]
    if codec != "zstd":
        roots = choose_roots(np.bincount(symbols, minlength=SYMBOLS))
        found.append(bytes([RANS]) + write_table(roots) + rans.encode(symbols, frequencies(roots)))
    if codec != "rans":
        found.append(bytes([ZSTD]) + zstd.compress(raw))
    return min(found, key=len)


def decode_stream(payload: bytes, count: int, what: str = "a stream") -> NDArray[np.uint8]:
    """The `count` symbols [n] of a stream; `what` names it in messages.

    Raises:
        FormatError: not a stream of so many symbols.
    """
    found = _open(payload, count, what)
    return found.decode() if isinstance(found, rans.Stream) else found


def _open(payload: bytes, count: int, what: str) -> NDArray[np.uint8] | rans.Stream:
    """Symbols, or the stream of rANS that they are coded in."""
    if count > LARGEST_EXPANSION * len(payload):
        raise FormatError(
            f"{what} declares {count} symbols in {len(payload)} bytes, expected at most {LARGEST_EXPANSION} a byte; "
            f"{DAMAGED}"
        )
    cursor = Cursor(payload, what)
    if count == 0:
        cursor.finish()
        return np.empty(0, dtype=np.uint8)
    codec = cursor.take(1)[0]
    if codec == RANS:
        return rans.read(cursor, count, frequencies(read_table(cursor)))
    if codec not in (RAW, ZSTD):
        raise FormatError(f"{what} names codec {codec}, expected {RAW}, {ZSTD} or {RANS}; {UNKNOWN}")
    raw = zstd.decompress(cursor.rest(), count, what) if codec == ZSTD else cursor.take(count)
    cursor.finish()
    return np.frombuffer(raw, dtype=np.uint8)


def encode_codes(codes: Tensor, codec: Codec = "auto") -> bytes:
    """Codes int8 [N, K], row by row, as one stream of symbols code + 128, coded as `encode_stream` says.

    Raises:
        QuantGolfError: codes of another dtype, or another codec.
    """
    if codes.dtype != torch.int8:
        raise QuantGolfError(f"codes are {codes.dtype}, expected torch.int8; format version 1 knows no wider codes")
    return encode_stream(codes.detach().cpu().contiguous().numpy().ravel().view(np.uint8) ^ SIGN, codec)


def decode_codes(payload: bytes, shape: tuple[int, ...], what: str = "codes") -> Tensor:
    """The codes int8 of that shape that `encode_codes` was given; `what` names them in messages.

    Raises:
        FormatError: not a stream of so many codes.
    """
    symbols = decode_stream(payload, math.prod(shape), what)
    return torch.from_numpy((symbols ^ SIGN).view(np.int8)).reshape(shape)


def decode_codes_on(device: torch.device, streams: Sequence[tuple[bytes, tuple[int, ...], str]]) -> Iterator[Tensor]:
    """As `decode_codes` of each payload, shape and name in turn, on a GPU that `gpu.decodes_on`.

    Streams of rANS are decoded there, all in one launch, when the first is asked for; the codes of all are kept, each a
    view of the rest. Those of other codecs are decoded on the CPU, and so are those of so few and so long lanes
    (`gpu.MOST_STEPS`) that no encoder of ours wrote them.

    Raises:
        FormatError: as `decode_codes`, when the turn of a stream comes or before.
    """
    opened = [_open(payload, math.prod(shape), what) for payload, shape, what in streams]
    coded = [each for each in opened if isinstance(each, rans.Stream) and each.steps <= gpu.MOST_STEPS]
    found = iter(gpu.decode_streams(coded, device)) if coded else iter(())
    for (_, shape, _), each in zip(streams, opened, strict=True):
        if not isinstance(each, rans.Stream):
            symbols = torch.from_numpy(each.copy()).to(device)
        elif each.steps > gpu.MOST_STEPS:
            symbols = torch.from_numpy(each.decode()).to(device)
        else:
            part, is_whole = next(found)
            if not is_whole:
                raise each.damaged()
            symbols = part
        yield symbols.bitwise_xor_(int(SIGN)).view(torch.int8).reshape(shape)


def coded_bytes(counts: NDArray[np.int64]) -> int:
    """Bytes that `encode_codes` takes for codes with this histogram over neighbouring levels, [at most 256].

    Counts rANS: table, lane states and cross-entropy, to within 0.05% and a few bytes. Codes that zstd can get
    smaller have a structure no histogram shows.
    """
    padded = np.zeros(SYMBOLS, dtype=np.int64)
    padded[: len(counts)] = counts
    total = int(padded.sum())
    if total == 0:
        return 0
    roots = choose_roots(padded)
    bits = symbol_bits(padded, frequencies(roots))
    # Of its 4 bytes a state begins with 2 that mean nothing and ends about half full of the other 2.
    lanes = 1 + 3 * rans.lanes_for(total)
    return 1 + min(total, len(write_table(roots)) + lanes + math.ceil(bits / 8))
