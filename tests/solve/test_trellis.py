"""The trellis against every path there is, and its levels against the rules a decoder goes by."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.errors import QuantGolfError
from quantgolf.solve.trellis import Trellis, label_of

STATES = (1, 4, 8, 16, 32, 64, 128, 256)


def allowed(level: int, state: int) -> bool:
    return level == 0 or level % 2 == state % 2


def walk(levels: list[int], trellis: Trellis) -> bool:
    """Whether the levels are a path of the machine."""
    state = 0
    for row, level in enumerate(levels):
        state = 0 if row % trellis.restart == 0 else state
        if trellis.states > 1 and not allowed(level, state):
            return False
        state = int(trellis.after[state, label_of(level)]) if trellis.states > 1 else 0
    return True


@pytest.mark.parametrize("states", [4, 8])
@settings(deadline=None)  # the first call compiles
@given(targets=st.lists(st.floats(-4, 4), min_size=1, max_size=5), restart=st.integers(1, 5))
def test_no_path_is_nearer(states: int, targets: list[float], restart: int) -> None:
    trellis = Trellis(states, restart)
    found = trellis.quantize(np.array(targets)).tolist()
    assert walk(found, trellis)
    near = [[level for level in range(-7, 8) if abs(level - target) <= 4] for target in targets]
    best = min(
        sum((level - target) ** 2 for level, target in zip(path, targets, strict=True))
        for path in product(*near)
        if walk(list(path), trellis)
    )
    assert sum((a - b) ** 2 for a, b in zip(found, targets, strict=True)) == pytest.approx(best, abs=1e-9)


def one_at_a_time(targets: list[float], trellis: Trellis) -> list[int]:
    """Viterbi with a dictionary for each row, one segment after another."""
    found: list[int] = []
    for start in range(0, len(targets), trellis.restart):
        paths: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
        for target in targets[start : start + trellis.restart]:
            reached: dict[int, tuple[float, list[int]]] = {}
            near = range(int(target // 1) - 4, int(target // 1) + 6)
            for state, (cost, path) in paths.items():
                for level in {*near, -3, -1, 0, 1, 3}:
                    if allowed(level, state):
                        to, total = int(trellis.after[state, label_of(level)]), cost + (level - target) ** 2
                        if to not in reached or total < reached[to][0]:
                            reached[to] = total, [*path, level]
            paths = reached
        found += min(paths.values())[1]
    return found


@pytest.mark.parametrize("states", STATES[1:])
@pytest.mark.parametrize(
    ("rows", "restart"), [(1, 1), (5, 16), (16, 16), (17, 16), (100, 16), (3 * 16 + 1, 16), (9, 2)]
)
def test_segments_are_those_of_plain_loops(states: int, rows: int, restart: int) -> None:
    """Any number of segments, and short last ones."""
    for seed, spread in enumerate((0.4, 2.0, 30.0)):
        targets = np.random.default_rng([states, rows, seed]).normal(0, spread, rows)
        trellis = Trellis(states, restart)
        assert trellis.quantize(targets).tolist() == one_at_a_time(targets.tolist(), trellis)


def test_a_restart_that_never_comes_takes_no_memory() -> None:
    targets = np.random.default_rng(0).normal(0, 3, 50)
    assert np.array_equal(Trellis(8, 10**12).quantize(targets), Trellis(8, 50).quantize(targets))


@pytest.mark.parametrize("states", STATES)
def test_levels_are_a_path_and_errors_fall_with_states(states: int) -> None:
    targets = np.random.default_rng(0).normal(0, 6, 4000)
    levels = Trellis(states).quantize(targets)
    assert levels.dtype == np.int32 and walk(levels.tolist(), Trellis(states))
    error = float(np.square(levels - targets).mean())
    # A uniform quantizer with spacing two, which has the same rate, errs by 1/3.
    assert error < {1: 0.09, 4: 0.255, 8: 0.25, 16: 0.245, 32: 0.24, 64: 0.237, 128: 0.235, 256: 0.233}[states]


def test_segments_do_not_know_of_each_other() -> None:
    targets = np.random.default_rng(1).normal(0, 3, 300)
    trellis = Trellis(8, 100)
    parts = [trellis.quantize(targets[start : start + 100]) for start in (0, 100, 200)]
    assert np.array_equal(trellis.quantize(targets), np.concatenate(parts))


@pytest.mark.parametrize("states", STATES[1:])
def test_every_state_is_reached_and_left_in_two_ways(states: int) -> None:
    after = Trellis(states).after
    assert sorted(after.ravel().tolist()) == sorted([*range(states)] * 2)
    assert (after[:, 0] != after[:, 1]).all()


def test_other_machines_are_refused() -> None:
    with pytest.raises(QuantGolfError, match="states is 5, expected 1"):
        Trellis(5)
    with pytest.raises(QuantGolfError, match="restart is 0"):
        Trellis(8, 0)
