"""How long a call takes: on a GPU from replays of a CUDA graph, so that launching it from Python does not count.

A layer at one token is a few microseconds and a launch from Python several times that; as a graph the same kernels
follow one another as they do in a captured decode step. Eager timings also rank tiles wrongly.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Protocol

import torch

from quantgolf.errors import QuantGolfError

Call = Callable[[], object]
ONE_RUN = 0.002  # seconds that a run should at least take, long beside what a replay and two events cost
AT_LEAST, MOST_SECONDS = 9, 0.5  # runs, and about how long all of them may take
MOST_CALLS = 4096  # in one graph


class Timer(Protocol):
    """What runs calls and says how long they took."""

    def record(self, calls: Sequence[Call], rounds: int) -> Callable[[], float]:
        """Prepares all calls in turn, `rounds` times over; whenever it is called, the result runs that and gives its
        seconds."""


class GraphTimer:
    """A CUDA graph of all calls, between two events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, calls: Sequence[Call], rounds: int) -> Callable[[], float]:
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # what is compiled or reserved at a first call is not for a capture
                for call in calls:
                    call()
            torch.cuda.current_stream().wait_stream(aside)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(rounds):
                    for call in calls:
                        call()
            begin, end = _events()

        def run() -> float:
            with torch.cuda.device(self.device):
                begin.record()
                graph.replay()
                end.record()
                end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

        return run


class EventTimer:
    """The same events, around calls made from Python: for work so long that launching it does not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, calls: Sequence[Call], rounds: int) -> Callable[[], float]:
        def run() -> float:
            with torch.cuda.device(self.device):
                begin, end = _events()
                begin.record()
                for _ in range(rounds):
                    for call in calls:
                        call()
                end.record()
                end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

        return run


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    return begin, end


class HostTimer:
    """The host's clock, for work on a CPU."""

    def record(self, calls: Sequence[Call], rounds: int) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            for _ in range(rounds):
                for call in calls:
                    call()
            return time.perf_counter() - started

        return run


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of `runs` runs, their quartiles, and how many calls each of them made."""

    seconds: float
    low: float
    high: float
    runs: int
    calls: int


def measure(timer: Timer, calls: Sequence[Call]) -> Timing:
    """The time of one call, of several that do the same on memory of their own and are run in turn.

    Raises:
        QuantGolfError: nothing to call, or a timer that says that something took no time.
    """
    if not calls:
        raise QuantGolfError("no call is given, expected at least one to time")
    run = timer.record(calls, 1)
    run()
    once = run()
    if not once > 0:
        raise QuantGolfError(f"{len(calls)} calls took {once} s, expected more than 0; the clock is broken")
    rounds = max(1, min(round(ONE_RUN / once), MOST_CALLS // len(calls)))
    if rounds > 1:
        run = timer.record(calls, rounds)
        once = run()
    runs = max(AT_LEAST, min(100, int(MOST_SECONDS / once)))
    each = sorted(run() / (rounds * len(calls)) for _ in range(runs))
    low, _, high = quantiles(each, n=4)
    return Timing(median(each), low, high, runs, rounds * len(calls))


def copies(cache_bytes: int, nbytes: int) -> int:
    """How many copies of something of `nbytes` are run in turn so that none is in a cache when its turn comes again:
    three times the cache together, since what is replaced is not strictly the oldest, and at least two."""
    return max(2, -(-3 * cache_bytes // max(1, nbytes)))
