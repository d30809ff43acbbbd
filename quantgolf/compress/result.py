"""What compressing gives: the bytes of a file, what they hold, and how they came about."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from quantgolf.atomic import fill, written
from quantgolf.compress.readback import Expected, ReadBack, read_back
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import module_of
from quantgolf.types import BitPlan, BlobHeader, CodedModel, SolveReport

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judged:
    """What a result is worth on held-out text, beside the float model.

    Attributes:
        kl: to the float model, bits per `unit` of text.
        dbpb: loss above the float model's, bits per `unit`.
        tokens, bytes: of that text.
        unit: "byte"; "token" for text that the model wrote itself, which has no bytes of its own.
    """

    kl: float
    dbpb: float
    tokens: int
    bytes: int
    unit: Literal["byte", "token"]

    def value(self, kind: Literal["kl", "dbpb"]) -> float:
        """What a promise of this kind is about."""
        return self.kl if kind == "kl" else self.dbpb


@dataclass(frozen=True)
class Guarded:
    """The guard's comparison on held-out text.

    Attributes:
        solver: of the guarded result; `kl` is what was measured of it.
        uniform_solver: of the plain plan, one width everywhere.
        kl, uniform_kl: as `Judged.kl`; the second is None where no width fits.
        uniform_bits, uniform_bytes: that width and the file's bytes; None where no width fits.
        chosen: `solver` or "uniform", whose file is kept.
    """

    solver: str
    uniform_solver: str
    kl: float
    uniform_bits: int | None
    uniform_bytes: int | None
    uniform_kl: float | None
    chosen: str

    def line(self, unit: str = "byte") -> str:
        """The comparison in a sentence; `unit` as `Judged.unit`."""
        own = f"KL {self.kl:.4g} bits per {unit} on held-out text"
        if self.uniform_kl is None or self.uniform_bytes is None:
            return f"guard: {self.solver} is kept ({own}): no width everywhere fits into as many bytes"
        plain = f"{self.uniform_solver} with {self.uniform_bits} bits everywhere ({self.uniform_bytes:,} bytes)"
        if self.chosen == "uniform":
            own = f"KL {self.uniform_kl:.4g} bits per {unit} on held-out text"
            return f"guard: {plain} is written, not {self.solver}: {own} against {self.kl:.4g} of {self.solver}"
        return f"guard: {self.solver} is kept: {own}, against {self.uniform_kl:.4g} of {plain}"


@dataclass(frozen=True)
class TuneReport:
    """How tuning went.

    Attributes:
        steps: that were made; 0 where there were none.
        seconds: it took.
        before, after: KL to the float model on held-out text, nats a token, of the solved and of the tuned model in as
            many bytes; None where it came to neither.
        fine: whether steps of rows and columns are tuned too, and not only what is kept unquantized.
        note: why it was left out or thrown away; empty where it was kept.
    """

    steps: int
    seconds: float
    before: float | None
    after: float | None
    fine: bool = False
    note: str = ""

    def line(self) -> str:
        """The report in a sentence."""
        if self.note or self.before is None or self.after is None:
            return f"no tuning: {self.note}"
        what = "steps, norms, gains and biases" if self.fine else "norms, gains and biases"
        return (
            f"{self.steps} steps of tuning {what} in {self.seconds:.0f} s: KL on held-out text {self.before:.5f} to "
            f"{self.after:.5f} nats a token"
        )


@dataclass(frozen=True)
class Compressed:
    """A compressed model, still in memory.

    Attributes:
        data: the bytes of the file.
        header, coded: what they hold.
        expected: what they have to give back, from the solver and not from the coder.
        plan: widths, bytes of the file, and the predicted rise of the loss.
        reports: how each weight was solved.
        kept: matrices and parts of them that are kept unquantized, and why.
        code_bytes: raw bytes of the --code files that count towards the budget.
        parameters: numbers in the checkpoint.
        held_out: what it is worth on held-out text, where there was some.
        guard: how it compares with one width everywhere, where that was asked for.
        tuning: how tuning went, where there was any.
        notes: what was decided on the way that one may want to know.
    """

    data: bytes
    header: BlobHeader
    coded: CodedModel
    expected: tuple[Expected, ...]
    plan: BitPlan
    reports: dict[str, SolveReport]
    kept: dict[str, str]
    code_bytes: int
    parameters: int
    held_out: Judged | None = None
    guard: Guarded | None = None
    tuning: TuneReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def bpw(self) -> float:
        """Bits of the complete file per number of the checkpoint."""
        return 8 * len(self.data) / self.parameters

    def write(self, path: str | Path, overwrite: bool = False) -> ReadBack:
        """Writes the file beside its place, reads it back from the disk, compares every tensor with what was solved,
        and only then gives it its name.

        Raises:
            QuantGolfError: as `quantgolf.atomic.written`; or the file gives back something else. What was at `path` is
                there as it was.
        """
        with written(Path(path), overwrite) as beside:
            fill(beside, self.data)
            try:
                return read_back(beside, self.expected, self.header)
            except QuantGolfError as error:
                raise QuantGolfError(
                    f"output {path}: what was written does not read back as what was solved ({error}), and was thrown "
                    "away; run it again, and if it happens again suspect the disk, the memory, or quantgolf"
                ) from error

    def module(self, model: nn.Module | str | Path | None = None) -> nn.Module:
        """The working module, as `load` would return it from the written file."""
        return module_of(self.header, self.coded, model)


def stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """`progress` of one stage, called with (done, total)."""
    return None if progress is None else lambda done, total: progress(name, done, total)
