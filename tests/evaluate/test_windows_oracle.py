"""Sliding windows against an oracle that scores token by token, each with the context written out."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import evaluate, evaluate_against, evaluate_together

VOCABULARY, BOS = 5, 0


class Counting(nn.Module):
    """Logits that depend on every token of the context and on its length, exactly: a wrong context shows."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(seed)))

    def forward(self, tokens: Tensor) -> Tensor:
        weight = torch.arange(1, tokens.shape[1] + 1)
        mixed: Tensor = self.table[((tokens + 1) * weight).cumsum(1) % 7]
        return mixed


def corpus(documents: list[list[int]], bos: bool) -> Corpus:
    streams = [[BOS, *document] if bos else document for document in documents]
    return Corpus(
        tokens=torch.tensor([token for stream in streams for token in stream]),
        document=torch.repeat_interleave(torch.arange(len(streams)), torch.tensor([len(s) for s in streams])),
        bytes=np.array([len(document) for document in documents]),
        bos=BOS if bos else None,
        vocab_size=VOCABULARY,
        unknown=0,
        uncounted=0,
        counted="utf-8 text",
    )


def contexts(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    """(first token of the context, target) for every target of a text of `count` tokens: the first window that reaches
    a target scores it."""
    found = []
    for target in range(1, count):
        start = 0
        while start + length < target:
            start += stride
        found.append((start, target))
    return found


def oracle(model: nn.Module, reference: nn.Module, text: Corpus, length: int, stride: int, isolated: bool) -> Any:
    tokens, owner = text.tokens.tolist(), text.document.tolist()
    documents = len(text.bytes)
    nats, kl, seen, agree = np.zeros(documents), np.zeros(documents), np.zeros(documents, int), np.zeros(documents, int)
    parts = [(0, len(tokens))]
    if isolated:
        ends = np.cumsum(np.bincount(owner)).tolist()
        parts = list(zip([0, *ends], ends, strict=False))
    for first, end in parts:
        if text.bos is None:
            nats[owner[first]] += math.log(VOCABULARY)
            seen[owner[first]] += 1
            agree[owner[first]] += 1
        for start, target in contexts(end - first, length, stride):
            inputs = torch.tensor([tokens[first + start : first + target]])
            with torch.no_grad():
                log_p, log_q = (m(inputs)[0, -1].log_softmax(0) for m in (model, reference))
            goal = tokens[first + target]
            book = owner[first + target]
            if text.bos is not None and goal == BOS and not isolated:
                book = max(0, book - 1)
            nats[book] -= float(log_p[goal])
            kl[book] += float((log_q.double().exp() * (log_q.double() - log_p.double())).sum())
            seen[book] += 1
            agree[book] += int(log_p.argmax() == log_q.argmax())
    return nats, kl, seen, agree


documents = st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(documents, st.booleans(), st.booleans(), st.integers(1, 8), st.integers(1, 30), st.data())
def test_every_token_is_scored_once_with_its_context(
    texts: list[list[int]], bos: bool, isolated: bool, length: int, at_once: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length))
    text = corpus(texts, bos)
    model, reference = Counting(0), Counting(1)
    if max(text.lengths) < 2 and (isolated or len(text.tokens) < 2):
        return
    result, base = evaluate_against(
        model, reference, text, length=length, stride=stride, context="isolated" if isolated else "dense",
        batch_tokens=at_once,
    )  # fmt: skip
    nats, kl, seen, agree = oracle(model, reference, text, length, stride, isolated)
    np.testing.assert_allclose(result.nats, nats, rtol=1e-5, atol=1e-6)
    assert result.kl is not None and result.agree is not None
    np.testing.assert_allclose(result.kl, kl, rtol=1e-4, atol=1e-6)
    assert result.tokens.tolist() == seen.tolist()
    assert result.agree.tolist() == agree.tolist()
    assert result.top1 == pytest.approx(agree.sum() / seen.sum())
    assert base.top1 is None and base.worst is None


def test_stride_one_gives_every_token_the_whole_window() -> None:
    text = corpus([[1, 2, 3, 4, 1, 2, 4]], bos=False)

    class Seen(Counting):
        shapes: ClassVar[list[tuple[int, ...]]] = []

        def forward(self, tokens: Tensor) -> Tensor:
            self.shapes.append(tuple(tokens.shape))
            return super().forward(tokens)

    evaluate(Seen(0), text, length=3, stride=1, batch_tokens=6)
    assert Seen.shapes[-2:] == [(2, 3), (2, 3)]  # 4 windows, two at once
    for stride in (4, 0):
        with pytest.raises(QuantGolfError, match=f"stride is {stride}, expected 1 to the window's length 3"):
            evaluate(Seen(0), text, length=3, stride=stride)


def test_batches_do_not_change_what_is_measured() -> None:
    text = corpus([[1, 2, 3], [4, 4, 1, 2], [3]], bos=True)
    whole = evaluate(Counting(0), text, length=4, stride=2)
    for at_once in (1, 5, 1000):
        assert evaluate(Counting(0), text, length=4, stride=2, batch_tokens=at_once).nats.tolist() == pytest.approx(
            whole.nats.tolist(), rel=1e-12
        )
    with pytest.raises(QuantGolfError, match="batch_tokens is 0, expected at least 1"):
        evaluate(Counting(0), text, batch_tokens=0)


def test_several_models_in_one_pass_are_as_measured_alone() -> None:
    text = corpus([[1, 2, 3, 1], [4, 4, 1, 2], [3, 2]], bos=True)
    (one, two), base = evaluate_together([Counting(1), Counting(2)], Counting(0), text, length=4)
    for seed, result in ((1, one), (2, two)):
        alone, reference = evaluate_against(Counting(seed), Counting(0), text, length=4)
        assert (result.nats == alone.nats).all() and (base.nats == reference.nats).all()
        assert result.kl is not None and alone.kl is not None and (result.kl == alone.kl).all()
    same, _ = evaluate_against(Counting(0), Counting(0), text, length=4)
    assert same.top1 == 1 and same.worst == 0


def test_the_worst_document_has_bytes() -> None:
    text = corpus([[1, 2, 3, 1], [4, 4, 1, 2], [3, 2]], bos=True)
    text.bytes[1] = 0
    result, _ = evaluate_against(Counting(0), Counting(1), text, length=4)
    assert result.kl is not None
    share = [result.kl[i] / math.log(2) / text.bytes[i] for i in (0, 2)]
    assert result.worst == pytest.approx(max(share))
    assert result.worst_document == (0, 2)[int(np.argmax(share))]
    text.bytes[:] = 0
    with pytest.raises(QuantGolfError, match="13 tokens and 0 bytes"):
        evaluate(Counting(0), text)


def test_bf16_runs_products_in_bf16_and_sums_in_fp64() -> None:
    class Product(nn.Module):
        dtypes: ClassVar[set[torch.dtype]] = set()

        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

        def forward(self, tokens: Tensor) -> Tensor:
            found: Tensor = self.head(self.table(tokens))
            self.dtypes.add(found.dtype)
            return found

    torch.manual_seed(0)
    model, text = Product(), corpus([[1, 2, 3, 1] * 5], bos=True)
    full = evaluate(model, text)
    assert Product.dtypes == {torch.float32}
    half = evaluate(model, text, dtype=torch.bfloat16)
    assert torch.bfloat16 in Product.dtypes and next(model.parameters()).dtype == torch.float32
    assert half.nats.dtype == np.float64 and half.bpb != full.bpb and half.bpb == pytest.approx(full.bpb, rel=1e-2)
    with pytest.raises(QuantGolfError, match=r"dtype is torch.float16, expected torch.float32 or torch.bfloat16"):
        evaluate(model, text, dtype=torch.float16)
