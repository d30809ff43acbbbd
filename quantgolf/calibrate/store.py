"""Statistics on disk: one calibration serves every budget, and models whose statistics do not fit into memory.

A folder holds `statistics.json` (what was calibrated, on what, and how) and safetensors files with the row weights,
column matrices and output matrices, read one weight at a time. Column matrices that are equal, as those of q, k and
v, lie there once. Files are mapped into memory: of an output matrix that nobody looks at nothing is kept. The index has
a digest of each file and of itself, so that what a disk has changed is refused. This and `stored` are the one place of
the room that touches files, because the statistics are its own.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from quantgolf.atomic import fill, flush, held, place_of, sweep, unfinished
from quantgolf.calibrate.stored import (
    DIGESTS,
    INDEX,
    StoredStats,
    digest_of,
    refuse_changed_files,
    refuse_changed_index,
    sealed,
    stored_use,
)
from quantgolf.errors import QuantGolfError
from quantgolf.types import Block, Calibration, ParameterReport, WeightStats

VERSION = 2  # 1 had no output matrices
ENTRIES = {"version", "origin", "tokens", "labels", "blocks", "parameters", "matrices", DIGESTS}  # the last not always


@dataclass(frozen=True)
class Origin:
    """What statistics were made of.

    Attributes:
        model: fingerprint of the checkpoint.
        text: digest of the tokens.
        settings: tokens, length, context, seed and whatever else decides them.
    """

    model: str
    text: str
    settings: dict[str, Any]


class Writer:
    """Fills a folder of statistics, a group of matrices at a time, and gives it its name when it is complete and on the
    disk. Where the name is a link, the folder is where it leads to.

    Raises:
        QuantGolfError: the name is taken and `overwrite` is off, or its folder cannot be written.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder, self.overwrite = place_of(folder), overwrite
        refuse_taken(folder, overwrite)
        self.beside, self._holding = unfinished(self.folder), ExitStack()
        try:
            self.beside.mkdir()
            self._holding.enter_context(held(self.beside))
            sweep(self.folder)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self.entries: dict[str, Any] = {}
        self.digests: dict[str, str] = {}

    def add(self, stats: Mapping[str, WeightStats]) -> None:
        """Writes statistics into a file of their own."""
        file, tensors = f"statistics-{len(self.digests):05}.safetensors", {}
        known: list[tuple[str, Tensor]] = []
        for name, weight in stats.items():
            uses: list[dict[str, Any]] = []
            for index, use in enumerate(weight.uses):
                tensors[f"{name}/{index}/row"] = use.row.cpu().contiguous()
                column = use.column.cpu().contiguous()
                same = next((key for key, other in known if other.shape == column.shape and other.equal(column)), None)
                if same is None:
                    same = f"{name}/{index}/column"
                    tensors[same] = column
                    known = [*known[-3:], (same, column)]
                uses.append({"kind": use.kind, "visits": use.visits, "row": [file, f"{name}/{index}/row"],
                             "column": [file, same], "outputs": None})  # fmt: skip
                if use.outputs is not None:
                    tensors[f"{name}/{index}/outputs"] = use.outputs.cpu().contiguous()
                    uses[-1]["outputs"] = [file, f"{name}/{index}/outputs"]
            self.entries[name] = {"uses": uses}
        try:
            save_file(tensors, self.beside / file)
            # safetensors keeps a file to its owner; these are for whoever may enter the folder.
            (self.beside / file).chmod(self.beside.stat().st_mode & 0o666)
            self.digests[file] = digest_of(self.beside / file, made_sure=True)
        except (OSError, SafetensorError) as error:
            raise _unwritable(self.folder, error) from error

    def finish(self, calibration: Calibration, origin: Origin) -> Calibration:
        """Writes what else belongs to the statistics and renames the folder; returns them as `read` would."""
        index = {
            "version": VERSION,
            "origin": asdict(origin),
            "tokens": calibration.tokens,
            "labels": calibration.labels,
            "blocks": {name: asdict(block) for name, block in calibration.blocks.items() if name in self.entries},
            "parameters": [asdict(report) for report in calibration.parameters],
            "matrices": {name: self.entries[name] for name in calibration.blocks if name in self.entries},
        }
        try:
            fill(self.beside / INDEX, json.dumps(sealed(index, self.digests)).encode())
            _flush_folder(self.beside)
            if self.overwrite and self.folder.is_dir():
                self._replace()
            else:
                os.rename(self.beside, self.folder)
            _flush_folder(self.folder.parent)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return read_calibration(self.folder, check=False)[0]

    def discard(self) -> None:
        """Removes what is not finished."""
        shutil.rmtree(self.beside, ignore_errors=True)
        self._holding.close()

    def _replace(self) -> None:
        """Renames the folder in the place of the old one, which is whole until then and removed afterwards; what a
        killed process leaves of it `sweep` removes."""
        old = unfinished(self.folder)
        with held(self.folder):
            os.rename(self.folder, old)
            try:
                os.rename(self.beside, self.folder)
            except BaseException:
                os.rename(old, self.folder)
                raise
            shutil.rmtree(old, ignore_errors=True)


def write_calibration(folder: Path, calibration: Calibration, origin: Origin, overwrite: bool = False) -> None:
    """Writes statistics into a folder that exists whole or not at all.

    Raises:
        QuantGolfError: the name is taken and `overwrite` is off, or its folder cannot be written.
    """
    writer = Writer(folder, overwrite)
    try:
        writer.add(calibration.stats)
        writer.finish(calibration, origin)
    finally:
        writer.discard()


def read_calibration(folder: Path, model: str | None = None, check: bool = True) -> tuple[Calibration, Origin]:
    """Statistics of a folder, their matrices read when they are asked for.

    Args:
        folder: that `write_calibration` wrote.
        model: fingerprint of the checkpoint they have to be of; None accepts any.
        check: read all files once beforehand, to refuse those that have changed since they were written; those of
            earlier versions, which kept no digests, are taken as they are. The index is looked at in any case.

    Raises:
        QuantGolfError: no such folder, one of another kind or version, statistics of another model, or changed ones.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["version"] != VERSION:
            raise QuantGolfError(
                f"statistics {folder}: version {index['version']}, expected {VERSION}; calibrate again"
            )
        if unknown := index.keys() - ENTRIES:
            raise ValueError(f"unknown {min(unknown)}")
        if DIGESTS in index:
            refuse_changed_index(folder, index)
        origin = Origin(**index["origin"])
        blocks = {name: Block(**block) for name, block in index["blocks"].items()}
        parameters = tuple(
            ParameterReport(**{**report, "shape": tuple(report["shape"]), "uses": tuple(report["uses"])})
            for report in index["parameters"]
        )
        uses = {name: tuple(map(stored_use, entry["uses"])) for name, entry in index["matrices"].items()}
        if uses.keys() != blocks.keys() or not all(uses.values()):
            raise ValueError("blocks that are not its matrices")
        stats = StoredStats(folder, uses, _sizes(blocks, parameters), index["tokens"])
        outputs = frozenset(name for name, of in uses.items() if any(use.outputs is not None for use in of))
        calibration = Calibration(stats, blocks, parameters, index["tokens"], index["labels"], outputs)
    except OSError as error:
        raise QuantGolfError(
            f"statistics {folder}: {INDEX} cannot be read ({error.strerror}), expected a folder that "
            "`quantgolf calibrate` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise QuantGolfError(
            f"statistics {folder}: {INDEX} is not what `quantgolf calibrate` writes ({error!r}); calibrate again"
        ) from error
    if model is not None and origin.model != model:
        raise QuantGolfError(
            f"statistics {folder}: are of the model {origin.model}, and the checkpoint is {model}, expected the same; "
            "calibrate this checkpoint"
        )
    if check and DIGESTS in index:
        refuse_changed_files(folder, index)
    return calibration, origin


def _sizes(blocks: dict[str, Block], parameters: tuple[ParameterReport, ...]) -> dict[str, tuple[int, int]]:
    """[N, K] of each matrix."""
    shapes = {report.name: report.shape for report in parameters}
    found = {name: block.matrix(torch.empty(shapes[block.parameter], device="meta")) for name, block in blocks.items()}
    return {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in found.items()}


def text_digest(batches: list[tuple[Tensor, Tensor]]) -> str:
    """A digest of calibration tokens."""
    digest = blake2b(digest_size=8)
    for inputs, targets in batches:
        digest.update(str(tuple(inputs.shape)).encode())
        digest.update(inputs.cpu().contiguous().numpy().tobytes())
        digest.update(targets.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def refuse_taken(folder: Path, overwrite: bool) -> None:
    """Finds out before long work whether a folder's name is free.

    Raises:
        QuantGolfError: it is taken, and `overwrite` is off or it holds something else than statistics; or it is a link
            that leads nowhere but to itself.
    """
    if place_of(folder).is_symlink():
        raise QuantGolfError(f"output {folder}: is a link that leads to itself, expected a folder; choose another name")
    if not folder.exists():
        return
    if not overwrite:
        raise QuantGolfError(
            f"output {folder}: exists already, expected a new name; choose another or pass --overwrite"
        )
    if not (folder / INDEX).is_file():
        raise QuantGolfError(
            f"output {folder}: exists and holds no statistics, expected those of an earlier run to replace; choose "
            "another name"
        )


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system knows it of folders
        flush(folder)


def _unwritable(folder: Path, error: Exception) -> QuantGolfError:
    reason = getattr(error, "strerror", None) or str(error)
    return QuantGolfError(f"output {folder}: {reason}, expected a folder to write to; choose another")
