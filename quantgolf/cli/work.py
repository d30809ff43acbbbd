"""What `compress` keeps beside its output while it works, so that a run that is killed and typed again goes on.

OUT.work holds statistics and solved matrices, both told apart by all that decides them. It goes when the file is
written, and stays when a run ends before that and there is something in it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from quantgolf.atomic import FULL, SUFFIX, fill, held, unfinished, written
from quantgolf.calibrate.store import Origin, read_calibration, text_digest, write_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import show
from quantgolf.cli.learn import Learning
from quantgolf.cli.stopping import StoppedError, typed
from quantgolf.compress import Compressed
from quantgolf.compress.readback import ReadBack
from quantgolf.compress.shelf import Shelf, versions
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.sweep.begin import folder_of
from quantgolf.sweep.store import Claim
from quantgolf.types import Calibration

STATISTICS, SOLVED, MADE_BY, CLAIM = "statistics", "solved", "made_by.json", "run"
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
        alone: whether one process does the work; several have one name for that folder.

    Raises:
        QuantGolfError: another run is at it, or the folder holds something else.
    """

    def __init__(self, out: Path, keeps: bool, alone: bool = True) -> None:
        self.out, self.keeps, self.written, self.notes = out, keeps, False, list[str]()
        self.shelf: Shelf | None = None
        self._holds, self._gone = ExitStack(), unfinished(out)
        work = folder_of(out)
        self.folder = work if keeps else unfinished(out) if alone else out.with_name(f".{out.name}.work{SUFFIX}")
        self.statistics = self.folder / STATISTICS
        if not keeps:
            if alone and os.path.exists(work):  # False where its name is too long
                self.notes.append(f"{work} of a run before stays as it is: remove it, or leave --no-resume out")
            return
        self._refuse_foreign()
        claim = Claim(self.folder, CLAIM)
        self._holds.callback(claim.drop)
        try:
            taken = claim.take()
        except QuantGolfError as error:
            raise QuantGolfError(f"{error}, or pass --no-resume") from error
        if not taken:
            raise QuantGolfError(f"{self.folder}: another run works on {out}, expected one at a time; wait for its end")
        for half in self.folder.glob(f".*{SUFFIX}"):  # of a run that was killed
            shutil.rmtree(half, ignore_errors=True)
        self.shelf = Shelf(self.folder / SOLVED)

    def learn(
        self, learning: Learning, source: Checkpoint, corpus: Corpus, ranks: Ranks, report: show.Report
    ) -> Calibration:
        """Statistics: those of the run before where they are of the same text, settings, versions and threads."""
        if not self.keeps:
            if not learning.offload:
                return learning.learn(source, corpus, ranks, report)
            if ranks.writes:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(exist_ok=True)
                self._holds.enter_context(held(self.folder))
            return learning.learn_to(self.statistics, source, corpus, ranks, report, overwrite=False)
        wanted = Origin(source.fingerprint, text_digest(learning.batches(corpus)), learning.settings())
        # Sums are rounded otherwise by other versions, devices and numbers of threads, and other bytes may come of it.
        made_by = [*versions(), learning.device, torch.get_num_threads()]
        if self.statistics.exists():
            try:
                calibration, origin = read_calibration(self.statistics)
                if origin == wanted and self._made_by() == made_by:
                    self.notes.append(f"statistics are those of a run before, from {self.folder}")
                    return calibration
            except QuantGolfError as error:
                self.notes.append(f"calibrated again: {error}")
            shutil.rmtree(self.statistics)
        if learning.offload:
            self._note_made_by(made_by)
            return learning.learn_to(self.statistics, source, corpus, ranks, report, overwrite=True)
        calibration = learning.learn(source, corpus, ranks, report)
        try:
            self._note_made_by(made_by)
            write_calibration(self.statistics, calibration, wanted)
        except QuantGolfError as error:
            self.notes.append(f"statistics were not kept for another run: {error}")
        return calibration

    def write(self, result: Compressed, overwrite: bool) -> ReadBack:
        """Writes the file, where the disk is full in the room of what was kept, and removes the folder.

        Raises:
            QuantGolfError: as `Compressed.write`.
        """
        try:
            verified = result.write(self.out, overwrite)
        except QuantGolfError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
            if not full or self.shelf is None or not self.shelf.clear(str(error)):
                raise
            verified = result.write(self.out, overwrite)
        self.written = True
        self.remove()
        if self.shelf is not None and self.shelf.found:
            self.notes.append(f"{self.shelf.found} solved matrices are those of a run before, from {self.folder}")
        if self.shelf is not None and self.shelf.changed:
            self.notes.append(f"{self.shelf.changed} matrices in {self.folder} had changed on the disk: solved again")
        if self.shelf is not None and self.shelf.full:
            self.notes.append(f"solved matrices were not kept for another run: {self.shelf.full}")
        return verified

    def remove(self) -> None:
        """Removes all of it, first from where another run would look for it."""
        with suppress(OSError):
            os.rename(self.folder, self._gone)
        self.drop()
        shutil.rmtree(self._gone, ignore_errors=True)

    def drop(self) -> None:
        """Lets another run have it."""
        self._holds.close()

    def _note_made_by(self, made_by: list[Any]) -> None:
        with written(self.folder / MADE_BY, overwrite=True) as beside:
            fill(beside, json.dumps(made_by).encode())

    def _made_by(self) -> object:
        try:
            return json.loads((self.folder / MADE_BY).read_bytes())
        except (OSError, ValueError):
            return None

    def kept(self) -> str:
        """What there is for another run, in words; empty for nothing."""
        solved = len(list(self.folder.glob(f"{SOLVED}/*"))) if self.keeps else 0
        parts = ["statistics"] * (self.keeps and self.statistics.exists())
        parts += [f"{solved} solved matrices"] * (solved > 0)
        return " and ".join(parts)

    def _refuse_foreign(self) -> None:
        if not self.folder.exists():
            return
        ours = {STATISTICS, SOLVED, MADE_BY, f"{CLAIM}.lock"}
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
    work = Work(out, keeps=resumes and ranks.world == 1, alone=ranks.world == 1)
    try:
        yield work
    except BaseException as error:
        kept = "" if work.written else work.kept()
        if not kept and ranks.writes:
            work.remove()
        work.drop()
        if kept and isinstance(error, KeyboardInterrupt):
            raise StoppedError(error, f"{kept} are kept in {work.folder}. To go on: {typed()}") from error
        if kept and isinstance(error, QuantGolfError):
            error.args = (f"{error}; {kept} are kept in {work.folder} for the next try", *error.args[1:])
        raise
