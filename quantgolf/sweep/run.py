"""A sweep: one calibration, many files of one model, each measured on one text and kept in a file of JSON lines."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import choose
from quantgolf.compress.pipeline import TOKENS
from quantgolf.compress.rehearse import held_sizes
from quantgolf.compress.result import Progress, stage
from quantgolf.data import Context, Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.asked import Effort, Judge, Learned, Opened, Outcome
from quantgolf.sweep.axes import axis_of, recipes_of
from quantgolf.sweep.begin import calibrated, folder_of, refuse_foreign
from quantgolf.sweep.crew import Crew, processes, worker_bytes
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.recipe import Recipe, key_of
from quantgolf.sweep.store import ResultsFile
from quantgolf.sweep.worker import Job, Setup
from quantgolf.types import Calibration


@dataclass
class Session:
    """A sweep under way, which makes points of recipes as they are asked for.

    Attributes:
        source: the float model.
        calibration: of it; statistics are read from their folder.
        origin: what makes keys: the calibration's text and settings.
        crew: that makes the points.
        effort: how.
        notes: collected on the way.
        asked: all recipes so far by key, those of other shards too.
    """

    source: Checkpoint
    calibration: Calibration
    origin: dict[str, Any]
    crew: Crew
    effort: Effort
    notes: list[str] = field(default_factory=list)
    asked: dict[str, Recipe] = field(default_factory=dict)

    def points(self, recipes: Iterable[Recipe], method: str | None = None, divide: bool = True) -> Outcome:
        """Points of recipes, each once; with `divide` those of this shard.

        Args:
            method: what they are called; None for `Recipe.method`.
        """
        found = {self.key(recipe): recipe for recipe in dict.fromkeys(recipes)}
        self.asked |= found
        jobs = [Job(key, recipe, method or recipe.method()) for key, recipe in found.items()]
        if divide:
            at, of = self.effort.shard
            jobs = jobs[at - 1 :: of]
        before = self.crew.finished
        points = self.crew.points(jobs, self.effort.retry)
        kept = tuple(points[job.key] for job in jobs if job.key in points)
        return Outcome(kept, tuple(self.notes), self.crew.finished - before)

    def stored(self) -> tuple[FrontierPoint, ...]:
        """Points of all that was asked for that the file has, whoever made them."""
        known = self.crew.file.read().points
        return tuple(known[key] for key in self.asked if key in known)

    def key(self, recipe: Recipe) -> str:
        """Of a recipe's file."""
        return key_of(recipe, self.source.fingerprint, self.origin)


@contextmanager
def session(
    source: Checkpoint | Callable[[], Checkpoint],
    learned: Learned,
    judge: Judge,
    out: Path,
    *,
    model: str,
    effort: Effort | None = None,
    code_bytes: int = 0,
    points: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Session]:
    """Opens what a sweep needs: the results file is looked at, then statistics are made, or found in the folder
    `OUT.work` beside the results.

    Args:
        source: an `Opener`, or anything else that gives the checkpoint and can be pickled; or the checkpoint itself,
            whose points are then made one after another in this process.
        model: what people call it.
        code_bytes: raw bytes of source files that count towards limits.
        points: how many there will be at most, so that no more processes start; None where that is not known.
        progress: called with (stage, done, total).

    Raises:
        QuantGolfError: results or statistics of another model, text or settings, or no room for a process.
    """
    effort = effort or Effort()
    alone = isinstance(source, Checkpoint)
    opener: Callable[[], Checkpoint] = Opened(source) if isinstance(source, Checkpoint) else source
    if alone and (effort.jobs or 1) > 1:
        raise QuantGolfError(
            f"jobs is {effort.jobs} and the checkpoint is open in this process, expected 1; give Opener(path, model)"
        )
    checkpoint = opener()
    file, folder = ResultsFile(out), folder_of(out)
    notes = list(refuse_foreign(file, checkpoint, judge, model))
    calibration, place, origin = calibrated(checkpoint, learned, folder, progress)
    matrices, _ = choose(checkpoint, calibration)
    each = worker_bytes(
        4 * checkpoint.parameters, held_sizes({name: matrices.size(name) for name in matrices}, calibration)
    )
    wanted = effort.jobs or os.cpu_count() or 1
    count, why = (0, "") if alone else processes(wanted, wanted if points is None else points, each, effort.memory)
    notes += [why] if why else []
    setup = Setup(
        opener, checkpoint.fingerprint, model, judge.text, judge.length, judge.stride, judge.context, judge.seed, place,
        origin, code_bytes, judge.documents,
    )  # fmt: skip
    crew = Crew(
        setup, file, folder, count, effort.memory, stage(progress, "points") or (lambda done, total: None), notes.append
    )
    try:
        yield Session(checkpoint, calibration, origin, crew, effort, notes)
    finally:
        crew.close()


def sweep(
    source: Checkpoint | Callable[[], Checkpoint],
    text: Corpus,
    judged: Corpus,
    axes: Mapping[str, Any] | Sequence[Recipe],
    out: str | Path,
    *,
    model: str = "model",
    tokens: int = TOKENS,
    length: int = 512,
    context: Context = "dense",
    seed: int = 0,
    effort: Effort | None = None,
    code_bytes: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Files of one model under many options, each measured; what `out` has already is not made again.

        sweep(Opener("model.safetensors", "train.py:build"), calibration, validation,
              {"max_bytes": "8MB:20MB:1MB", "solver": ["slope", "gptq"]}, "results.jsonl")

    Args:
        source: as `session` takes it.
        text: to calibrate on.
        judged: to measure on; not the text that is calibrated on.
        axes: values by option, as lists or as the command line has them (see `axis_of`); or recipes.
        out: results file, added to.
        model: what people call it.
        tokens, length, context, seed: of calibration and, but for `tokens`, of measuring.
        effort: who works at it.
        code_bytes: raw bytes of source files that count towards limits.
        progress: called with (stage, done, total).

    Raises:
        QuantGolfError: an empty grid, values out of range, or as `session`. A point that cannot be made is no error but
            one of `Outcome.failed`.
    """
    learned = Learned(text, tokens, length, context, seed)
    judge = Judge(judged, length, None, context, seed)
    chosen = {name: axis_of(name, given) for name, given in axes.items()} if isinstance(axes, Mapping) else None
    with session(
        source, learned, judge, Path(out), model=model, effort=effort, code_bytes=code_bytes, progress=progress
    ) as going:
        if chosen is None:
            return going.points(cast(Sequence[Recipe], axes))
        return going.points(recipes_of(chosen, going.source.parameters, code_bytes))
