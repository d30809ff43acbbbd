"""What a file has to give back, kept from before it was coded, and the check that it does, once it lies on the disk.

What is expected comes from the solver's codes and steps, multiplied in NumPy by the formula of the format's page, and
from the tensors that are kept: neither coder nor reader has a part in it. So a fault of either, of the disk or of
memory in between is found before a file gets its name. What both share is the table behind steps (`Exponents.steps`).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantgolf.blob import read_blob
from quantgolf.encode import DTYPES, Entry
from quantgolf.encode.dtypes import dtype_name, stored_name
from quantgolf.encode.place import rows_and_columns
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import digest, restored
from quantgolf.runtime.digest import digest_of
from quantgolf.runtime.subnormal import subnormals
from quantgolf.types import BlobHeader, Block, CodedTensor, Groups, Steps

ROWS_AT_ONCE = 1 << 22  # weights
# The most that keeping a tensor in fp16 may move a value, as a share of it or of the tensor's mean magnitude.
TOLERANCE = 2.0**-11


@dataclass(frozen=True)
class Expected:
    """One tensor of a file.

    Attributes:
        name, aliases, shape: as in the checkpoint; `dtype` as safetensors spells the checkpoint's.
        parts: where each matrix and each run of kept rows lies, all rows in order, and the digest of its values: of a
            matrix [N, K] in fp32, of kept rows [rows, C] in fp32 beside matrices and in the checkpoint's dtype alone.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[tuple[Block, str], ...]


@dataclass(frozen=True)
class ReadBack:
    """A file that was written, read again from the disk, and found to be what was solved.

    Attributes:
        tensors: of it, each compared bit for bit.
        weights: numbers in them.
    """

    tensors: int
    weights: int

    def line(self) -> str:
        """In a sentence."""
        return f"verified: read back from disk, {self.tensors} tensors bit for bit"


def solved_digest(codes: Tensor, steps: Steps | Groups) -> str:
    """Digest of the weights that codes [N, K] and their steps stand for: codes · (r · k), or (codes - zero) · scale, in
    fp32 and in that order."""
    with subnormals():  # as `restored` has them
        return digest_of(_weights(codes, steps))


def expected_of(entries: Sequence[Entry], solved: Mapping[Block, str]) -> tuple[Expected, ...]:
    """What a file of `entries` has to give back; `solved` are the digests of all its matrices.

    Raises:
        QuantGolfError: a tensor that the format would not keep as it is told to.
    """
    found = []
    for entry in entries:
        dtype = dtype_name(entry.original.dtype, entry.name)
        places = sorted((part.block for part in entry.quantized), key=lambda block: block.start)
        lead = places[0].lead if places else 0
        rows = entry.original.reshape(rows_and_columns(entry.original.shape, lead))
        parts, at = [], 0
        for place in (*places, Block(entry.name, lead, len(rows), len(rows))):
            if at < place.start:
                kept = _kept(entry.name, rows[at : place.start], dtype)
                parts.append((Block(entry.name, lead, at, place.start), digest(kept.float() if places else kept)))
            if place.start < place.stop:
                parts.append((place, solved[place]))
            at = place.stop
        found.append(Expected(entry.name, entry.aliases, tuple(entry.original.shape), dtype, tuple(parts)))
    return tuple(found)


def read_back(path: Path, expected: Sequence[Expected], header: BlobHeader) -> ReadBack:
    """Reads a file from the disk, decodes it as everybody does, and compares every tensor.

    It takes the file's bytes, what decoding takes (levels are decoded together: 4 bytes a weight), and one tensor.

    Raises:
        QuantGolfError: the file gives back something else, or cannot be read.
    """
    _forget(path)
    found, coded = read_blob(path)
    if found.version != header.version or found.model != _as_json(header.model):
        raise QuantGolfError(f"version {found.version} and model {found.model}, expected {header}")
    if len(coded.tensors) != len(expected):
        raise QuantGolfError(f"{len(coded.tensors)} tensors, expected {len(expected)}")
    weights = 0
    for wanted, (tensor, whole) in zip(expected, restored(coded), strict=True):
        _compare(wanted, tensor, whole)
        weights += whole.numel()
    return ReadBack(len(expected), weights)


def _compare(wanted: Expected, tensor: CodedTensor, whole: Tensor) -> None:
    said = tensor.name, tensor.aliases, tensor.shape, tensor.dtype
    if said != (wanted.name, wanted.aliases, wanted.shape, wanted.dtype) or tuple(whole.shape) != wanted.shape:
        raise QuantGolfError(f"the tensor {said} of shape {list(whole.shape)}, expected {wanted}")
    for place, bits in wanted.parts:
        if digest(place.matrix(whole)) != bits:
            raise QuantGolfError(f"other weights in {place.name(wanted.shape)}, expected those that were solved")


def _weights(codes: Tensor, steps: Steps | Groups) -> Iterator[Tensor]:
    values = codes.cpu().numpy()
    at_once = max(1, ROWS_AT_ONCE // max(1, values.shape[1]))
    for start in range(0, len(values) if values.size else 0, at_once):
        rows = slice(start, start + at_once)
        part = values[rows].astype(np.float32)
        if isinstance(steps, Groups):
            group = np.arange(part.shape[1]) // steps.size
            if steps.zero is not None:
                part -= steps.zero[rows].cpu().numpy().astype(np.float32)[:, group]
            yield torch.from_numpy(part * steps.scales()[rows].cpu().numpy()[:, group])
            continue
        step = steps.row[rows].cpu().numpy().astype(np.float32)[:, None]
        if steps.column is not None:
            step = step * steps.column.cpu().numpy()[None, :]
        yield torch.from_numpy(part * step)


def _kept(name: str, values: Tensor, dtype: str) -> Tensor:
    """Values as the file keeps them, which may be narrower; refuses to lose more by that than the format promises."""
    stored = stored_name(values, dtype)
    kept = values.to(DTYPES[stored]).to(DTYPES[dtype])
    if stored != dtype and values.numel():
        moved, size = (kept.double() - values.double()).abs(), values.double().abs()
        if not bool((moved <= TOLERANCE * size.clamp(min=float(size.mean())) * (1 + 1e-6)).all()):
            raise QuantGolfError(f"{name} would be kept in {stored} and lose {float(moved.max()):.3g} by that")
    return kept


def _as_json(model: dict[str, Any] | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(json.dumps(model))
    return found


def _forget(path: Path) -> None:
    """Has the system read the file from the disk, not from the memory that it was written from, where it can."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
