"""Jobs of a sweep on several processes, each finished point in the results file before anybody hears of it."""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantgolf.compress.memory import available_bytes
from quantgolf.compress.rehearse import solver_bytes
from quantgolf.compress.slope_solver import KEPT
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate.score import LOGITS_AT_ONCE
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.process import Process, Waiting
from quantgolf.sweep.store import Claim, ResultsFile
from quantgolf.sweep.worker import REMEMBERED, Job, Maker, Setup

SHARE_OF_FREE = 0.8
LOGITS = 6  # tensors of their size that live at once while two models are compared, in fp32
INTERPRETER = 400_000_000  # bytes of a process that has imported torch and opened nothing
Count = Callable[[int, int], None]
Note = Callable[[str], None]


def worker_bytes(weights: int, sizes: Sequence[tuple[int, ...]]) -> int:
    """Memory that a process of a sweep should take at most.

    Args:
        weights: bytes of the checkpoint in fp32; the float model, the quantized one and the stored tensors.
        sizes: (N, K) of its matrices, and N once more where G is kept.
    """
    return INTERPRETER + 3 * weights + solver_bytes(sizes) + KEPT + REMEMBERED + LOGITS * 4 * LOGITS_AT_ONCE


def processes(wanted: int, jobs: int, each: int, limit: int | None) -> tuple[int, str]:
    """How many processes run, and a sentence where memory allows fewer than wanted.

    Raises:
        QuantGolfError: `limit` bytes are too few for one.
    """
    room = limit if limit is not None else int(SHARE_OF_FREE * available_bytes())
    count = max(1, min(wanted, jobs))
    fit = room // each
    if fit < 1 and limit is not None:
        raise QuantGolfError(
            f"--memory {limit:,} is too little: a process takes up to {each:,} bytes; give --memory {each} or more"
        )
    if fit >= count:
        return count, ""
    fit = max(1, fit)
    return (
        fit,
        f"{fit} of {count} processes run: each takes up to {each / 1e9:.1f} GB, and there are {room / 1e9:.1f} GB",
    )


class Crew:
    """Makes points and writes them down.

    Args:
        setup: of the sweep.
        file: the points go there.
        folder: for claims, so that two sweeps on one file do not make a point twice, and for what processes say.
        count: of processes; 0 makes points in this one.
        memory: bytes that processes may take together; where one took more than its share, fewer go on.
        progress: called with (points finished, points).
        note: called with what a person may want to know, a sentence each.
    """

    def __init__(
        self, setup: Setup, file: ResultsFile, folder: Path, count: int, memory: int | None, progress: Count, note: Note
    ) -> None:
        self.setup, self.file, self.folder, self.count = setup, file, folder, count
        self.memory, self.progress, self.note = memory, progress, note
        self.finished = self.total = 0
        self._workers: list[Process] = []
        self._here: Maker | None = None
        self._size = -1
        self._points: dict[str, FrontierPoint] = {}

    def points(self, jobs: Sequence[Job], retry: bool = False) -> dict[str, FrontierPoint]:
        """The points of jobs by key: those that the file has, and those that are made now.

        Args:
            retry: make those again that failed.

        Raises:
            QuantGolfError: the file or the folder cannot be written, or processes do not start.
        """
        known = self._known()
        left = [j for j in jobs if not _settled(known.get(j.key), retry)]
        self.total += len(left)
        todo, elsewhere = Waiting(left), list[Job]()
        if self.count == 0:
            while (job := todo.take(None)) is not None:
                self._with_claim(job, retry, elsewhere, lambda job: self._maker().point(job))
        elif left:
            self._in_processes(todo, retry, elsewhere)
        if elsewhere:
            self.note(f"another sweep on this file makes {len(elsewhere)} of the points: waiting for it")
        for job in elsewhere:
            self._wait_for(job)
        known = self._known()
        return {job.key: known[job.key] for job in jobs if job.key in known}

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def _in_processes(self, todo: "Waiting", retry: bool, elsewhere: list[Job]) -> None:
        """One thread waits for each process; this one writes."""
        events: queue.Queue[tuple[str, Any]] = queue.Queue()

        def attend(worker: "Process") -> None:
            share = None
            try:
                while not worker.retired and (job := todo.take(share)) is not None:
                    claim = self._claim(job, retry)
                    if isinstance(claim, Claim):
                        share = job.recipe.share()
                        try:
                            point, peak = worker.point(job)
                        except QuantGolfError:
                            claim.drop()
                            raise
                        events.put(("point", (worker, point, peak, claim)))
                        worker.written.acquire()
                    else:
                        events.put((claim, job))
            except BaseException as error:
                events.put(("error", error))
            events.put(("end", None))

        while len(self._workers) < min(self.count, len(todo.jobs)):
            self._workers.append(Process(self.setup, self.folder, len(self._workers)))
        threads = [threading.Thread(target=attend, args=(worker,), daemon=True) for worker in self._workers]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            what, value = events.get()
            if what == "end":
                running -= 1
            elif what == "error":
                raise value
            elif what == "elsewhere":
                elsewhere.append(value)
            elif what == "finished":
                self._count()
            else:
                worker, point, peak, claim = value
                self.file.append(point)
                claim.drop()
                self._count()
                self._retire(worker, peak)
                worker.written.release()

    def _retire(self, worker: "Process", peak: int) -> None:
        """Lets a process go where all of them, at what one was seen to take, exceed what they may."""
        going = [each for each in self._workers if not each.retired]
        if self.memory is not None and len(going) > 1 and peak * len(going) > self.memory:
            worker.retired = True
            worker.kill()
            self._workers.remove(worker)
            self.count = len(self._workers)
            self.note(f"{len(going) - 1} processes go on: one took {peak / 1e9:.1f} GB of {self.memory / 1e9:.1f} GB")

    def _with_claim(self, job: Job, retry: bool, elsewhere: list[Job], work: Callable[[Job], FrontierPoint]) -> None:
        claim = self._claim(job, retry)
        if isinstance(claim, Claim):
            try:
                self.file.append(work(job))
            finally:
                claim.drop()
            self._count()
        elif claim == "elsewhere":
            elsewhere.append(job)
        else:
            self._count()

    def _wait_for(self, job: Job) -> None:
        claim = Claim(self.folder / "claims", job.key)
        try:
            claim.take(wait=True)
            if not _settled(self._known().get(job.key), retry=False):
                self.file.append(self._maker().point(job))
        finally:
            claim.drop()
        self._count()

    def _claim(self, job: Job, retry: bool) -> Claim | str:
        """The claim of a job; "elsewhere" where another process has it, "finished" where it has become a point."""
        claim = Claim(self.folder / "claims", job.key)
        if not claim.take():
            claim.drop()
            return "elsewhere"
        if _settled(self._known().get(job.key), retry):
            claim.drop()
            return "finished"
        return claim

    def _known(self) -> dict[str, FrontierPoint]:
        """The points of the file, read again where it has grown."""
        with suppress(FileNotFoundError):
            size = os.stat(self.file.path).st_size
            if size != self._size:
                self._points, self._size = self.file.read().points, size
        return self._points

    def _maker(self) -> Maker:
        if self._here is None:
            self._here = Maker(self.setup)
        return self._here

    def _count(self) -> None:
        self.finished += 1
        self.progress(self.finished, self.total)


def _settled(point: FrontierPoint | None, retry: bool) -> bool:
    """Whether nothing is left to do for a point: it is done, or failed for good and is not to be tried again."""
    return point is not None and (point.status == "done" or (point.final and not retry))
