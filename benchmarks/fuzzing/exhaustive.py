"""Changes of which there are few enough to try them all: flipped bits, cuts, surplus bytes."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from reliability_rows import Row

from quantgolf.blob import parse
from quantgolf.errors import FormatError

LARGE = 8192  # bytes of a file that takes minutes


def flips(data: bytes) -> Iterator[bytes]:
    """Every file that differs in one bit."""
    changed = bytearray(data)
    for at in range(len(data)):
        for bit in range(8):
            changed[at] ^= 1 << bit
            yield bytes(changed)
            changed[at] ^= 1 << bit


def cuts(data: bytes) -> Iterator[bytes]:
    """Every file that ends too early."""
    return (data[:length] for length in range(len(data)))


def surpluses(data: bytes) -> Iterator[bytes]:
    """Every file with one byte more, at the end and anywhere in it the byte that stands there twice."""
    yield from (data + bytes([value]) for value in range(256))
    yield from (data[:at] + data[at - 1 : at] + data[at:] for at in range(1, len(data)))


CHANGES: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "every bit flipped": flips, "cut at every byte": cuts, "every surplus byte": surpluses,
}  # fmt: skip


def unnoticed(changes: Iterable[bytes]) -> tuple[int, int]:
    """How many files there were, and how many were read as if nothing had happened."""
    tried = failed = 0
    for data in changes:
        tried += 1
        try:
            parse(data)
            failed += 1
        except FormatError:
            pass
    return tried, failed


def rows(paths: Iterable[Path], large: bool) -> list[Row]:
    """A row for each kind of change, over all these files."""
    files = [path.read_bytes() for path in sorted(paths)]
    files = [data for data in files if large or len(data) < LARGE]
    found = []
    for what, change in CHANGES.items():
        begin = time.monotonic()
        counts = [unnoticed(change(data)) for data in files]
        tried, failed = sum(count for count, _ in counts), sum(failed for _, failed in counts)
        case, seconds = f"golden files: {what}", round(time.monotonic() - begin, 1)
        command = "python benchmarks/fuzz.py exhaustive"
        found.append(Row("Hostile files", case, command, tried, tried, failed, seconds, {"files": len(files)}))
    return found
