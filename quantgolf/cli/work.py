"""What `compress` keeps beside its output while it works, so that a run that is killed and typed again goes on.

OUT.work holds statistics and solved matrices, both told apart by all that decides them. It goes when the file is
written, and stays when a run ends before that and there is something in it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from quantgolf.atomic import SUFFIX
from quantgolf.calibrate.store import Origin, read_calibration, text_digest, write_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import show
from quantgolf.cli.learn import Learning
from quantgolf.cli.stopping import StoppedError, typed
from quantgolf.compress.shelf import Shelf
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.sweep.store import Claim
from quantgolf.types import Calibration

STATISTICS, SOLVED, CLAIM = "statistics", "solved", "run"
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Keep statistics and solved matrices in OUT.work until the file is written, and go on from there.",
    ),
]


class Work:
    """A folder of what is finished.

    Args:
        out: the file that is to be written.
        keeps: whether anything outlives the run; without, the folder is only where statistics go that do not fit into
            memory.

    Raises:
        QuantGolfError: another run is at it, or the folder holds something else.
    """

    def __init__(self, out: Path, keeps: bool) -> None:
        self.folder = out.with_name(out.name + ".work" if keeps else f".{out.name}.work{SUFFIX}")
        self.keeps, self.notes, self.statistics = keeps, list[str](), self.folder / STATISTICS
        self.shelf: Shelf | None = None
        if not keeps:
            return
        self._refuse_foreign()
        self._claim = Claim(self.folder, CLAIM)
        if not self._claim.take():
            raise QuantGolfError(f"{self.folder}: another run works on {out}, expected one at a time; wait for its end")
        for half in self.folder.glob(f".*{SUFFIX}"):  # of a run that was killed
            shutil.rmtree(half, ignore_errors=True)
        self.shelf = Shelf(self.folder / SOLVED)

    def learn(
        self, learning: Learning, source: Checkpoint, corpus: Corpus, ranks: Ranks, report: show.Report
    ) -> Calibration:
        """Statistics: those of the run before where they are of the same text and settings."""
        if not self.keeps:
            if not learning.offload:
                return learning.learn(source, corpus, ranks, report)
            if ranks.writes:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(exist_ok=True)
            return learning.learn_to(self.statistics, source, corpus, ranks, report, overwrite=False)
        wanted = Origin(source.fingerprint, text_digest(learning.batches(corpus)), learning.settings())
        if self.statistics.exists():
            try:
                calibration, origin = read_calibration(self.statistics)
                if origin == wanted:
                    self.notes.append(f"statistics are those of a run before, from {self.folder}")
                    return calibration
            except QuantGolfError as error:
                self.notes.append(f"calibrated again: {error}")
            shutil.rmtree(self.statistics)
        if learning.offload:
            return learning.learn_to(self.statistics, source, corpus, ranks, report, overwrite=True)
        calibration = learning.learn(source, corpus, ranks, report)
        try:
            write_calibration(self.statistics, calibration, wanted)
        except QuantGolfError as error:
            self.notes.append(f"statistics were not kept for another run: {error}")
        return calibration

    def close(self) -> tuple[str, ...]:
        """Removes all of it; returns what is to be said of it."""
        if self.shelf is not None and self.shelf.found:
            self.notes.append(f"{self.shelf.found} solved matrices are those of a run before, from {self.folder}")
        if self.shelf is not None and self.shelf.changed:
            self.notes.append(f"{self.shelf.changed} matrices in {self.folder} had changed on the disk: solved again")
        if self.shelf is not None and self.shelf.full:
            self.notes.append(f"solved matrices were not kept for another run: {self.shelf.full}")
        self.drop()
        shutil.rmtree(self.folder, ignore_errors=True)
        return tuple(self.notes)

    def drop(self) -> None:
        """Lets another run have it."""
        if self.keeps:
            self._claim.drop()

    def kept(self) -> str:
        """What there is for another run, in words; empty for nothing."""
        solved = len(list(self.folder.glob(f"{SOLVED}/*"))) if self.keeps else 0
        parts = ["statistics"] * (self.keeps and self.statistics.exists())
        parts += [f"{solved} solved matrices"] * (solved > 0)
        return " and ".join(parts)

    def _refuse_foreign(self) -> None:
        if not self.folder.exists():
            return
        ours = {STATISTICS, SOLVED, f"{CLAIM}.lock"}
        other = [each.name for each in self.folder.iterdir() if each.name not in ours and each.suffix != SUFFIX]
        if other:
            raise QuantGolfError(
                f"{self.folder}: holds {other[0]}, expected what a run of quantgolf left, or no such folder; "
                "move it, give another --out, or pass --no-resume"
            )


@contextmanager
def working(out: Path, ranks: Ranks, resumes: bool = True) -> Iterator[Work]:
    """The folder of a run; of several processes none keeps anything.

    Raises:
        StoppedError: the run was stopped; it says what is kept and what to type.
    """
    work = Work(out, keeps=resumes and ranks.world == 1)
    try:
        yield work
    except BaseException as error:
        kept = work.kept()
        work.drop()
        if not kept and ranks.writes:
            shutil.rmtree(work.folder, ignore_errors=True)
        if kept and isinstance(error, KeyboardInterrupt):
            raise StoppedError(error, f"{kept} are kept in {work.folder}. To go on: {typed()}") from error
        if kept and isinstance(error, QuantGolfError):
            error.args = (f"{error}; {kept} are kept in {work.folder} for the next try", *error.args[1:])
        raise
