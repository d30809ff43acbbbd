"""Paired bootstrap over documents (Efron 1979): how much of a difference is the choice of text.

Documents are drawn anew, `resamples` times with a generator of the `seed`, with all that happened on them, so that what
two models share on a document cancels.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from quantgolf.errors import QuantGolfError
from quantgolf.types import EvalResult, Interval

RESAMPLES = 2000


def difference(result: EvalResult, other: EvalResult, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """BPB of `result` minus BPB of `other`, with its 95% interval.

    Raises:
        QuantGolfError: results on different texts.
    """
    _refuse_different(result, other)
    return per_byte(result.nats - other.nats, result.bytes, seed, resamples)


def kl_interval(result: EvalResult, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """KL to the reference in bits per byte, with its 95% interval.

    Raises:
        QuantGolfError: a result without KL.
    """
    return per_byte(_kl(result), result.bytes, seed, resamples)


def kl_difference(result: EvalResult, other: EvalResult, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """KL of `result` minus KL of `other` in bits per byte, both to the same reference, with its 95% interval.

    Raises:
        QuantGolfError: results on different texts, or without KL.
    """
    _refuse_different(result, other)
    return per_byte(_kl(result) - _kl(other), result.bytes, seed, resamples)


def top1_interval(result: EvalResult, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Share of tokens whose likeliest prediction is the reference's, with its 95% interval.

    Raises:
        QuantGolfError: a result without a reference.
    """
    return share(_agree(result).astype(np.float64), result.tokens, seed, resamples)


def top1_difference(result: EvalResult, other: EvalResult, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """That share of `result` minus that of `other`, both to the same reference, with its 95% interval.

    Raises:
        QuantGolfError: results on different texts, or without a reference.
    """
    _refuse_different(result, other)
    return share((_agree(result) - _agree(other)).astype(np.float64), result.tokens, seed, resamples)


def per_byte(nats: NDArray[np.float64], size: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Σ nats / ln 2 / Σ bytes over documents [D], with its 95% percentile interval; with one document, ±nan."""
    return share(nats / math.log(2), size, seed, resamples)


def share(amount: NDArray[np.float64], size: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Σ amount / Σ size over documents [D], with its 95% percentile interval; with one document, ±nan. A document of
    size 0 is drawn together with the one before it, so that no draw has nothing to divide by.

    Raises:
        QuantGolfError: fewer than one resample, or nothing but documents of size 0.
    """
    if resamples < 1:
        raise QuantGolfError(f"resamples is {resamples}, expected at least 1")
    if not size.any():
        raise QuantGolfError(f"{len(size)} documents of size 0, expected at least one byte or token of text")
    value = float(amount.sum() / size.sum())
    drawn = np.maximum(0, np.cumsum(size > 0) - 1)
    amount, size = np.bincount(drawn, amount).astype(np.float64), np.bincount(drawn, size).astype(np.int64)
    if len(size) < 2:
        return Interval(value, math.nan, math.nan)

    def statistic(amount: NDArray[np.float64], size: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        ratio: NDArray[np.float64] = amount.sum(axis) / size.sum(axis)
        return ratio

    result = bootstrap(
        (amount, size), statistic, paired=True, vectorized=True, n_resamples=resamples, method="percentile",
        batch=max(1, 2**22 // len(size)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Interval(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def _agree(result: EvalResult) -> NDArray[np.int64]:
    if result.agree is None:
        raise QuantGolfError("this result has no agreement, expected one measured with evaluate_against")
    return result.agree


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
