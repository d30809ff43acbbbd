"""A user's method against ours: files of the same bytes, measured on the same tokens, with paired differences."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from quantgolf.bench.method import Method, compressed, filled, restored
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import compress
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate.interval import per_byte
from quantgolf.sweep.measure import Yardstick, kinds_of
from quantgolf.sweep.point import FrontierPoint, Measured
from quantgolf.types import Calibration

Progress = Callable[[str, int, int], None]


class Learned(Protocol):
    """What methods calibrate on, made when it is first asked for."""

    tokens: int

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets, int64 [B, L] each."""

    @property
    def statistics(self) -> Calibration:
        """Ours, of the same text."""


@dataclass(frozen=True)
class Comparison:
    """A method's file and ours within its bytes.

    Attributes:
        theirs: the user's; where it failed, there are none of ours.
        ours: one for each solver asked for.
        differences: theirs minus ours, of those that are done, by solver: `bpb` and `kl`, bits per byte.
    """

    theirs: FrontierPoint
    ours: tuple[FrontierPoint, ...] = ()
    differences: dict[str, dict[str, Measured]] = field(default_factory=dict)

    def spelled(self) -> dict[str, Any]:
        """As JSON, without what there is of every document."""
        return {
            "theirs": _spelled(self.theirs),
            "ours": [_spelled(each) for each in self.ours],
            "differences": {
                solver: {name: asdict(value) for name, value in each.items()}
                for solver, each in self.differences.items()
            },
        }


@dataclass(frozen=True)
class Bench:
    """Measures methods on a yardstick.

    Attributes:
        source: the float model.
        yardstick: it, and the text.
        learned: what is calibrated on.
        solvers: ours, as `compress` spells them; they are neither tuned nor guarded.
        keep: gets every point as it is measured.
        progress: called with (stage, done, total).
        seed, resamples: of the differences' intervals.
    """

    source: Checkpoint
    yardstick: Yardstick
    learned: Learned
    solvers: Sequence[str]
    keep: Callable[[FrontierPoint], None]
    progress: Progress
    seed: int
    resamples: int

    def run(self, method: Method, limit: int | None) -> Comparison:
        """A method's file within a limit, and ours within the bytes that it took."""
        options: dict[str, Any] = {"script": method.script.name, "digest": method.digest, "asks": sorted(method.asks)}
        if {"batches", "calibration"} & method.asks:
            options["calibration_tokens"] = self.learned.tokens
        identity: dict[str, Any] = {
            "key": f"{method.name} {method.digest} {limit}", "method": method.name, "options": options, "limit": limit,
        }  # fmt: skip
        given: dict[str, Any] = {"max_bytes": limit}
        if "model" in method.asks:
            given["model"] = deepcopy(self.source.module)
        if "batches" in method.asks:
            given["batches"] = deepcopy(self.learned.batches)  # the next method's are as they were
        if "calibration" in method.asks:
            given["calibration"] = self.learned.statistics
        try:
            self.progress(f"{method.name}: compressing", 0, 1)
            made = compressed(method, self.source, given)
            self.progress(f"{method.name}: compressing", 1, 1)
            self.progress(f"{method.name}: fresh process", 0, 1)
            weights, taken = restored(method, made.data, self.source)
            self.progress(f"{method.name}: fresh process", 1, 1)
            theirs = self.yardstick.point(
                filled(self.source, weights), **identity, bytes=len(made.data), kinds={"file": len(made.data)},
                seconds={"compress": made.seconds, "decompress": taken}, progress=self._evaluating(method.name),
            )  # fmt: skip
        except QuantGolfError as error:
            theirs = self.yardstick.failed(**identity, error=str(error))
            self.keep(theirs)
            return Comparison(theirs)
        self.keep(theirs)
        ours = []
        for solver in self.solvers:
            ours.append(self._own(solver, len(made.data)))
            self.keep(ours[-1])
        done = {each.method: self._difference(theirs, each) for each in ours if each.status == "done"}
        return Comparison(theirs, tuple(ours), done)

    def _own(self, solver: str, limit: int) -> FrontierPoint:
        options = {"solver": solver, "tuned": False, "guard": False, "calibration_tokens": self.learned.tokens}
        identity: dict[str, Any] = {
            "key": f"{solver} {limit} of {self.learned.tokens}", "method": solver, "options": options, "limit": limit,
        }  # fmt: skip
        statistics = self.learned.statistics
        started = time.perf_counter()
        try:
            result = compress(
                self.source, statistics, max_bytes=limit, solver=solver,  # type: ignore[arg-type]
                guard=False, tuning=False, progress=lambda stage, *done: self.progress(f"{solver}: {stage}", *done),
            )  # fmt: skip
            seconds = time.perf_counter() - started
            return self.yardstick.point(
                result.module(deepcopy(self.source.module)), **identity, bytes=len(result.data),
                kinds=kinds_of(result.coded, len(result.data)), seconds={"compress": seconds},
                progress=self._evaluating(solver),
            )  # fmt: skip
        except QuantGolfError as error:
            return self.yardstick.failed(**identity, error=str(error))

    def _difference(self, theirs: FrontierPoint, mine: FrontierPoint) -> dict[str, Measured]:
        one, other = theirs.documents, mine.documents
        assert one is not None and other is not None
        size = np.asarray(one.bytes, dtype=np.int64)
        return {
            name: Measured.of(per_byte(np.asarray(a) - np.asarray(b), size, self.seed, self.resamples))
            for name, a, b in (("bpb", one.nats, other.nats), ("kl", one.kl, other.kl))
        }

    def _evaluating(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(f"{name}: evaluating", done, total)


def _spelled(point: FrontierPoint) -> dict[str, Any]:
    return {name: value for name, value in asdict(point).items() if name != "documents"}
