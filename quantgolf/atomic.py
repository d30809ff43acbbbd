"""A file that has its name whole or not at all: written beside its place, made sure of on the disk, and renamed.

All rooms that write files write them so. What is appended to line by line, results of a sweep or benchmark, takes a
line whole or not at all.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from quantgolf.errors import QuantGolfError

SUFFIX = ".qgtmp"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new empty file in the folder of `path`, to be filled. When the block ends it is flushed to the disk and gets
    its name; when the block raises it is gone, and `path` is as it was.

    Raises:
        QuantGolfError: the name is taken and `overwrite` is off, the folder cannot be written, or the disk is full.
    """
    refuse_taken(path, overwrite)
    beside = unfinished(path)
    try:
        with beside.open("xb") as stream, held(beside):
            mode = os.fstat(stream.fileno()).st_mode & 0o777
            sweep(path)
            yield beside
            _flush(beside)
            os.chmod(beside, mode)  # what fills it may have made it anew for its owner alone, as safetensors does
            os.replace(beside, path)
        with suppress(OSError):  # not every file system knows it of folders
            _flush(path.parent)
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


def append_line(path: Path, line: str) -> None:
    """Adds a line of JSON to a file, made where it is missing, whole or not at all.

    Several processes may do so at once. Half a last line, which one that was killed leaves, is cut off before.

    Raises:
        QuantGolfError: it cannot be written, or the disk is full.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            end, data = _mended(file), f"{line}\n".encode()
            try:
                if os.write(file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)
    except OSError as error:
        raise unwritable(path, error) from error


def is_json(line: str | bytes) -> bool:
    """Whether a line is whole; an object that is cut anywhere is not."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def refuse_unwritable(path: str | Path, overwrite: bool = False) -> None:
    """Finds out before long work whether a file could be written there.

    Raises:
        QuantGolfError: as `written` would.
    """
    path = Path(path)
    refuse_taken(path, overwrite)
    beside = unfinished(path)
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
    process dies."""
    handle = os.open(beside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Removes what processes that were killed left of `path`; what cannot be removed stays."""
    for left in path.parent.glob(f".{_prefix(path)}.*{SUFFIX}"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def refuse_taken(path: Path, overwrite: bool) -> None:
    """Refuses a name that is taken, and one of a folder in any case.

    Raises:
        QuantGolfError: it is.
    """
    if os.path.isdir(path):
        raise QuantGolfError(f"output {path}: is a folder, expected a file name; give one inside it")
    if os.path.lexists(path) and not overwrite:
        raise QuantGolfError(f"output {path}: exists already, expected a new name; choose another or pass --overwrite")


def unwritable(path: Path, error: OSError) -> QuantGolfError:
    """What is said of an output that could not be written."""
    expected = "room for it; free some" if error.errno in FULL else "a folder to write to; choose another"
    return QuantGolfError(f"output {path}: {error.strerror or error}, expected {expected}")


def _prefix(path: Path) -> str:
    return hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()


def _mended(file: int) -> int:
    """Cuts half a last line off, or ends a whole one that lacks its line break; returns the file's size."""
    size = at = os.fstat(file).st_size
    tail = b""
    while at > 0 and b"\n" not in tail:
        start = max(0, at - (1 << 16))
        tail, at = os.pread(file, at - start, start) + tail, start
    last = tail.rpartition(b"\n")[2]
    if not last:
        return size
    if not is_json(last):
        os.ftruncate(file, size - len(last))
        return size - len(last)
    os.write(file, b"\n")
    return size + 1


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
