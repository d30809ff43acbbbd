"""What compressing gives: the bytes of a file, what they hold, and how they came about."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from quantgolf.blob import write_blob
from quantgolf.runtime import module_of
from quantgolf.types import BitPlan, BlobHeader, CodedModel, SolveReport

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compressed:
    """A compressed model, still in memory.

    Attributes:
        data: the bytes of the file.
        header, coded: what they hold.
        plan: widths, bytes of the file, and the predicted rise of the loss.
        reports: how each weight was solved.
        kept: matrices and parts of them that are kept unquantized, and why.
        code_bytes: raw bytes of the --code files that count towards the budget.
        parameters: numbers in the checkpoint.
    """

    data: bytes
    header: BlobHeader
    coded: CodedModel
    plan: BitPlan
    reports: dict[str, SolveReport]
    kept: dict[str, str]
    code_bytes: int
    parameters: int

    @property
    def bpw(self) -> float:
        """Bits of the complete file per number of the checkpoint."""
        return 8 * len(self.data) / self.parameters

    def write(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the file beside its place and renames it; see `write_blob`."""
        write_blob(Path(path), self.data, overwrite=overwrite)

    def module(self, model: nn.Module | str | Path | None = None) -> nn.Module:
        """The working module, as `load` would return it from the written file."""
        return module_of(self.header, self.coded, model)


def stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """`progress` of one stage, called with (done, total)."""
    return None if progress is None else lambda done, total: progress(name, done, total)
