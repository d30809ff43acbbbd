"""Paired bootstrap over documents (Efron 1979): how much of a difference is the choice of text.

Documents are drawn anew, with all that happened on them, so that what two models share on a document cancels.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from quantgolf.errors import QuantGolfError
from quantgolf.types import EvalResult, Interval

RESAMPLES = 2000


def difference(result: EvalResult, other: EvalResult, *, seed: int = 0) -> Interval:
    """BPB of `result` minus BPB of `other`, with its 95% interval.

    Raises:
        QuantGolfError: results on different texts.
    """
    _refuse_different(result, other)
    return per_byte(result.nats - other.nats, result.bytes, seed)


def kl_interval(result: EvalResult, *, seed: int = 0) -> Interval:
    """KL to the reference in bits per byte, with its 95% interval.

    Raises:
        QuantGolfError: a result without KL.
    """
    return per_byte(_kl(result), result.bytes, seed)


def kl_difference(result: EvalResult, other: EvalResult, *, seed: int = 0) -> Interval:
    """KL of `result` minus KL of `other` in bits per byte, both to the same reference, with its 95% interval.

    Raises:
        QuantGolfError: results on different texts, or without KL.
    """
    _refuse_different(result, other)
    return per_byte(_kl(result) - _kl(other), result.bytes, seed)


def per_byte(nats: NDArray[np.float64], size: NDArray[np.int64], seed: int) -> Interval:
    """Σ nats / ln 2 / Σ bytes over documents [D], with its 95% percentile interval; with one document, ±nan."""
    value = float(nats.sum() / math.log(2) / size.sum())
    if len(nats) < 2:
        return Interval(value, math.nan, math.nan)

    def statistic(nats: NDArray[np.float64], size: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        ratio: NDArray[np.float64] = nats.sum(axis) / math.log(2) / size.sum(axis)
        return ratio

    result = bootstrap(
        (nats, size), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        batch=max(1, 2**22 // len(nats)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Interval(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def _kl(result: EvalResult) -> NDArray[np.float64]:
    if result.kl is None:
        raise QuantGolfError("this result has no KL, expected one measured with evaluate_against")
    return result.kl


def _refuse_different(result: EvalResult, other: EvalResult) -> None:
    if not np.array_equal(result.bytes, other.bytes):
        raise QuantGolfError(
            f"the results are of {len(result.bytes)} documents ({result.bytes.sum():,} bytes) and {len(other.bytes)} "
            f"({other.bytes.sum():,} bytes), expected the same text: measure both on one corpus"
        )
