"""Files: written beside their place and renamed, so that a name holds a whole file or none."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from quantgolf.blob.container import check_envelope, parse
from quantgolf.encode import MAX_DECODED_BYTES
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import BlobHeader, CodedModel


def write_blob(path: str | Path, data: bytes, overwrite: bool = False) -> None:
    """Writes `data` to a new file in the same folder, makes sure it is on the disk, and gives it its name.

    Raises:
        QuantGolfError: the name is taken and `overwrite` is off, or the folder cannot be written.
    """
    path = Path(path)
    _refuse_taken(path, overwrite)
    beside = _beside(path)
    try:
        with beside.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def refuse_unwritable(path: str | Path, overwrite: bool = False) -> None:
    """Finds out before long work whether `write_blob` could write there.

    Raises:
        QuantGolfError: as `write_blob` would.
    """
    path = Path(path)
    _refuse_taken(path, overwrite)
    beside = _beside(path)
    try:
        beside.open("xb").close()
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink()


def read_blob(path: str | Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> tuple[BlobHeader, CodedModel]:
    """Reads and parses a file; a file of another kind is told by its first bytes, before the rest is read.

    Raises:
        QuantGolfError: the file is missing or unreadable.
        FormatError: as `parse`.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise QuantGolfError(f"file {path}: no such file, expected one that `quantgolf compress` wrote")
    try:
        with path.open("rb") as stream:
            start = stream.read(16)
            check_envelope(start, path.stat().st_size)
            data = start + stream.read()
        return parse(data, max_decoded_bytes)
    except OSError as error:
        raise QuantGolfError(
            f"file {path}: {error.strerror}, expected a readable file; check its permissions"
        ) from error
    except FormatError as error:
        raise FormatError(f"file {path}: {error}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.qgtmp")


def _refuse_taken(path: Path, overwrite: bool) -> None:
    if os.path.isdir(path):
        raise QuantGolfError(f"output {path}: is a folder, expected a file name; give one inside it")
    if os.path.lexists(path) and not overwrite:
        raise QuantGolfError(f"output {path}: exists already, expected a new name; choose another or pass --overwrite")


def _unwritable(path: Path, error: OSError) -> QuantGolfError:
    return QuantGolfError(f"output {path}: {error.strerror}, expected a folder to write to; choose another")
