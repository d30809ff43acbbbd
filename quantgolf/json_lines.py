"""Files of JSON lines that processes append to, results of sweeps and benchmarks: a line is whole or not there."""

import errno
import json
import os
from pathlib import Path

from quantgolf.atomic import lock, unwritable
from quantgolf.errors import QuantGolfError

LONGEST = 1 << 28  # bytes of a line


def append_line(path: Path, line: str) -> None:
    """Adds a line of JSON to a file of such lines, made where it is missing, whole or not at all.

    Several processes may do so at once. Half a last line, which one that was killed leaves, is cut off before.

    Raises:
        QuantGolfError: the file ends in something else, it cannot be written, or the disk is full.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            lock(file)
            half, data = _half_of(file, path), f"{line}\n".encode()
            end = os.fstat(file).st_size - len(half)
            if is_json(half):
                end, data = end + len(half), b"\n" + data
            else:
                os.ftruncate(file, end)
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


def refuse_unlike(path: Path | None) -> None:
    """Refuses to add lines to a file that does not end in one of JSON, or in half of one; there need not be a file.

    Raises:
        QuantGolfError: it does not, or cannot be read.
    """
    if path is None:
        return
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        _half_of(file, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        os.close(file)


def is_json(line: str | bytes) -> bool:
    """Whether a line is whole; an object that is cut anywhere is not."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _half_of(file: int, path: Path) -> bytes:
    """What stands behind the last line break of a file of JSON lines: nothing, half a line, or one without its break.

    Raises:
        QuantGolfError: neither that nor the line before is of such a file.
    """
    at, tail = os.fstat(file).st_size, b""
    while at > 0 and tail.count(b"\n") < 2 and len(tail) < LONGEST:
        start = max(0, at - max(1 << 16, len(tail)))
        tail, at = os.pread(file, at - start, start) + tail, start
    before, _, half = tail.rpartition(b"\n")
    last = before.rpartition(b"\n")[2]
    if not (is_json(last) or not last.strip()) or not (is_json(half) or half[:1] in (b"", b"{")):
        raise QuantGolfError(
            f"output {path}: ends in {(half or last)[:30]!r}, expected lines of JSON to add one to; choose another"
        )
    return half
