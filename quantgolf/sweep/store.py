"""A results file: JSON lines that several processes append to, and that a killed one leaves readable.

A line is there whole or not at all. What a killed process may still leave is half a last line: it is cut off before the
next one is written.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from quantgolf.atomic import lock
from quantgolf.errors import QuantGolfError
from quantgolf.json_lines import append_line
from quantgolf.sweep.lines import HALF, read_lines
from quantgolf.sweep.point import FrontierPoint

AGAIN = "the same command goes on from what is finished"


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
        try:
            append_line(self.path, point.line().removesuffix("\n"))
        except QuantGolfError as error:
            raise QuantGolfError(f"{error}; {AGAIN}") from error


class Claim:
    """A name that one process holds at a time, until it lets go of it or dies.

    Args:
        folder: of lock files; made where it is missing.
        name: of this one.

    Raises:
        QuantGolfError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self._file = folder / f"{name}.lock", -1
        self._open()

    def take(self, wait: bool = False) -> bool:
        """Whether it is held now; with `wait` it is in the end."""
        while True:
            taken = lock(self._file, wait)
            if taken is None:
                raise QuantGolfError(
                    f"{self.path.parent}: its file system has no locks, expected some, by which processes tell who "
                    "works on what; give an --out on another disk"
                )
            if not taken or self._is_there():
                return taken
            self.drop()  # whoever held it removed it
            self._open()

    def drop(self) -> None:
        """Lets go of it; to do so again is nothing."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise QuantGolfError(
                f"{self.path.parent}: {error.strerror}, expected a folder to write to, with room; {AGAIN}"
            ) from error

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except FileNotFoundError:
            return False
