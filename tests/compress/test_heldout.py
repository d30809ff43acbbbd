"""The cut through calibration text: statistics stay what they were, no token is in both parts, no byte is lost."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.compress import batches_of, split_calibration
from quantgolf.compress.heldout import behind, part_of
from quantgolf.data import Corpus, Tokenizer, read_corpus
from quantgolf.errors import QuantGolfError


def corpus(lengths: list[int], sizes: list[int] | None = None) -> Corpus:
    """Documents of so many tokens, numbered on, and so many bytes."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    return Corpus(
        torch.arange(len(document)), torch.from_numpy(document), np.array(sizes or lengths, dtype=np.int64),
        0, 10**6, 0, 0, "utf-8 text",
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 99)), min_size=1, max_size=12), st.data())
def test_parts_share_out_tokens_documents_and_bytes(documents: list[tuple[int, int]], data: st.DataObject) -> None:
    whole = corpus([length for length, _ in documents], [size for _, size in documents])
    count = len(whole.tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), min_size=1, max_size=3)))
    parts = [part_of(whole, a, b) for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert sum(part.bytes.sum() for part in parts) == whole.bytes.sum()
    for part in parts:
        assert len(part.bytes) == len(part.lengths) and part.lengths.sum() == len(part.tokens)
        ours = [documents[int(whole.document[int(token)])] for token in part.tokens[np.cumsum(part.lengths) - 1]]
        for (length, size), tokens, counted in zip(ours, part.lengths, part.bytes, strict=True):
            assert abs(counted - size * tokens / length) < 1 and (tokens < length or counted == size)


@pytest.mark.parametrize("context", ["dense", "isolated"])
@pytest.mark.parametrize("tokens", [512, 2047, 2048, 2050])
def test_statistics_stay_what_they_were(prose: Path, tokenizer: Tokenizer, context: Any, tokens: int) -> None:
    """What is learned from gives the batches of a text that is read no further than they reach."""
    text = read_corpus(prose, tokenizer)
    learn, held = split_calibration(text, tokens, 1024, length=16, context=context)
    alone = read_corpus(prose, tokenizer, max_tokens=tokens)
    found, expected = (batches_of(some, tokens=tokens, length=16, context=context) for some in (learn, alone))
    for pair, other in zip(found, expected, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(pair, other, strict=True))
    assert len(held.tokens) == 1024 and held.tokens[0] == text.bos


def test_no_token_is_in_both_parts() -> None:
    for lengths in ([1000], [100] * 10, [7] * 143, [600, 400]):
        for tokens, held_out in ((300, 100), (300, 10_000), (10_000, 100), (10_000, 10_000), (1, 17)):
            text = corpus(lengths)
            learn, held = split_calibration(text, tokens, held_out, length=16)
            assert learn.tokens[-1] < held.tokens[0] and learn.tokens[0] == 0
            most = max(len(text.tokens) - tokens, len(text.tokens) // 4)
            assert len(held.tokens) in (min(held_out, most - 1), min(held_out, most))
            # With a target for the last input, where its document has one.
            assert len(learn.tokens) - min(tokens, len(text.tokens) - len(held.tokens)) in (0, 1)
    learn, held = split_calibration(corpus([100] * 10), 250, 300, length=16)
    assert len(learn.tokens) == 251 and held.tokens[0] == 300  # a document's beginning


def test_too_little_text_says_how_much_would_do() -> None:
    with pytest.raises(QuantGolfError, match=r"has 259 tokens, expected at least 260 \(four windows\)"):
        split_calibration(corpus([259]), 100, 100, length=64)
    assert split_calibration(corpus([260]), 100, 100, length=64)
    with pytest.raises(QuantGolfError, match="64 tokens behind the 100 that statistics were learned from"):
        behind(corpus([165]), 100, 100, length=64)
    assert behind(corpus([166]), 100, 100, length=64).tokens.tolist() == list(range(101, 166))
    with pytest.raises(QuantGolfError, match="0 tokens are to be held out, expected at least one window of 65"):
        split_calibration(corpus([900]), 100, 0, length=64)
