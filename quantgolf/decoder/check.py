"""Whether files are sound, told without the model that they were made of: by two readers that have to agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantgolf.blob import read_blob
from quantgolf.decoder.duration import seconds_of
from quantgolf.decoder.verify import Seen, refuse_other, seen_by
from quantgolf.encode import MAX_DECODED_BYTES, places
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.runtime import restored
from quantgolf.types import CodedTensor

# How often the seconds that it may take for a file, about, the stand-alone decoder is given before it is stopped: what
# it takes is estimated for a core that does nothing else.
PATIENCE = 3


@dataclass
class Checked:
    """What was found of one file.

    Attributes:
        file: its name.
        checks: what was checked, and in words what holds; where there is an `error`, the last one failed.
        error: what is wrong, in one line; None of a sound file.
        bytes, version, model: of the file, and what it says of itself; None where that could not be read.
        seen: every tensor, by all its names.
        again: about how many seconds the stand-alone decoder takes for it.
        stopped: after how many seconds it was stopped; None if it was not.
    """

    file: Path
    checks: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    bytes: int | None = None
    version: int | None = None
    model: dict[str, Any] | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    again: float = 0.0
    stopped: float | None = None

    @property
    def digest(self) -> str:
        """One for all tensors with their names, dtypes and shapes, 32 hexadecimal digits."""
        lines = (f"{name} {each.dtype} {each.shape} {each.digest}\n" for name, each in self.seen.items())
        return blake2b("".join(lines).encode(), digest_size=16).hexdigest()

    def failed(self, check: str) -> bool:
        """Whether it was this check that the file did not pass."""
        return self.error is not None and check == list(self.checks)[-1]


def check(file: Path, max_decoded_bytes: int = MAX_DECODED_BYTES) -> Checked:
    """What quantgolf's own reader finds of a file. Beside the file's bytes and its levels (4 bytes each), one tensor is
    in memory.

    Args:
        file: its name; what keeps it from being read is one of the things that are found.
        max_decoded_bytes: as `quantgolf.blob.parse`.
    """
    found = Checked(file)
    try:
        found.checks["file"] = "length, checksum, and what it says of its tensors"
        header, coded = read_blob(file, max_decoded_bytes)
        found.bytes, found.version, found.model = file.stat().st_size, header.version, header.model
        found.checks["file"] = (
            f"length and checksum agree, and {len(coded.tensors)} tensors are described as they can be"
        )
        found.checks["streams"] = "every stream decodes to its end"
        numbers, matrices, odd = 0, 0, []
        for entry, whole in restored(coded):
            found.seen.update(dict.fromkeys((entry.name, *entry.aliases), Seen.of(whole)))
            numbers += whole.numel()
            matrices += sum(block.stored is None for block in entry.blocks)
            if whole.is_floating_point() and not _finite(whole):
                _refuse_infinite(entry, whole)
                odd.append(entry.name)
        found.again = seconds_of(coded)
        found.checks["streams"] = f"all decode to their ends: {matrices} quantized matrices, {numbers:,} numbers in all"
        found.checks["values"] = "all are finite" if not odd else (
            f"all quantized ones are finite; kept as the checkpoint had them, with infinities or NaN: {', '.join(odd)}"
        )  # fmt: skip
    except (QuantGolfError, OSError) as error:
        found.error = _named(str(error), file)
    return found


def check_again(found: Sequence[Checked], decoder: bytes, which: str, most: float = math.inf) -> None:
    """Lets a stand-alone decoder read those files that are sound so far, and notes what it makes of them.

    Args:
        found: from `check`.
        decoder: Python, which is executed in a process of its own.
        which: what people call it.
        most: seconds that it may take for a file, about; what would take longer is left out, and what takes three
            times as long all the same is stopped, which a note says.
    """
    sound = [each for each in found if each.error is None and each.again <= most]
    patience = PATIENCE * most if math.isfinite(most) else None
    said, seconds = seen_by(decoder, [each.file for each in sound], patience) if sound else ([], 0.0)
    several = f" for {len(sound)} files" if len(sound) > 1 else ""
    for each, other in zip(sound, said, strict=True):
        if other is None:
            each.stopped = patience
            continue
        each.checks["decoder"] = (
            f"{which} ({len(decoder):,} bytes) restores the same bits, in a process of {seconds:.1f} s{several}"
        )
        try:
            refuse_other(other, each.seen, each.file)
        except QuantGolfError as error:
            each.error = _named(str(error), each.file)


def _finite(whole: Tensor) -> bool:
    # Narrower dtypes than fp32 may know no isfinite, and fp32 does not hold all of fp64.
    return bool((whole if whole.dtype == torch.float64 else whole.float()).isfinite().all())


def _refuse_infinite(entry: CodedTensor, whole: Tensor) -> None:
    for place, block in zip(places(entry), entry.blocks, strict=True):
        if block.stored is None and not place.matrix(whole).isfinite().all():
            raise FormatError(f"{place.name(entry.shape)} decodes to infinities or NaN, expected finite weights")


def _named(error: str, file: Path) -> str:
    return error if str(file) in error else f"file {file}: {error}"
