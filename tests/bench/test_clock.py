"""How many runs and calls a measurement takes, and what it makes of them, with a clock that is told what to say."""

from typing import Any

import pytest

from quantgolf.bench.clock import AT_LEAST, MOST_CALLS, HostTimer, copies, measure
from quantgolf.errors import QuantGolfError


def test_short_calls_are_repeated_within_a_run(fake: Any) -> None:
    timer, called = fake(10e-6), []
    timing = measure(timer, [lambda: called.append(0), lambda: called.append(1)])
    assert timer.recorded == [(2, 1), (2, 100)]  # 2 ms a run
    assert timing.calls == 200 and timing.runs == 100
    assert called[:4] == [0, 1, 0, 1]  # in turn
    assert timing.low == pytest.approx(10e-6) and timing.high == pytest.approx(12e-6)
    assert timing.low <= timing.seconds <= timing.high


def test_long_calls_run_once_each_and_few_times(fake: Any) -> None:
    timer = fake(0.4)
    timing = measure(timer, [lambda: None])
    assert timer.recorded == [(1, 1)] and (timing.runs, timing.calls) == (AT_LEAST, 1)


def test_a_graph_does_not_grow_without_end(fake: Any) -> None:
    timer = fake(1e-9)
    timing = measure(timer, [lambda: None] * 1000)
    assert timing.calls == 4000 <= MOST_CALLS


def test_nothing_to_call_and_a_clock_that_stands_still_are_refused(fake: Any) -> None:
    with pytest.raises(QuantGolfError, match="expected at least one"):
        measure(fake(1.0), [])
    with pytest.raises(QuantGolfError, match="the clock is broken"):
        measure(fake(0.0), [lambda: None])


def test_the_hosts_clock_runs_everything() -> None:
    called: list[int] = []
    assert HostTimer().record([lambda: called.append(1)], 3)() > 0
    assert len(called) == 3


@pytest.mark.parametrize(
    "cache, size, count", [(100, 1, 300), (100, 100, 3), (100, 299, 2), (100, 10_000, 2), (7, 0, 21)]
)
def test_copies_exceed_a_cache_three_times(cache: int, size: int, count: int) -> None:
    assert copies(cache, size) == count
