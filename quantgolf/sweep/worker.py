"""A process that makes and measures points, one after another, on one thread: `python -m quantgolf.sweep`.

It is a program of its own, not a fork, because a fork of a process whose threads have computed may hang, and not
`multiprocessing`'s child, which runs the caller's script again. It ends with the process that started it: where that is
killed, its end of the pipe closes.
"""

import os
import pickle
import queue
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from quantgolf.calibrate.store import read_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.workshop import Workshop
from quantgolf.data import Context, Corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.sweep.measure import Yardstick, module_beside
from quantgolf.sweep.point import FrontierPoint, digest_of
from quantgolf.sweep.recipe import Recipe, make
from quantgolf.sweep.spending import kinds_of, tensors_of

REMEMBERED = 1 << 28  # bytes of the float model's logits that a process keeps
PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Setup:
    """What all points of a sweep have in common.

    Attributes:
        open: gives the checkpoint; it travels between processes.
        fingerprint: that the checkpoint has to have.
        model: what people call it.
        text: to measure on, read in windows of `length` and `stride` in this `context`; `seed` of the intervals.
        statistics: folder of the calibration, and what it was made of.
        calibration: as `FrontierPoint.calibration`.
        code_bytes: that count towards limits.
        documents: whether points keep what was measured of every document.
    """

    open: Callable[[], Checkpoint]
    fingerprint: str
    model: str
    text: Corpus
    length: int
    stride: int | None
    context: Context
    seed: int
    statistics: Path
    calibration: Mapping[str, Any]
    code_bytes: int = 0
    documents: bool = True


@dataclass(frozen=True)
class Job:
    """A point to make: its key, how its file is made, and what its method is called."""

    key: str
    recipe: Recipe
    method: str


class Maker:
    """Makes and measures the points of a sweep in this process.

    Raises:
        QuantGolfError: the checkpoint is not what it was, or its statistics cannot be read.
    """

    def __init__(self, setup: Setup) -> None:
        source = setup.open()
        if source.fingerprint != setup.fingerprint:
            raise QuantGolfError(
                f"the checkpoint is {source.fingerprint} and was {setup.fingerprint} when the sweep began, expected "
                "that nobody changes it meanwhile; start the sweep again with a new --out"
            )
        # Whoever started this process has checked them against their digests.
        calibration, _ = read_calibration(setup.statistics, source.fingerprint, check=False)
        self.setup, self.source = setup, source
        self.shop = Workshop(source, calibration, code_bytes=setup.code_bytes)
        self.yardstick = Yardstick(
            source, setup.text, model=setup.model, length=setup.length, stride=setup.stride, context=setup.context,
            seed=setup.seed, remember=REMEMBERED,
        )  # fmt: skip

    def point(self, job: Job) -> FrontierPoint:
        """The point of a job; one that failed where it cannot be made, with the reason."""
        options, before = job.recipe.options(), torch.get_num_threads()
        torch.set_num_threads(1)  # sums depend on how many there are, and files with them
        try:
            started = time.monotonic()
            result = make(self.shop, job.recipe)
            made = time.monotonic()
            module = module_beside(self.source, result)
            point = self.yardstick.point(
                module, key=job.key, method=job.method, options=options,
                bytes=len(result.data) + result.code_bytes, limit=job.recipe.max_bytes,
                kinds=kinds_of(result.coded, len(result.data), result.code_bytes), tensors=tensors_of(result),
                seconds={"solve": made - started}, digest=digest_of(result.data), calibration=self.setup.calibration,
                documents=self.setup.documents,
            )  # fmt: skip
            return replace(point, seconds={**point.seconds, "measure": round(time.monotonic() - made, 3)})
        except (QuantGolfError, RuntimeError, ArithmeticError, MemoryError, OSError, ValueError) as error:
            reason = str(error) if isinstance(error, QuantGolfError) else f"{type(error).__name__}: {error}"
            return self.yardstick.failed(
                key=job.key, method=job.method, options=options, error=reason, limit=job.recipe.max_bytes,
                nearest=error.nearest if isinstance(error, BudgetError) else None,
                final=isinstance(error, BudgetError) or self._refuses(job.recipe),
            )  # fmt: skip
        finally:
            torch.set_num_threads(before)

    def _refuses(self, recipe: Recipe) -> bool:
        """Whether a recipe's options alone fail it; memory, the disk and the statistics on it may do better again."""
        try:
            recipe.refuse_misfit(self.shop.matrices)
        except QuantGolfError:
            return True
        return False


def peak_bytes() -> int:
    """The most memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT


def main() -> None:
    """Reads a setup and then jobs from standard input, pickled, and answers each on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the model's code prints must not come between answers
    warnings.simplefilter("ignore")
    jobs: queue.Queue[Job] = queue.Queue()
    setup: Setup = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, jobs), daemon=True).start()
    try:
        maker = Maker(setup)
    except QuantGolfError as error:
        _answer(answers, error)
        return
    _answer(answers, None)
    while True:
        point = maker.point(jobs.get())
        _answer(answers, (point, peak_bytes()))


def _listen(source: BinaryIO, jobs: "queue.Queue[Job]") -> None:
    try:
        while True:
            jobs.put(pickle.load(source))
    except (EOFError, OSError, pickle.UnpicklingError):
        os._exit(0)  # nobody waits for the point that is being made


def _answer(answers: BinaryIO, value: object) -> None:
    try:
        pickle.dump(value, answers)
        answers.flush()
    except OSError:
        os._exit(0)
