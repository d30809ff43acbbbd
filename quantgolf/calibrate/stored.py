"""Statistics that lie in a folder: read a weight at a time, and refused where the disk has changed them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantgolf.calibrate.place import Kind
from quantgolf.errors import QuantGolfError
from quantgolf.types import WeightStats, WeightUse

INDEX = "statistics.json"
DIGESTS = "digests"  # in the index: of each file by its name, and of the index without its own
DIGEST_BYTES = 16


@dataclass(frozen=True)
class StoredUse:
    """A `WeightUse` on disk: `row`, `column` and `outputs` are (file, key)."""

    kind: Kind
    visits: int
    row: tuple[str, str]
    column: tuple[str, str]
    outputs: tuple[str, str] | None


class StoredStats(Mapping[str, WeightStats]):
    """Statistics by matrix name, read from their folder at each access.

    Args:
        folder: with the safetensors files.
        uses: of each matrix.
        sizes: [N, K] of each matrix.
        tokens: of text.
    """

    def __init__(
        self, folder: Path, uses: dict[str, tuple[StoredUse, ...]], sizes: dict[str, tuple[int, int]], tokens: int
    ) -> None:
        self.folder, self.uses, self.sizes, self.tokens = folder, uses, sizes, tokens

    def __getitem__(self, name: str) -> WeightStats:
        rows, columns = self.sizes[name]
        return WeightStats(
            name,
            tuple(
                WeightUse(
                    use.kind,
                    self._read(*use.row, (rows,)),
                    self._read(*use.column, (columns, columns)),
                    use.visits,
                    None if use.outputs is None else self._read(*use.outputs, (rows, rows)),
                )
                for use in self.uses[name]
            ),
            self.tokens,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.uses)

    def __len__(self) -> int:
        return len(self.uses)

    def _read(self, file: str, key: str, shape: tuple[int, ...]) -> Tensor:
        try:
            with safe_open(self.folder / file, "pt") as tensors:
                tensor: Tensor = tensors.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self.folder, file, error) from error
        if tensor.shape != shape:
            raise QuantGolfError(
                f"statistics {self.folder}: {key} of {file} is {list(tensor.shape)}, expected {list(shape)}; "
                "calibrate again"
            )
        return tensor


def stored_use(use: dict[str, Any]) -> StoredUse:
    (row, row_key), (column, column_key), outputs = use["row"], use["column"], use["outputs"]
    if outputs is not None:
        file, key = outputs
        outputs = (file, key)
    return StoredUse(use["kind"], use["visits"], (row, row_key), (column, column_key), outputs)


def sealed(index: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    """An index as JSON gives it back, with digests of the folder's files and of itself."""
    index = json.loads(json.dumps({**index, DIGESTS: files}))
    return {**index, DIGESTS: {**files, INDEX: _digest_of_index(index)}}


def refuse_changed_index(folder: Path, index: dict[str, Any]) -> None:
    """Refuses an index in which anything is not as it was written.

    Raises:
        QuantGolfError: that.
    """
    files = {file: digest for file, digest in index[DIGESTS].items() if file != INDEX}
    if index[DIGESTS][INDEX] != _digest_of_index({**index, DIGESTS: files}):
        raise _changed(folder, INDEX)


def refuse_changed_files(folder: Path, index: dict[str, Any]) -> None:
    """Reads all files of a folder once, 1.6 s a GB where they are cached (measured), and refuses one that is not as
    it was written.

    Raises:
        QuantGolfError: that, or one that cannot be read.
    """
    for file, digest in index[DIGESTS].items():
        if file == INDEX:
            continue
        try:
            found = digest_of(folder / file)
        except OSError as error:
            raise _unreadable(folder, file, error) from error
        if found != digest:
            raise _changed(folder, file)


def digest_of(path: Path, made_sure: bool = False) -> str:
    """BLAKE2b of a file, which is read in pieces; with `made_sure` it is on the disk as well."""
    with path.open("rb") as stream:
        if made_sure:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()


def _digest_of_index(index: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(index, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _changed(folder: Path, file: str) -> QuantGolfError:
    return QuantGolfError(
        f"statistics {folder}: {file} has changed since it was written, expected the digest that is kept of it; "
        "calibrate again"
    )


def _unreadable(folder: Path, file: str, error: Exception) -> QuantGolfError:
    return QuantGolfError(
        f"statistics {folder}: {file} cannot be read ({error}), expected the files that `quantgolf calibrate` wrote; "
        "calibrate again"
    )
