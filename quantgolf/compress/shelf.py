"""What a run has finished, kept on disk while it goes on: killed and typed again, it takes solved matrices from there.

A file is there whole or not at all, and is asked for by all that decides what is in it, so that a matrix of other
weights, statistics, options or versions is not found. Like the store of statistics this touches files, its own alone.
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from quantgolf.atomic import fill, written
from quantgolf.errors import QuantGolfError
from quantgolf.types import WeightStats

DIGEST_BYTES, LENGTH_BYTES = 16, 4
PACKAGES = ("quantgolf", "torch", "numpy", "numba", "scipy", "zstandard")


class Shelf:
    """A folder of finished matrices.

    A folder that can no longer be written to is a fact and no error: `full` says why, what is there goes, because the
    file will need the room, and nothing more is kept. `found` counts what an earlier run had kept, `changed` what of it
    the disk has changed, which is solved again.

    Args:
        folder: made where it is missing; no other process may write to it.

    Raises:
        QuantGolfError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.full = folder, ""
        self.found = self.changed = 0
        self._of = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QuantGolfError(
                f"{folder}: {error.strerror}, expected a folder to write to; choose another"
            ) from error

    def open(self, checkpoint: str, stats: Iterable[WeightStats]) -> None:
        """Says what matrices are of.

        Args:
            checkpoint: its fingerprint.
            stats: of all its matrices.
        """
        whole = hashlib.blake2b(json.dumps([checkpoint, *versions()]).encode(), digest_size=DIGEST_BYTES)
        for each in stats:
            whole.update(json.dumps([each.name, each.tokens, [[use.kind, use.visits] for use in each.uses]]).encode())
            for use in each.uses:
                for tensor in (use.row, use.column, use.outputs):
                    whole.update(b"-" if tensor is None else _bytes_of(tensor))
        self._of = whole.hexdigest()

    def find(self, *what: object) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors by name and facts that were kept of `what`; None where there are none, or the disk has changed them.

        Args:
            what: name of the matrix and all options that decide it, told apart by their `repr`.
        """
        try:
            data = self._path(what).read_bytes()
        except OSError:
            return None
        try:
            if hashlib.blake2b(data[DIGEST_BYTES:], digest_size=DIGEST_BYTES).digest() != data[:DIGEST_BYTES]:
                raise ValueError("changed")
            start = DIGEST_BYTES + LENGTH_BYTES
            end = start + int.from_bytes(data[DIGEST_BYTES:start], "little")
            facts, tensors = json.loads(data[start:end]), load(data[end:])
        except (ValueError, SafetensorError):
            self.changed += 1
            return None
        self.found += 1
        return tensors, facts

    def keep(self, what: tuple[object, ...], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Puts tensors and facts, which JSON can hold, there for `find`."""
        if self.full:
            return
        head = json.dumps(facts).encode()
        body = (
            len(head).to_bytes(LENGTH_BYTES, "little")
            + head
            + save({name: t.contiguous() for name, t in tensors.items()})
        )
        try:
            with written(self._path(what), overwrite=True) as beside:
                fill(beside, hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body)
        except QuantGolfError as error:
            self.clear(str(error))

    def clear(self, why: str) -> bool:
        """Gives up the room that matrices take, and keeps no more; returns whether there were any."""
        self.full = self.full or why
        had = any(self.folder.glob("*"))
        shutil.rmtree(self.folder, ignore_errors=True)
        return had

    def _path(self, what: tuple[object, ...]) -> Path:
        name = hashlib.blake2b(repr((self._of, *what)).encode(), digest_size=DIGEST_BYTES).hexdigest()
        return self.folder / f"{name}.solved"


def versions() -> list[str]:
    """Of all that computes; other versions may choose other codes."""
    return [version(each) for each in PACKAGES] + [platform.machine()]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
