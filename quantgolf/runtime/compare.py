"""Two models tensor by tensor, each a compressed file or a checkpoint: what differs, where, and by how much.

Files are decoded in their own order, one tensor at a time; of two files that have the same order one tensor of each is
in memory, and of others those that came too early wait.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from quantgolf.blob import MAGIC, read_blob
from quantgolf.checkpoint import Stored, read_stored
from quantgolf.encode import DTYPES, MAX_DECODED_BYTES, tensor_bytes
from quantgolf.encode.dtypes import dtype_name
from quantgolf.errors import QuantGolfError
from quantgolf.runtime.digest import matrix_of, rows_of
from quantgolf.runtime.restore import restored
from quantgolf.types import CodedTensor

Verdict = Literal["equal", "differs", "dtype", "shape", "only in A", "only in B"]


@dataclass(frozen=True)
class Described:
    """One tensor of one side.

    Attributes:
        shape: of it.
        dtype: as safetensors spells it, of a file that of the checkpoint it was made of.
        storage: how its values are kept, in words.
        bytes: that it takes.
        aliases: its further names.
    """

    shape: tuple[int, ...]
    dtype: str
    storage: str
    bytes: float
    aliases: tuple[str, ...] = ()


@dataclass
class Side:
    """One of the two.

    Attributes:
        label: what people call it.
        is_file: a compressed file, and no checkpoint.
        tensors: by first name, in order.
        model: what the file says of its module; None where it says nothing, as no checkpoint does.
        tied: whether it is known which names are one tensor; safetensors does not tell.
    """

    label: str
    is_file: bool
    tensors: dict[str, Described]
    model: dict[str, Any] | None
    tied: bool
    _stream: Iterator[tuple[str, Tensor]]
    _early: dict[str, Tensor] = field(default_factory=dict)

    def first(self) -> dict[str, str]:
        """First name of every name."""
        return {name: first for first, each in self.tensors.items() for name in (first, *each.aliases)}

    def take(self, first: str) -> Tensor:
        """A tensor by its first name; one that has no further names is given once."""
        while first not in self._early:
            name, tensor = next(self._stream)
            self._early[name] = tensor
        return self._early[first] if self.tensors[first].aliases else self._early.pop(first)

    def drop(self, first: str) -> None:
        """Passes over a tensor that nobody asks for, so that it does not wait in memory."""
        self.take(first)
        self._early.pop(first, None)


@dataclass(frozen=True)
class Row:
    """A name of either side.

    Attributes:
        a, b: the tensor on each side; None where it is not there.
        largest: of the absolute differences; None where values were not compared.
        error: ‖A - B‖ / ‖B‖, Frobenius; None as well where B is all zeros and A is not.
        squares: ‖A - B‖² and ‖B‖².
    """

    name: str
    a: Described | None
    b: Described | None
    verdict: Verdict
    largest: float | None = None
    error: float | None = None
    squares: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        rows: in the order of A, then what only B has.
        ties: names that are one tensor on one side alone, a sentence each.
        notes: what one may want to know and is no difference.
        model: whether both describe the same module; None where one does not describe any.
    """

    rows: tuple[Row, ...]
    ties: tuple[str, ...]
    notes: tuple[str, ...]
    model: bool | None

    @property
    def same(self) -> bool:
        """Whether nothing differs; how values are stored is no difference."""
        return all(row.verdict == "equal" for row in self.rows) and not self.ties and self.model is not False

    @property
    def largest(self) -> float:
        """Of all absolute differences."""
        return max((row.largest for row in self.rows if row.largest is not None), default=0.0)

    @property
    def error(self) -> float | None:
        """‖A - B‖ / ‖B‖ over all tensors that were compared."""
        return _relative(*(math.fsum(row.squares[side] for row in self.rows) for side in (0, 1)))


def open_side(path: str | Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Side:
    """A compressed file, told by its first bytes, or a checkpoint as it is stored, without a module.

    Raises:
        QuantGolfError: neither can be read.
    """
    if is_compressed(path):
        header, coded = read_blob(path, max_decoded_bytes)
        described = {
            each.name: Described(each.shape, each.dtype, storage_of(each), spent.total, each.aliases)
            for each, spent in zip(coded.tensors, tensor_bytes(coded), strict=True)
        }
        stream = ((entry.name, whole) for entry, whole in restored(coded))
        return Side(str(path), True, described, header.model, True, stream)
    return side_of(str(path), read_stored(Path(path)))


def side_of(label: str, stored: Stored, aliases: Mapping[str, tuple[str, ...]] | None = None) -> Side:
    """Tensors of a checkpoint; `aliases` are the further names of some, where that is known."""
    described = {}
    for name, tensor in stored.tensors.items():
        dtype, others = dtype_name(tensor.dtype, name), (aliases or {}).get(name, ())
        described[name] = Described(tuple(tensor.shape), dtype, dtype, tensor.nbytes, others)
    return Side(label, False, described, None, aliases is not None, iter(stored.tensors.items()))


def is_compressed(path: str | Path) -> bool:
    """Whether a file begins as compressed ones do.

    Raises:
        QuantGolfError: it cannot be read.
    """
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise QuantGolfError(f"file {path}: {error.strerror}, expected a readable file") from error


def storage_of(tensor: CodedTensor) -> str:
    """How the values of a tensor of a file are kept, in words; of one that is cut, each way once."""
    ways = []
    for block in tensor.blocks:
        way = "levels" if block.levels else f"{block.bits} bits" if block.stored is None else block.stored
        ways.append(way + (f" by {block.groups.size}" if block.groups is not None else ""))
    several = f" in {len(ways)} blocks" if len(ways) > 1 else ""
    return " + ".join(dict.fromkeys(ways)) + several


def compare(a: Side, b: Side) -> Iterator[Row]:
    """Rows of names on either side, as they are compared: in the order of `a`, then what only `b` has.

    Two files are compared as they decode, to the last bit. A file beside a checkpoint is compared in the checkpoint's
    dtype, which is what `quantgolf decompress` writes.
    """
    first_a, first_b = a.first(), b.first()
    exact = a.is_file and b.is_file
    for name in dict.fromkeys((*a.tensors, *b.tensors)):
        one, other = first_a.get(name), first_b.get(name)
        if one is None or other is None:
            if name in (a if other is None else b).tensors:
                there = a.tensors[name] if other is None else None
                here = b.tensors[name] if one is None else None
                (a if other is None else b).drop(name)
                yield Row(name, there, here, "only in A" if other is None else "only in B")
            continue
        yield _row(name, a, one, b, other, exact)


def ties_of(a: Side, b: Side) -> tuple[list[str], list[str]]:
    """Differences in which names are one tensor, and, where one side does not tell, its names that are missing."""
    first_a, first_b = a.first(), b.first()
    differences: list[str] = []
    notes: list[str] = []
    for here, there, one, other in ((a, b, first_a, first_b), (b, a, first_b, first_a)):
        for name, first in one.items():
            if name == first:
                continue
            if name not in other:
                (differences if there.tied else notes).append(
                    f"{name} is another name of {first} in {here.label}, and missing in {there.label}"
                )
            elif there.tied and first in other and other[name] != other[first]:
                differences.append(f"{name} is {first} in {here.label}, and a tensor of its own in {there.label}")
    return differences, notes


def _row(name: str, a: Side, one: str, b: Side, other: str, exact: bool) -> Row:
    here, there = a.tensors[one], b.tensors[other]
    found, wanted = a.take(one), b.take(other)
    if here.shape != there.shape:
        return Row(name, here, there, "shape")
    if not exact:
        found, wanted = found.to(DTYPES[here.dtype]), wanted.to(DTYPES[there.dtype])
    equal, largest, moved, size = _measured(found, wanted)
    verdict: Verdict = "differs" if not equal else "equal" if here.dtype == there.dtype else "dtype"
    return Row(name, here, there, verdict, largest, _relative(moved, size), (moved, size))


def _measured(found: Tensor, wanted: Tensor) -> tuple[bool, float, float, float]:
    """Whether values are equal (to the bit, of one dtype), the largest difference, ‖A - B‖² and ‖B‖²."""
    equal, largest, moved, size = True, 0.0, 0.0, 0.0
    for one, other in zip(rows_of(matrix_of(found)), rows_of(matrix_of(wanted)), strict=True):
        same = torch.equal(_bits(one), _bits(other)) if one.dtype == other.dtype else bool((one == other).all())
        there = other.double()
        size += float(there.square().sum())
        if same:
            continue
        equal = False
        # Infinities and NaN that both have are no difference; those that one has are an infinite one.
        difference = torch.where(one.double() == there, 0.0, one.double() - there).abs()
        difference[one.isnan() & other.isnan()] = 0.0
        difference = difference.nan_to_num(nan=math.inf, posinf=math.inf)
        largest = max(largest, float(difference.max()))
        moved += float(difference.square().sum())
    return equal, largest, moved, size


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _relative(moved: float, size: float) -> float | None:
    if size == 0 or not math.isfinite(size):
        return 0.0 if moved == 0 else None
    return math.sqrt(moved / size) if math.isfinite(moved) else None
