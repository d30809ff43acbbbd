"""A file that has its name whole or not at all: written beside its place, made sure of on the disk, and renamed.

All rooms that write files write them so; what is appended to line by line is in `json_lines`.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantgolf.errors import QuantGolfError

SUFFIX = ".qgtmp"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNLOCKED = (errno.EBADF, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # how file systems say that they have no locks


@contextmanager
def written(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new empty file in the folder of `path`, to be filled. When the block ends it is flushed to the disk and gets
    its name; when the block raises it is gone, and `path` is as it was.

    A file that is replaced keeps its permissions; where the name is a link, what it leads to is replaced.

    Raises:
        QuantGolfError: the name is taken and `overwrite` is off, the folder cannot be written, or the disk is full.
    """
    refuse_taken(path, overwrite)
    place = place_of(path)
    beside = unfinished(place)
    try:
        with beside.open("xb") as stream, held(beside):
            mode = os.stat(place if place.exists() else stream.fileno()).st_mode & 0o777
            sweep(place)
            yield beside
            flush(beside)
            os.chmod(beside, mode)  # what fills it may have made it anew for its owner alone, as safetensors does
            os.replace(beside, place) if overwrite else _named(beside, place)
        with suppress(OSError):  # not every file system knows it of folders
            flush(place.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def fill(beside: Path, data: bytes) -> None:
    """Writes `data` into a file that `written` gave, and has it on the disk when it returns."""
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def place_of(path: Path) -> Path:
    """Where a link leads to; anything else itself, as does a link that leads to itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def refuse_unwritable(path: str | Path, overwrite: bool = False) -> None:
    """Finds out before long work whether a file could be written there.

    Raises:
        QuantGolfError: as `written` would.
    """
    path = Path(path)
    refuse_taken(path, overwrite)
    beside = unfinished(place_of(path))
    try:
        beside.open("xb").close()
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def unfinished(path: Path) -> Path:
    """A name, of which nothing has been, for a file or folder that will be `path`."""
    return path.with_name(f".{_prefix(path)}.{secrets.token_hex(8)}{SUFFIX}")


@contextmanager
def held(beside: Path) -> Iterator[None]:
    """While entered, `sweep` leaves a file or folder alone that `unfinished` named; the system lets go of it when the
    process dies. Where a file system has no locks nothing is swept."""
    handle = _open(beside)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Removes what processes that were killed left of `path`; what cannot be removed stays."""
    for left in path.parent.glob(f".{_prefix(path)}.*{SUFFIX}"):
        with suppress(OSError):
            handle = _open(left)
            try:
                if lock(handle, wait=False):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def lock(handle: int, wait: bool = True) -> bool | None:
    """Locks an open file until it is closed. None where its file system has no locks, False where another process has
    it and `wait` is off."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNLOCKED:
            raise
        return None
    return True


def refuse_taken(path: Path, overwrite: bool) -> None:
    """Refuses a name that is taken, and one of a folder in any case.

    Raises:
        QuantGolfError: it is.
    """
    if os.path.isdir(path):
        raise QuantGolfError(f"output {path}: is a folder, expected a file name; give one inside it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise QuantGolfError(f"output {path}: is a device or a pipe, expected a file; give a file name")
    if os.path.lexists(path) and not overwrite:
        raise QuantGolfError(f"output {path}: exists already, expected a new name; choose another or pass --overwrite")


def unwritable(path: Path, error: OSError) -> QuantGolfError:
    """What is said of an output that could not be written."""
    expected = "room for it; free some" if error.errno in FULL else "a folder to write to; choose another"
    return QuantGolfError(f"output {path}: {error.strerror or error}, expected {expected}")


def _prefix(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()


def _open(path: Path) -> int:
    """To be locked, for which network file systems want files that can be written; folders cannot be."""
    return os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_CLOEXEC)


def _named(beside: Path, place: Path) -> None:
    """Gives a file its name, unless another process was faster."""
    try:
        os.link(beside, place)
    except OSError:  # it is taken, or the file system has no links
        refuse_taken(place, overwrite=False)
        os.replace(beside, place)


def flush(path: Path) -> None:
    """Has a file or a folder's names on the disk when it returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
