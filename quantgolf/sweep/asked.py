"""What a sweep is asked for, beside its grid, and what it comes to."""

from dataclasses import dataclass
from pathlib import Path

from quantgolf.checkpoint import Checkpoint, open_checkpoint
from quantgolf.compress.pipeline import TOKENS
from quantgolf.data import Context, Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import FrontierPoint


@dataclass(frozen=True)
class Opener:
    """A checkpoint by its name, which every process opens for itself; see `open_checkpoint`."""

    path: str | Path
    model: str | Path | None = None

    def __call__(self) -> Checkpoint:
        """Opens it."""
        return open_checkpoint(self.path, self.model)


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is open, for points made in this process."""

    checkpoint: Checkpoint

    def __call__(self) -> Checkpoint:
        """Gives it."""
        return self.checkpoint


@dataclass(frozen=True)
class Learned:
    """How a sweep calibrates.

    Attributes:
        text: to calibrate on; None for statistics that lie in `stats`.
        tokens, length, context, seed: as `calibrate` takes them.
        stats: folder that `quantgolf calibrate` wrote, instead.
    """

    text: Corpus | None
    tokens: int = TOKENS
    length: int = 512
    context: Context = "dense"
    seed: int = 0
    stats: Path | None = None


@dataclass(frozen=True)
class Judge:
    """What points are measured on: a text, its windows as `evaluate` takes them, and the seed of intervals."""

    text: Corpus
    length: int = 512
    stride: int | None = None
    context: Context = "dense"
    seed: int = 0
    documents: bool = True


@dataclass(frozen=True)
class Effort:
    """Who works at a sweep.

    Attributes:
        jobs: processes; None for one a core.
        memory: bytes they may take together; None for 80% of what is free.
        shard: (i, n): of the grid's points those that are i-th of n, from 1 on.
        retry: do points again that failed.
    """

    jobs: int | None = None
    memory: int | None = None
    shard: tuple[int, int] = (1, 1)
    retry: bool = False

    def __post_init__(self) -> None:
        at, of = self.shard
        if not 1 <= at <= of:
            raise QuantGolfError(f"shard {at}/{of}, expected i/n with i from 1 to n, for example 2/8")
        if self.jobs is not None and self.jobs < 1:
            raise QuantGolfError(f"jobs is {self.jobs}, expected at least 1")


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        points: those of its grid, or of its shard, that the results file has now, in the grid's order.
        notes: what a person may want to know.
        made: how many of them were made now.
    """

    points: tuple[FrontierPoint, ...]
    notes: tuple[str, ...] = ()
    made: int = 0

    @property
    def done(self) -> tuple[FrontierPoint, ...]:
        """The measured ones."""
        return tuple(point for point in self.points if point.status == "done")

    @property
    def failed(self) -> tuple[FrontierPoint, ...]:
        """The others."""
        return tuple(point for point in self.points if point.status != "done")
