"""Files: written beside their place and renamed, so that a name holds a whole file or none."""

import os
from pathlib import Path

from quantgolf.atomic import fill, written
from quantgolf.blob.container import check_envelope, parse
from quantgolf.encode import MAX_DECODED_BYTES
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import BlobHeader, CodedModel


def write_blob(path: str | Path, data: bytes, overwrite: bool = False) -> None:
    """Writes `data` beside its place, makes sure it is on the disk, and gives it its name.

    Raises:
        QuantGolfError: as `quantgolf.atomic.written`.
    """
    with written(Path(path), overwrite) as beside:
        fill(beside, data)


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
            check_envelope(start, os.fstat(stream.fileno()).st_size)
            data = start + stream.read()
        return parse(data, max_decoded_bytes)
    except OSError as error:
        raise QuantGolfError(
            f"file {path}: {error.strerror}, expected a readable file; check its permissions"
        ) from error
    except FormatError as error:
        raise FormatError(f"file {path}: {error}") from error
