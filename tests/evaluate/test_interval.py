"""Intervals cover what they should, and are paired."""

import math

import numpy as np
import pytest

from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, kl_difference, kl_interval, top1_difference, top1_interval
from quantgolf.evaluate.interval import per_byte
from quantgolf.types import EvalResult


def result(nats: np.ndarray, kl: np.ndarray | None = None, size: int = 100) -> EvalResult:
    documents = len(nats)
    return EvalResult(nats, np.full(documents, size), np.full(documents, 30), kl, unknown=0)


def test_differences_are_paired() -> None:
    """Documents differ a hundred times more than the two models do on any of them."""
    rng = np.random.default_rng(0)
    nats = rng.uniform(10, 200, 60)
    interval = difference(result(nats + 1 + rng.normal(0, 0.1, 60)), result(nats))
    exact = 1 / math.log(2) / 100
    assert interval.low < interval.value < interval.high
    assert abs(interval.value - exact) < 0.001 and interval.high - interval.low < 0.001


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        interval = per_byte(rng.normal(math.log(2), 0.5, 50), np.ones(50, dtype=np.int64), seed)
        covered += interval.low <= 1 <= interval.high
    assert 86 <= covered <= 100


def test_seeds_repeat() -> None:
    nats, size = np.random.default_rng(2).uniform(0, 9, 20), np.arange(1, 21)
    assert per_byte(nats, size, 5) == per_byte(nats, size, 5) != per_byte(nats, size, 6)


def test_kl() -> None:
    a, b = (result(np.ones(9), kl=np.linspace(0, 1, 9) * scale) for scale in (3, 1))
    assert kl_interval(a).value == a.kl_bpb == pytest.approx(1.5 / math.log(2) / 100)
    assert kl_difference(a, b).value == pytest.approx(1 / math.log(2) / 100)


def test_top1() -> None:
    agree = np.array([30, 20, 10, 25])
    a = EvalResult(np.ones(4), np.full(4, 100), np.full(4, 30), np.ones(4), 0, agree)
    b = EvalResult(np.ones(4), np.full(4, 100), np.full(4, 30), np.ones(4), 0, agree - 3)
    found = top1_interval(a)
    assert found.value == a.top1 == pytest.approx(85 / 120) and found.low < found.value < found.high
    assert top1_difference(a, b).value == top1_difference(a, b).low == pytest.approx(0.1)
    with pytest.raises(QuantGolfError, match="has no agreement"):
        top1_interval(result(np.ones(3)))


def test_resamples_are_as_many_as_asked_for() -> None:
    nats = np.random.default_rng(3).uniform(10, 200, 20)
    few = [difference(result(nats), result(nats[::-1]), resamples=3, seed=seed) for seed in range(20)]
    many = [difference(result(nats), result(nats[::-1]), resamples=900, seed=seed) for seed in range(20)]
    spread = [np.std([interval.low for interval in found]) for found in (few, many)]
    assert spread[0] > 3 * spread[1]
    with pytest.raises(QuantGolfError, match="resamples is 0, expected at least 1"):
        difference(result(nats), result(nats), resamples=0)


def test_documents_without_bytes_are_drawn_with_the_one_before() -> None:
    """Two documents, one of them a lone BOS at the end of a shard: a draw of that alone has nothing to divide by."""
    nats, size = np.array([0.5, 3.0, 1.0, 2.0]), np.array([0, 10, 0, 5])
    interval = per_byte(nats, size, 0)
    assert interval.value == pytest.approx(6.5 / math.log(2) / 15)
    assert interval == per_byte(np.array([4.5, 2.0]), np.array([10, 5]), 0)
    assert math.isnan(per_byte(np.array([1.0, 2.0]), np.array([5, 0]), 0).low)
    with pytest.raises(QuantGolfError, match="2 documents of size 0"):
        per_byte(np.ones(2), np.zeros(2, dtype=np.int64), 0)


def test_one_document_has_no_interval() -> None:
    interval = difference(result(np.array([3.0])), result(np.array([2.0])))
    assert interval.value > 0 and math.isnan(interval.low) and math.isnan(interval.high)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="expected the same text"):
        difference(result(np.ones(3)), result(np.ones(4)))
    with pytest.raises(QuantGolfError, match="has no KL"):
        kl_interval(result(np.ones(3)))
