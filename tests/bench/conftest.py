"""A clock that is told what to say."""

from collections.abc import Callable, Sequence

import pytest

from quantgolf.bench.clock import Call


class FakeTimer:
    """Runs calls, and says that each took `cost` seconds, of every second run a fifth more."""

    def __init__(self, cost: float) -> None:
        self.cost, self.recorded, self.runs = cost, list[tuple[int, int]](), 0

    def record(self, calls: Sequence[Call], rounds: int) -> Callable[[], float]:
        self.recorded.append((len(calls), rounds))

        def run() -> float:
            for call in calls:
                call()
            self.runs += 1
            return self.cost * len(calls) * rounds * (1.2 if self.runs % 2 else 1.0)

        return run


@pytest.fixture
def fake() -> type[FakeTimer]:
    return FakeTimer
