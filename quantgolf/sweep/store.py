"""A results file: JSON lines that several processes append to, and that a killed one leaves readable.

A line is written by one call under a lock and flushed to the disk, and a line that could not be written whole is taken
back. What a killed process may still leave is half a last line: it is cut off before the next one is written.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.lines import HALF, point_of, read_lines
from quantgolf.sweep.point import FrontierPoint

AGAIN = "free some space and run the same command again: what is finished is kept"


@dataclass(frozen=True)
class Stored:
    """What a results file holds.

    Attributes:
        points: by key, the last of each, but a finished one rather than one that failed.
        notes: what could not be read, a sentence each.
    """

    points: dict[str, FrontierPoint]
    notes: tuple[str, ...] = ()


class ResultsFile:
    """A file of points; it need not exist yet.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Stored:
        """All points; what is no point is left out with a note.

        Raises:
            QuantGolfError: a file that cannot be read.
        """
        if not self.path.exists():
            return Stored({})
        points: dict[str, FrontierPoint] = {}
        notes = []
        for line in read_lines(self.path):
            if isinstance(line.found, str):
                again = "; it is cut off and its point done again" if line.found == HALF else ""
                notes.append(f"results {self.path} line {line.number} is left out: {line.found}{again}")
                continue
            point = line.found
            if point.status == "done" or point.key not in points or points[point.key].status != "done":
                points[point.key] = point
        return Stored(points, tuple(notes))

    def append(self, point: FrontierPoint) -> None:
        """Adds a point, whole or not at all.

        Raises:
            QuantGolfError: it could not be written, for example on a full disk.
        """
        line = point.line().encode()
        try:
            with self._locked() as file:
                end = _mended(file)
                try:
                    written = os.write(file, line)
                    if written < len(line):
                        raise OSError(28, "No space left on device")
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, end)
                    raise
        except OSError as error:
            raise QuantGolfError(f"results {self.path}: {error.strerror}, expected room for a line; {AGAIN}") from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)


class Claim:
    """A name that one process holds at a time, until it lets go of it or dies.

    Args:
        folder: of lock files; made where it is missing.
        name: of this one.

    Raises:
        QuantGolfError: the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise QuantGolfError(f"{folder}: {error.strerror}, expected a folder to write to; {AGAIN}") from error

    def take(self, wait: bool = False) -> bool:
        """Whether it is held now; with `wait` it is in the end."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def drop(self) -> None:
        """Lets go of it."""
        os.close(self._file)


def _mended(file: int) -> int:
    """Cuts half a last line off, or ends a whole one that lacks its line break; returns the file's size."""
    size = os.fstat(file).st_size
    tail, at = b"", size
    while at > 0 and b"\n" not in tail:
        start = max(0, at - (1 << 16))
        tail, at = os.pread(file, at - start, start) + tail, start
    last = tail.rpartition(b"\n")[2]
    if not last:
        return size
    if isinstance(point_of(last.decode("utf-8", errors="replace")), str):
        size -= len(last)
        os.ftruncate(file, size)
        return size
    os.write(file, b"\n")
    return size + 1
