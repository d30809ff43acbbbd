"""A process that is killed while it makes a point: another one makes it, and a point that kills two is not final."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantgolf.sweep import process as process_module
from quantgolf.sweep.crew import _settled
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.process import Process
from quantgolf.sweep.recipe import Recipe
from quantgolf.sweep.worker import Job

# Answers as a worker does, but is killed by its first jobs, as many as the file has letters.
WORKER = """
import os, pickle, sys
pickle.load(sys.stdin.buffer)
answers = os.fdopen(os.dup(1), "wb")
pickle.dump(None, answers)
answers.flush()
job = pickle.load(sys.stdin.buffer)
deaths = open(sys.argv[1]).read()
if deaths:
    open(sys.argv[1], "w").write(deaths[1:])
    os.kill(os.getpid(), 9)
pickle.dump((job.key, 7), answers)
answers.flush()
sys.stdin.buffer.read()
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    """A process in place of a real one; `tmp_path / "deaths"` says how often it is killed."""
    start = subprocess.Popen

    def fake(command: list[str], **given: Any) -> Any:
        return start([sys.executable, "-c", WORKER, str(tmp_path / "deaths")], **given)

    monkeypatch.setattr(process_module.subprocess, "Popen", fake)
    monkeypatch.setattr(Process, "_failed", lambda self, job: (self._how, 0))
    return Process(None, tmp_path, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("deaths", "found"), [("", ("key", 7)), ("x", ("key", 7)), ("xx", ("by signal 9", 0))])
def test_a_job_that_a_process_died_of_is_done_once_more(
    deaths: str, found: tuple[str, int], worker: Process, tmp_path: Path
) -> None:
    (tmp_path / "deaths").write_text(deaths)
    assert worker.point(Job("key", Recipe("rtn", bits="*=4"), "rtn")) == found
    worker.kill()


def test_a_point_whose_process_was_killed_is_made_again_by_a_plain_rerun() -> None:
    common = ("k", "m", "f", 1, "rtn", {}, {"fingerprint": "t"}, "failed")
    killed, final = FrontierPoint(*common, error="killed", final=False), FrontierPoint(*common, error="no", nearest=9)
    assert FrontierPoint.read(killed.line()) == killed and FrontierPoint.read(final.line()) == final
    assert not _settled(killed, retry=False)
    assert _settled(final, retry=False) and not _settled(final, retry=True)
