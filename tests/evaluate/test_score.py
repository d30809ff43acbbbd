"""Scores against a loop that feeds one window at a time and books one token at a time."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.checkpoint import read_demo
from quantgolf.data import Context, Tokenizer, corpus_from_texts
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import evaluate, evaluate_against

TEXTS = ["def f(x):\n    return x\n", "é", "import this\n" * 9]

CONTEXTS: tuple[Context, ...] = ("dense", "isolated")


class Bigram(nn.Module):
    """Logits that depend on the position too, so that windows matter."""

    def __init__(self, seed: int, vocabulary: int = 1024) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)
        with torch.no_grad():
            self.table.weight.normal_(generator=torch.Generator().manual_seed(seed))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens) * (1 + torch.arange(tokens.shape[1])[:, None] % 3)
        return logits


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 5), (7, 1), (500, None)])
@pytest.mark.parametrize("bos", [True, False])
def test_every_token_is_booked_once_to_its_document(
    tokenizer: Tokenizer, length: int, stride: int | None, bos: bool
) -> None:
    text = corpus_from_texts(TEXTS, tokenizer, bos=bos)
    model, reference = Bigram(1), Bigram(2)
    result, base = evaluate_against(model, reference, text, length=length, stride=stride)
    tokens, step = text.tokens.tolist(), stride or length
    nats, kl = [0.0] * 3, [0.0] * 3
    if not bos:
        nats[0] += math.log(1024)
    owner = 0
    for target in range(1, len(tokens)):
        owner = int(text.document[target])
        if bos and tokens[target] == text.bos:
            owner -= 1
        window = max(0, math.ceil((target - length) / step))
        inputs = torch.tensor([tokens[window * step : target]])
        with torch.no_grad():
            log_p = model(inputs)[0, -1].double().log_softmax(0)
            log_q = reference(inputs)[0, -1].double().log_softmax(0)
        nats[owner] -= float(log_p[tokens[target]])
        kl[owner] += float((log_q.exp() * (log_q - log_p)).sum())
    np.testing.assert_allclose(result.nats, nats, rtol=1e-5)
    assert result.kl is not None and base.kl is None
    np.testing.assert_allclose(result.kl, kl, rtol=1e-4)
    assert result.bytes.tolist() == [len(t.encode()) for t in TEXTS]
    assert result.tokens.sum() == len(tokens) - bos
    assert result.bpb == pytest.approx(sum(nats) / math.log(2) / sum(len(t.encode()) for t in TEXTS), rel=1e-6)
    alone = evaluate(reference, text, length=length, stride=stride)
    np.testing.assert_allclose(alone.nats, base.nats, rtol=1e-6)


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 5), (7, 1), (500, None)])
@pytest.mark.parametrize("bos", [True, False])
def test_isolated_documents_are_read_each_by_itself(
    tokenizer: Tokenizer, length: int, stride: int | None, bos: bool
) -> None:
    text = corpus_from_texts([*TEXTS, "é", *TEXTS[::-1]], tokenizer, bos=bos)
    model, reference = Bigram(1), Bigram(2)
    result, base = evaluate_against(model, reference, text, length=length, stride=stride, context="isolated")
    step = stride or length
    nats, kl = np.zeros(7), np.zeros(7)
    for document in range(7):
        tokens = text.tokens[text.document == document].tolist()
        if not bos:
            nats[document] = math.log(1024)
        for target in range(1, len(tokens)):
            window = max(0, math.ceil((target - length) / step))
            inputs = torch.tensor([tokens[window * step : target]])
            with torch.no_grad():
                log_p = model(inputs)[0, -1].double().log_softmax(0)
                log_q = reference(inputs)[0, -1].double().log_softmax(0)
            nats[document] -= float(log_p[tokens[target]])
            kl[document] += float((log_q.exp() * (log_q - log_p)).sum())
    np.testing.assert_allclose(result.nats, nats, rtol=1e-5)
    assert result.kl is not None
    np.testing.assert_allclose(result.kl, kl, rtol=1e-4)
    assert result.tokens.tolist() == (text.lengths - bos).tolist()
    assert result.nats[0] == result.nats[6] and result.nats[1] == result.nats[3]
    alone = [evaluate(model, corpus_from_texts([t], tokenizer, bos=bos), length=length, stride=stride) for t in TEXTS]
    np.testing.assert_allclose(result.nats[:3], [float(one.nats[0]) for one in alone], rtol=1e-6)
    assert base.bytes.tolist() == text.bytes.tolist()


def test_isolated_scores_do_not_depend_on_the_order_of_documents(tokenizer: Tokenizer, demo: Any) -> None:
    texts = ["import os\n" * 3, "x = 1\n", "def f():\n    pass\n", "x = 1\n" * 40]
    one = evaluate(demo.source.module, corpus_from_texts(texts, tokenizer), length=32, context="isolated")
    two = evaluate(demo.source.module, corpus_from_texts(texts[::-1], tokenizer), length=32, context="isolated")
    np.testing.assert_allclose(one.nats, two.nats[::-1], rtol=1e-5)
    dense = evaluate(demo.source.module, corpus_from_texts(texts, tokenizer), length=32)
    assert dense.tokens.sum() == one.tokens.sum() + 3


def test_isolated_windows_are_cut_to_their_documents(tokenizer: Tokenizer) -> None:
    class Short(Bigram):
        def forward(self, tokens: Tensor) -> Tensor:
            assert tokens.shape[1] <= 3
            return super().forward(tokens)

    text = corpus_from_texts(["a b", "c", "d e"], tokenizer, bos=False)
    assert text.lengths.max() <= 4
    seen: list[tuple[int, int]] = []
    result = evaluate(
        Short(0), text, length=512, context="isolated", progress=lambda done, total: seen.append((done, total))
    )
    targets = int((text.lengths - 1).sum())
    assert seen[-1] == (targets, targets)
    assert result.tokens.tolist() == text.lengths.tolist()


def test_a_document_cut_at_its_front_is_scored_from_its_second_token(tokenizer: Tokenizer) -> None:
    """As `read_shards` returns it: a stream with a BOS that does not begin with one."""
    whole = corpus_from_texts(TEXTS, tokenizer)
    cut = replace(whole, tokens=whole.tokens[1:], document=whole.document[1:])
    for context in CONTEXTS:
        full, part = (evaluate(Bigram(1), text, context=context) for text in (whole, cut))
        assert part.tokens.sum() == full.tokens.sum() - 1 and (part.tokens[1:] == full.tokens[1:]).all()


@pytest.mark.parametrize("context", CONTEXTS)
def test_modules_that_give_a_loss_are_measured_by_their_logits(tokenizer: Tokenizer, context: Context) -> None:
    class Loss(Bigram):
        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
            return F.cross_entropy(super().forward(tokens).reshape(-1, 1024), targets.reshape(-1))

    text = corpus_from_texts(TEXTS, tokenizer)
    expected = evaluate(Bigram(1), text, length=9, context=context)
    assert evaluate(Loss(1), text, length=9, context=context).nats.tolist() == expected.nats.tolist()


def test_a_uniform_model_pays_its_vocabulary(tokenizer: Tokenizer) -> None:
    text = corpus_from_texts(TEXTS, tokenizer, bos=False)
    model = Bigram(0)
    nn.init.zeros_(model.table.weight)
    result = evaluate(model, text)
    assert result.bpb == pytest.approx(len(text.tokens) * 10 / text.bytes.sum(), rel=1e-6)
    same, _ = evaluate_against(model, model, text)
    assert same.kl_bpb == 0


def test_models_are_measured_without_dropout_and_left_as_they_came(tokenizer: Tokenizer) -> None:
    class Dropping(Bigram):
        def forward(self, tokens: Tensor) -> Tensor:
            return F.dropout(super().forward(tokens), 0.5, self.training)

    text, model = corpus_from_texts(TEXTS, tokenizer), Dropping(1).train()
    assert evaluate(model, text).bpb == evaluate(Bigram(1), text).bpb
    assert model.training


def test_progress_reaches_the_end(tokenizer: Tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    text = corpus_from_texts(TEXTS, tokenizer)
    evaluate(Bigram(0), text, length=9, stride=4, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(text.tokens) - 1, len(text.tokens) - 1)


def test_bad_models_are_refused(tokenizer: Tokenizer) -> None:
    text = corpus_from_texts(TEXTS, tokenizer)
    with pytest.raises(QuantGolfError, match="1,024 pieces and the model 900 logits"):
        evaluate(Bigram(0, 900), text)
    with pytest.raises(QuantGolfError, match="the model has 1030 logits and the reference 1024"):
        evaluate_against(Bigram(0, 1030), Bigram(0), text)
    broken = Bigram(0)
    nn.init.constant_(broken.table.weight, torch.nan)
    with pytest.raises(QuantGolfError, match="not all finite"):
        evaluate(broken, text)
    with pytest.raises(QuantGolfError, match="stride is 600"):
        evaluate(Bigram(0), text, stride=600)
    with pytest.raises(QuantGolfError, match="context is 'wide'"):
        evaluate(Bigram(0), text, context="wide")  # type: ignore[arg-type]
    with pytest.raises(QuantGolfError, match="expected at least 2 in one of them"):
        evaluate(Bigram(0), corpus_from_texts(["a", "b"], tokenizer, bos=False), context="isolated")


def test_demo_model_is_as_good_as_its_card(demo: Any) -> None:
    """The text of this machine is a part of the card's, so that the numbers agree roughly."""
    source, text = demo.source, demo.text
    result = evaluate(source.module, text)
    assert abs(result.bpb - read_demo().card["bpb"]["validation"]) < 0.25
    inputs, targets = text.tokens[None, :512], text.tokens[1:513]
    with torch.no_grad():
        first = F.cross_entropy(source.module(inputs)[0], targets, reduction="none").double().cumsum(0)
    end = int(text.document.bincount()[0]) - 1
    if end < 512:
        assert result.nats[0] == pytest.approx(float(first[end]), rel=1e-5)
