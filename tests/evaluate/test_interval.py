"""Intervals cover what they should, and are paired."""

import math

import numpy as np
import pytest

from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, kl_difference, kl_interval
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


def test_one_document_has_no_interval() -> None:
    interval = difference(result(np.array([3.0])), result(np.array([2.0])))
    assert interval.value > 0 and math.isnan(interval.low) and math.isnan(interval.high)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="expected the same text"):
        difference(result(np.ones(3)), result(np.ones(4)))
    with pytest.raises(QuantGolfError, match="has no KL"):
        kl_interval(result(np.ones(3)))
