"""Calibration covers the first tokens of a text, in windows that keep to the context."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.data import Corpus, calibration_batches
from quantgolf.errors import QuantGolfError


def corpus(*lengths: int) -> Corpus:
    """Documents whose tokens are their own positions in the stream."""
    return Corpus(
        tokens=torch.arange(sum(lengths)),
        document=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        bytes=np.array(lengths), bos=None, vocab_size=10_000, unknown=0, uncounted=0, counted="utf-8 text",
    )  # fmt: skip


def test_dense_batches_are_the_stream_in_windows() -> None:
    text = corpus(7, 40, 3)
    batches = calibration_batches(text, 30, 8, at_once=16)
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(2, 8), (1, 8)]
    assert torch.cat([inputs.flatten() for inputs, _ in batches]).tolist() == list(range(24))
    assert torch.cat([targets.flatten() for _, targets in batches]).tolist() == list(range(1, 25))
    assert [tuple(inputs.shape) for inputs, _ in calibration_batches(text, 1000, 8, at_once=1)] == [(1, 8)] * 6
    assert all(part.dtype == torch.int64 for batch in batches for part in batch)


def test_isolated_batches_hold_equal_windows_of_one_document_each() -> None:
    batches = calibration_batches(corpus(4, 1, 12, 4, 9), 1000, 8, "isolated", at_once=8)
    assert [inputs.tolist() for inputs, _ in batches] == [
        [list(range(5, 13))], [list(range(21, 29))], [[0, 1, 2], [13, 14, 15]], [[17, 18, 19]]
    ]  # fmt: skip
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in batches)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 90), st.integers(1, 64))
def test_isolated_batches_cover_the_first_tokens(lengths: list[int], length: int, tokens: int, at_once: int) -> None:
    text = corpus(*lengths)
    ends = np.cumsum(lengths)
    inputs = [i for i in range(len(text.tokens)) if i + 1 not in ends]
    if len(inputs) < max(length, 1):
        with pytest.raises(QuantGolfError, match="give more text"):
            calibration_batches(text, tokens, length, "isolated", at_once)
        return
    batches = calibration_batches(text, tokens, length, "isolated", at_once)
    covered = sorted(i for batch, _ in batches for i in batch.flatten().tolist())
    assert covered == inputs[: len(covered)]
    assert min(tokens, len(inputs)) <= len(covered) < tokens + length
    for batch, targets in batches:
        assert torch.equal(targets, batch + 1)
        assert batch.shape[0] == 1 or batch.numel() <= at_once
        assert all(len({int(text.document[i]) for i in (*row, row[-1] + 1)}) == 1 for row in batch.tolist())


@pytest.mark.parametrize(
    ("lengths", "tokens", "context", "message"),
    [
        ((4, 4), 100, "dense", "has 8 tokens, expected at least one window of 9"),
        ((40,), 7, "dense", "calibration of 7 tokens is shorter than one window, expected at least 8"),
        ((4, 4), 100, "isolated", "has 6 tokens that another follows in its document, expected .* window of 8"),
        ((1, 1), 100, "isolated", "expected at least 2 in one of them"),
        ((40,), 0, "isolated", "calibration of 0 tokens"),
    ],
)
def test_too_little_text_is_refused(lengths: tuple[int, ...], tokens: int, context: str, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        calibration_batches(corpus(*lengths), tokens, 8, context)  # type: ignore[arg-type]
