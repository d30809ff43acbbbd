"""The frontier against its definition, and paired differences against the evaluation's own."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import kl_difference
from quantgolf.report.frontier import chosen, frontier, paired, rivals, size_of
from quantgolf.report.losses import note_of
from quantgolf.report.results import panels_of
from quantgolf.sweep.point import Documents, FrontierPoint
from quantgolf.types import EvalResult

Make = Callable[..., FrontierPoint]
PAIRS = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), max_size=12)


@given(PAIRS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_frontier_is_what_no_other_point_beats(make: Make, pairs: list[tuple[int, int]]) -> None:
    points = [make("m", 1000 * size, kl / 10, key=str(i)) for i, (size, kl) in enumerate(pairs)]
    slow = {
        str(i)
        for i, (size, kl) in enumerate(pairs)
        if not any(a <= size and b <= kl and (a, b) != (size, kl) for a, b in pairs)
    }
    found = frontier(points)
    assert {point.key for point in found} == slow
    assert [point.bytes for point in found] == sorted(point.bytes or 0 for point in found)


def test_what_is_left_of_a_limit_decides_nothing(make: Make) -> None:
    fuller, emptier = make("slope", 999_990, 0.1, limit=1_000_000), make("gptq", 995_000, 0.2, limit=1_000_000)
    far = make("rtn", 900_000, 0.3, limit=1_000_000)
    assert [size_of(point) for point in (fuller, emptier, far)] == [1_000_000, 1_000_000, 900_000]
    assert frontier([fuller, emptier, far]) == [far, fuller]
    assert frontier([replace(fuller, limit=None), replace(emptier, limit=None)]) != [fuller]


def test_points_without_the_metric_are_not_on_it(make: Make) -> None:
    assert frontier([make(kl=0.1), replace(make(size=1000), kl=None)]) == [make(kl=0.1)]


def test_chosen_points_span_the_frontier_and_know_their_tensors(sweep: list[FrontierPoint], make: Make) -> None:
    (panel,) = panels_of([*sweep, make("bare", 450_000, 0.05, tensors=())])
    assert "bare" in {point.method for point in frontier(panel.points)}
    assert [point.bytes for point in chosen(panel, 2)] == [400_000, 1_100_000]
    assert {point.method for point in chosen(panel, 9)} == {"slope"} and len(chosen(panel, 9)) == 4


def test_rivals_are_the_best_of_each_method_at_one_size(sweep: list[FrontierPoint], make: Make) -> None:
    (panel,) = panels_of([*sweep, make("gptq", 801_000, 0.001, key="better")])
    found = rivals(panel, 3)
    assert {point.method for point in found} == {"slope", "gptq"}
    assert max(p.bytes or 0 for p in found) <= 1.02 * min(p.bytes or 0 for p in found)
    (panel,) = panels_of([make(tensors=())])
    assert rivals(panel, 3) == []


def test_paired_differences_are_those_of_the_evaluation(make: Make) -> None:
    rng = np.random.default_rng(0)
    size = rng.integers(100, 400, 20)

    def with_documents(method: str, kl: np.ndarray) -> tuple[FrontierPoint, EvalResult]:
        whole = tuple(int(v) for v in size)
        documents = Documents(whole, whole, tuple(map(float, kl)), tuple(map(float, kl)))
        return make(method, 1000, documents=documents), EvalResult(kl, size, size, kl, 0)

    best, best_result = with_documents("slope", rng.uniform(0, 1, 20))
    worse, worse_result = with_documents("gptq", rng.uniform(1, 2, 20))
    (panel,) = panels_of([worse, best, make("far", 2000, 0.0001)])
    found = paired(panel)
    oracle = kl_difference(worse_result, best_result)
    assert found[best.key].kl is None and found[best.key].best is best
    difference = found[worse.key].kl
    assert difference is not None and found[worse.key].best is best
    assert (difference.value, difference.low, difference.high) == (oracle.value, oracle.low, oracle.high)
    assert math.isclose(difference.value, (worse_result.kl_bpb or 0) - (best_result.kl_bpb or 0), rel_tol=1e-9)
    assert found["far-2000"].kl is None


def test_documents_that_do_not_match_are_refused(make: Make) -> None:
    other = Documents((999,) * 8, (400,) * 8, (9.0,) * 8, (9.0,) * 8)
    (panel,) = panels_of([make(kl=0.01), make("gptq", documents=other)])
    with pytest.raises(QuantGolfError, match="documents of different bytes under one text fingerprint"):
        paired(panel)


@pytest.mark.parametrize(("count", "drawn"), [(3, True), (16, True), (17, False)])
def test_a_wood_of_limits_is_not_drawn(make: Make, count: int, drawn: bool) -> None:
    points = [make("slope", 800_000 + i, limit=900_000 + i) for i in range(count)]
    assert ("Upright lines: limits." in note_of(panels_of(points))) == drawn
