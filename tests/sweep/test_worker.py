"""What fails a point for good, and what is tried again when the sweep is typed again."""

from pathlib import Path
from typing import Any

import pytest

from quantgolf.calibrate.stored import StoredStats
from quantgolf.checkpoint import Checkpoint
from quantgolf.data import Corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.sweep import Outcome, sweep, worker

pytestmark = pytest.mark.usefixtures("one_thread")


def swept(source: Checkpoint, texts: tuple[Corpus, Corpus], axes: Any, out: Path) -> Outcome:
    return sweep(source, *texts, axes, out, tokens=512, length=64)


def test_statistics_that_cannot_be_read_for_a_moment_fail_no_point_for_good(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(stats: StoredStats, name: str) -> Any:
        raise QuantGolfError(f"statistics {stats.folder}: cannot be read, calibrate again")

    out, axes = tmp_path / "r.jsonl", {"solver": ["rtn", "gptq"], "bits": "5", "max_bytes": ["1kB"]}
    with monkeypatch.context() as patch:
        patch.setattr(StoredStats, "__getitem__", unreadable)
        failed = swept(tiny, texts, axes, out).failed
    assert len(failed) == 4 and all("cannot be read" in point.error and not point.final for point in failed)
    found = swept(tiny, texts, axes, out)
    assert found.made == 4 and len(found.done) == 2
    assert all("1,000 bytes cannot be met" in p.error and p.nearest and p.final for p in found.failed)
    assert swept(tiny, texts, axes, out).made == 0


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (MemoryError("no room"), False),
        (OSError(5, "Input/output error"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory"), False),
        (QuantGolfError("statistics of a have values that are NaN or infinite"), False),
        (BudgetError("9 bytes cannot be met", 99), True),
    ],
)
def test_what_fails_a_point_for_good(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, final: bool,
) -> None:  # fmt: skip
    def fails(*given: Any) -> Any:
        raise error

    out, grid = tmp_path / "r.jsonl", {"solver": ["rtn"], "bits": "4"}
    with monkeypatch.context() as patch:
        patch.setattr(worker, "make", fails)
        (point,) = swept(tiny, texts, grid, out).failed
    assert point.final is final and str(error) in point.error
    assert swept(tiny, texts, grid, out).made == (not final)


def test_options_that_no_file_can_have_fail_a_point_for_good(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    axes = {"solver": ["rtn"], "bits": ["no.such=4,*=5", "mlp=4", "4"]}
    found = swept(tiny, texts, axes, tmp_path / "r.jsonl")
    assert [(point.status, point.final) for point in found.points] == [("failed", True)] * 2 + [("done", True)]
    assert "decides no weight" in found.points[0].error and "no pattern matches" in found.points[1].error
    assert swept(tiny, texts, axes, tmp_path / "r.jsonl").made == 0
