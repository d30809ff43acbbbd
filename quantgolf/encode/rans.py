"""rANS: a static entropy coder within a hair of the cross-entropy, as fast to decode as a table lookup.

Duda 2013 (arXiv:1311.2540), with the states interleaved after Giesen 2014 (arXiv:1402.3392). A state is 32 bits
wide, lives in [2^16, 2^32) and gives and takes whole 16-bit words. Symbol i belongs to lane i mod lanes; each lane
has its own state and all share one sequence of words, so that a decoder can take one symbol of every lane at
once. The encoder runs backwards, which lets the decoder run forwards, and starts every lane at 2^16, which the
decoder has to find there again: a check that costs nothing.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from quantgolf.encode.table import PRECISION, SYMBOLS, TOTAL
from quantgolf.encode.varint import DAMAGED, Cursor, varint
from quantgolf.errors import FormatError

LOWEST = 1 << 16
SYMBOLS_PER_LANE = 32768


def lanes_for(count: int) -> int:
    """Lanes that `encode` deals `count` symbols to: one for every 32,768, 0.03% of 3-bit codes.

    A decoder takes the number from the stream.
    """
    return max(1, count // SYMBOLS_PER_LANE)


def encode(symbols: NDArray[np.uint8], frequency: NDArray[np.int64]) -> bytes:
    """Codes symbols [n], n > 0, under `frequency` [256]: number of lanes, their states, the words.

    The number is a varint, states are uint32 and words uint16, little-endian, in the order a decoder needs them.
    """
    lanes = lanes_for(len(symbols))
    states = np.full(lanes, LOWEST, dtype=np.uint64)
    words = np.empty(len(symbols), dtype=np.uint16)  # no symbol gives more than one
    first = _encode(symbols, frequency.astype(np.uint64), _starts(frequency), states, words)
    return varint(lanes) + states.astype("<u4").tobytes() + words[first:].astype("<u2").tobytes()


@dataclass(frozen=True)
class Stream:
    """What `encode` wrote, taken apart.

    Attributes:
        what: names it in messages.
        count: symbols.
        frequency: int64 [256].
        states: uint32 [lanes], at most as many as symbols.
        words: uint16 [words].
    """

    what: str
    count: int
    frequency: NDArray[np.int64]
    states: NDArray[np.uint32]
    words: NDArray[np.uint16]

    @property
    def steps(self) -> int:
        """Symbols of the longest lane."""
        return -(-self.count // len(self.states))

    def shares(self) -> NDArray[np.uint32]:
        """frequency + 2^16 · start of each symbol, [256]."""
        return (self.frequency + (_starts(self.frequency).astype(np.int64) << 16)).astype(np.uint32)

    def slots(self) -> NDArray[np.uint8]:
        """The symbol of each slot, [2^14]."""
        return np.repeat(np.arange(SYMBOLS, dtype=np.uint8), self.frequency)

    def decode(self) -> NDArray[np.uint8]:
        """The symbols [n].

        Raises:
            FormatError: states or words that `encode` cannot have written for so many symbols.
        """
        symbols, states = np.empty(self.count, dtype=np.uint8), self.states.astype(np.uint64)
        frequency, start = self.frequency.astype(np.uint64), _starts(self.frequency)
        used = _decode(self.words, frequency, start, self.slots(), states, symbols)
        if used != len(self.words) or (states != LOWEST).any():
            raise self.damaged()
        return symbols

    def damaged(self) -> FormatError:
        """For a decoder that does not find every word used and every state at 2^16."""
        return FormatError(f"{self.what} does not end where its encoder began; {DAMAGED}")


def read(cursor: Cursor, count: int, frequency: NDArray[np.int64]) -> Stream:
    """The rest of a stream as what `encode` wrote for `count` symbols, before any of them is decoded.

    Raises:
        FormatError: bytes that `encode` cannot have written for so many symbols.
    """
    lanes = cursor.varint()
    if not 1 <= lanes <= count:
        raise FormatError(f"{cursor.what} has {lanes} lanes, expected 1 to {count}, its symbols; {DAMAGED}")
    states = np.frombuffer(cursor.take(4 * lanes), "<u4").astype(np.uint32)
    if (states < LOWEST).any():
        raise FormatError(f"{cursor.what} has a state of {states.min()}, expected at least {LOWEST}; {DAMAGED}")
    if cursor.left % 2:
        raise FormatError(f"{cursor.what} has {cursor.left} bytes of words, expected an even number; {DAMAGED}")
    return Stream(cursor.what, count, frequency, states, np.frombuffer(cursor.rest(), "<u2").astype(np.uint16))


def decode(cursor: Cursor, count: int, frequency: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The `count` symbols [n] that `encode` was given, from the rest of a stream.

    Raises:
        FormatError: bytes that `encode` cannot have written for so many symbols.
    """
    return read(cursor, count, frequency).decode()


def _starts(frequency: NDArray[np.int64]) -> NDArray[np.uint64]:
    return (np.cumsum(frequency) - frequency).astype(np.uint64)


@numba.njit(cache=True, nogil=True)
def _encode(
    symbols: NDArray[np.uint8],
    frequency: NDArray[np.uint64],
    start: NDArray[np.uint64],
    states: NDArray[np.uint64],
    words: NDArray[np.uint16],
) -> int:
    """Fills `words` from its end; returns where they begin."""
    at = len(words)
    lane = len(symbols) % len(states)
    for i in range(len(symbols) - 1, -1, -1):
        lane = (lane if lane else len(states)) - 1
        x = states[lane]
        f = frequency[symbols[i]]
        if x >= f << np.uint64(32 - PRECISION):
            at -= 1
            words[at] = np.uint16(x & np.uint64(0xFFFF))
            x >>= np.uint64(16)
        states[lane] = ((x // f) << np.uint64(PRECISION)) + x % f + start[symbols[i]]
    return at


@numba.njit(cache=True, nogil=True)
def _decode(
    words: NDArray[np.uint16],
    frequency: NDArray[np.uint64],
    start: NDArray[np.uint64],
    slots: NDArray[np.uint8],
    states: NDArray[np.uint64],
    symbols: NDArray[np.uint8],
) -> int:
    """Fills `symbols`; returns the words used, -1 where they run out."""
    at = 0
    lane = 0
    for i in range(len(symbols)):
        slot = states[lane] & np.uint64(TOTAL - 1)
        symbol = slots[slot]
        x = frequency[symbol] * (states[lane] >> np.uint64(PRECISION)) + slot - start[symbol]
        if x < np.uint64(LOWEST):
            if at == len(words):
                return -1
            x = x << np.uint64(16) | np.uint64(words[at])
            at += 1
        states[lane] = x
        symbols[i] = symbol
        lane += 1
        if lane == len(states):
            lane = 0
    return at
