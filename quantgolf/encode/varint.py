"""Variable-length integers (LEB128: seven bits a byte, low ones first), and a cursor that never reads too far."""

from collections.abc import Iterator
from dataclasses import dataclass

from quantgolf.errors import FormatError

DAMAGED = "the file is damaged, copy it again"
UNKNOWN = "a newer quantgolf may have written it, upgrade; or the file is damaged, copy it again"


def varint(value: int) -> bytes:
    """A non-negative integer below 2^63, in as few bytes as it takes."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """A signed integer as a non-negative one, for `varint`: 0, -1, 1, -2, 2, … become 0, 1, 2, 3, 4, …"""
    return 2 * value if value >= 0 else -2 * value - 1


def signed(value: int) -> int:
    """The integer that `zigzag` was given."""
    return -(value + 1 >> 1) if value & 1 else value >> 1


@dataclass
class Cursor:
    """Reads bytes front to back; `what` names them in messages.

    Raises (every method):
        FormatError: fewer bytes are left than asked for, or the bytes are not what the method reads.
    """

    data: bytes
    what: str
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise FormatError(f"{self.what} asks for {count} bytes where {self.left} are left; {DAMAGED}")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """The next variable-length integer; only the shortest spelling of a number counts."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte == 0 and shift > 7:
                raise FormatError(f"{self.what} holds a number with idle bytes, expected its shortest form; {DAMAGED}")
            if byte < 0x80:
                return value
            if shift == 63:
                raise FormatError(f"{self.what} holds a number of more than 63 bits; {DAMAGED}")

    def bits(self) -> Iterator[int]:
        """Bits from here on, the lowest of a byte first; takes a byte when its first bit is asked for."""
        while True:
            byte = self.take(1)[0]
            yield from (byte >> place & 1 for place in range(8))

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(self.left)

    def finish(self) -> None:
        """Insists that nothing is left."""
        if self.left:
            raise FormatError(f"{self.what} has {self.left} bytes too many; {DAMAGED}")
