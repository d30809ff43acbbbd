"""A solution is tuned, solved anew with room for what that takes, tuned again on just those levels, and compared with
the plain one: two files of equal bytes, on held-out text."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.result import Progress, TuneReport, stage
from quantgolf.compress.slope_budget import SlopeFit
from quantgolf.compress.slope_draft import Draft, Drafts
from quantgolf.compress.student import Student, Tuned
from quantgolf.compress.tune import Descent, Tuning, descend, kl_of
from quantgolf.errors import BudgetError
from quantgolf.ranks import Ranks

SLACK, LEAST_SLACK = 2e-4, 256  # of the limit, and bytes: what may be left of it
PILOT, SHORT = 2, 8  # one step so many is made to learn what steps are worth, and what the rest alone is


class Files(Protocol):
    """What makes files of solutions: `OneSlope`."""

    checkpoint: Checkpoint
    matrices: Matrices
    progress: Progress | None

    def size(self, solution: Mapping[str, Draft], tuned: Tuned | None = None) -> int:
        """Bytes of the complete file and the code."""
        ...


class TunedFit:
    """Tunes for a limit.

    Args:
        files: makes them.
        fit: has found the plain solution.
        limit: bytes.
        tuning: on what, and how long.
        ranks: one of them tunes, and all know.
    """

    def __init__(self, files: Files, fit: SlopeFit, limit: int, tuning: Tuning, ranks: Ranks) -> None:
        self.files, self.fit, self.limit, self.tuning, self.ranks = files, fit, limit, tuning, ranks
        self.started, self.steps = time.monotonic(), 0
        self.slack = max(LEAST_SLACK, int(SLACK * limit))

    def from_plain(self, plain: Drafts) -> tuple[Drafts, Tuned | None, TuneReport]:
        """The better of the plain solution and a tuned one of as many bytes, what was tuned, and the report."""

        def work(_: int) -> tuple[Descent, Descent]:
            return self._pilot(plain)

        first, kept = self.ranks.spread([1.0], work)[0]
        self.steps += first.steps + kept.steps
        if first.note:
            return plain, None, self._report(first.before, first.before, note=first.note)
        # KL falls fourfold with a bit a weight: what the bytes of tuned steps would buy as codes.
        weights = sum(draft.levels.size for draft in plain.values())
        more = self.files.size(plain, first.tuned) - self.files.size(plain, kept.tuned)
        worth = first.after * 2 ** (16 * more / weights)
        fine = bool(kept.note) or worth < kept.after
        if not min(worth, kept.after if not kept.note else worth) < first.before:
            return plain, None, self._report(first.before, first.before, note="held-out text did not get better")
        begin = first.tuned if fine else kept.tuned
        try:
            drafts = self.fit.within(self.limit - self.slack // 2, lambda drafts: self.files.size(drafts, begin))
            last = self.ranks.spread([1.0], lambda _: self._last(drafts, begin, fine, first.steps * PILOT))[0]
            self.steps += last.steps
            tuned = self._trimmed(drafts, last.tuned)
            if tuned is None or self.files.size(drafts, tuned) < self.limit - self.slack:
                tuned = last.tuned  # and other levels, on which it may be worth little: that is measured
                drafts = self.fit.within(self.limit, lambda drafts: self.files.size(drafts, last.tuned))
        except BudgetError:
            note = "the limit leaves no room for what it found"
            return plain, None, self._report(first.before, first.before, note=note)
        before, after = self.ranks.spread(
            [1.0], lambda _: (self._measured(plain, None), self._measured(drafts, tuned))
        )[0]
        if not after < before:
            note = f"two files of equal bytes measure {before:.5f} without and {after:.5f} nats a token with it"
            return plain, None, self._report(before, before, note=note)
        return drafts, tuned, self._report(before, after, fine=fine)

    def _pilot(self, plain: Drafts) -> tuple[Descent, Descent]:
        """With steps, and from there without."""
        student, steps = self._student(plain), max(1, self.tuning.steps // PILOT)
        share = (1 / PILOT) / (1 / PILOT + 1 / SHORT + 1)
        first = descend(student, self.tuning, steps, seconds=share * self.tuning.seconds, progress=self._stage("pilot"))
        student.fix_steps()
        nothing = Descent(first.before, first.before, student.tuned(), 0, "no gradient reaches what could move")
        if first.note or not student.kept:
            return first, nothing
        kept = descend(student, self.tuning, max(1, first.steps * PILOT // SHORT), fewest=1)
        return first, kept

    def _trimmed(self, drafts: Drafts, tuned: Tuned) -> Tuned | None:
        """With as few of the smallest fine steps left out as the limit asks for; None if that is not enough."""
        sides = (tuned.fine_row, tuned.fine_column)
        values = np.concatenate([np.zeros(0, np.int8), *(fine.numpy() for side in sides for fine in side.values())])
        order = np.argsort(np.abs(values.astype(np.int16)), kind="stable")
        order = order[np.count_nonzero(values == 0) :]

        def without(count: int) -> Tuned:
            left = values.copy()
            left[order[:count]] = 0
            parts = iter(np.split(left, np.cumsum([len(fine) for side in sides for fine in side.values()])[:-1]))
            rows, columns = ({name: torch.from_numpy(next(parts).copy()) for name in side} for side in sides)
            return Tuned(rows, columns, tuned.kept)

        fits, too_few = len(order), -1
        if self.files.size(drafts, without(fits)) > self.limit:
            return None
        while fits - too_few > max(1, len(order) // 1000):
            count = (fits + too_few) // 2 if too_few >= 0 else 0
            if self.files.size(drafts, without(count)) <= self.limit:
                fits = count
            else:
                too_few = count
        return without(fits)

    def _last(self, drafts: Drafts, begin: Tuned, fine: bool, steps: int) -> Descent:
        student = self._student(drafts)
        student.put(Tuned({}, {}, begin.kept))
        if not fine:
            student.fix_steps()
        left = self.tuning.seconds - (time.monotonic() - self.started)
        return descend(student, self.tuning, steps, seconds=left, fewest=1, progress=self._stage("tuning"))

    def _measured(self, drafts: Drafts, tuned: Tuned | None) -> float:
        student = self._student(drafts)
        if tuned is not None:
            student.put(tuned)
        return kl_of(student, self.tuning.batches(self.tuning.held_out.text))

    def _student(self, drafts: Drafts) -> Student:
        restored = {name: _restored(draft) for name, draft in drafts.items()}
        return Student(self.files.checkpoint, self.files.matrices.blocks, restored)

    def _stage(self, name: str) -> Callable[[int, int], None] | None:
        return stage(self.files.progress, name)

    def _report(self, before: float, after: float, *, fine: bool = False, note: str = "") -> TuneReport:
        return TuneReport(self.steps, time.monotonic() - self.started, before, after, fine, note)


def _restored(draft: Draft) -> Tensor:
    steps = draft.exponents.steps()
    assert steps.column is not None
    return torch.from_numpy(draft.levels).float() * (steps.row[:, None] * steps.column)
