"""A process that makes points, seen from the one that started it, and the jobs that wait for it."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.measure import Yardstick
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.worker import Job, Setup

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Waiting:
    """Jobs that wait, given out so that those of one share, which have solved matrices in common, go to one process."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self._lock, self._begun = threading.Lock(), set[Any]()

    def take(self, share: Any) -> Job | None:
        """The next job for a process that did one of `share` before; None where no more wait."""
        with self._lock:
            if not self.jobs:
                return None
            own = next((job for job in self.jobs if job.recipe.share() == share), None)
            new = next((job for job in self.jobs if job.recipe.share() not in self._begun), None)
            job = own or new or self.jobs[-1]
            self.jobs.remove(job)
            self._begun.add(job.recipe.share())
            return job


class Process:
    """A process of `quantgolf.sweep.worker`, started again after a job that it died of."""

    def __init__(self, setup: Setup, folder: Path, number: int) -> None:
        self._setup = pickle.dumps(setup)
        self._log = folder / f"process-{number}.log"
        self.retired = self.ended = False
        self.written = threading.Semaphore(0)
        self._process: subprocess.Popen[bytes] | None = None
        self._how = ""  # how the last one did

    def point(self, job: Job) -> tuple[FrontierPoint, int]:
        """The point of a job and the most memory the process has taken. A job that the process died of is done again in
        a new one; where that dies too, the point failed, and not for good.

        Raises:
            QuantGolfError: the process does not start.
        """
        return self._tried(job) or self._tried(job) or self._failed(job)

    def _tried(self, job: Job) -> tuple[FrontierPoint, int] | None:
        """As `point`; None where the process died."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump(job, self._process.stdin)
            self._process.stdin.flush()
            found: tuple[FrontierPoint, int] = pickle.load(self._process.stdout)
            return found
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            if self.ended:
                raise QuantGolfError("the sweep was stopped") from error
            self._how = self._end()
            return None

    def kill(self) -> None:
        """Ends it at once, for good."""
        self.ended = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # what it was not told any more
                    assert pipe is not None
                    pipe.close()

    def _start(self) -> None:
        environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "quantgolf.sweep"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=log, env=environment, start_new_session=True,
                )  # fmt: skip
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(self._setup)
            self._process.stdin.flush()
            refused = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise QuantGolfError(
                f"a process of the sweep did not start, it ended {self._end()}; see {self._log}"
            ) from error
        if refused is not None:
            raise refused

    def _end(self) -> str:
        """How it ended, with the last line it said."""
        if self._process is None:
            return "before it began"
        with suppress(subprocess.TimeoutExpired):  # its pipes close before it has ended
            self._process.wait(5)
        self._kill()
        code = self._process.returncode
        self._process = None
        said = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
        return f"by signal {-code}" if code < 0 else f"with code {code} ({said[:200]})"

    def _failed(self, job: Job) -> tuple[FrontierPoint, int]:
        setup: Setup = pickle.loads(self._setup)
        yardstick = Yardstick(
            setup.open(), setup.text, model=setup.model, length=setup.length, stride=setup.stride,
            context=setup.context, seed=setup.seed,
        )  # fmt: skip
        reason = f"two processes that were to make it ended, the last one {self._how}; give more memory or fewer --jobs"
        point = yardstick.failed(
            key=job.key, method=job.method, options=job.recipe.options(), error=reason, limit=job.recipe.max_bytes,
            final=False,
        )  # fmt: skip
        return point, 0
