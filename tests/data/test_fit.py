"""A model that cannot read a text says so in one line, before anything else runs."""

import pytest
import torch
from torch import Tensor, nn

from quantgolf.data import Tokenizer, corpus_from_texts, refuse_misfit
from quantgolf.data.fit import PADDING
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig

TINY = GolfConfig(dim=8, layers=1, heads=1, kv_heads=1)


@pytest.mark.parametrize(("vocabulary", "fits"), [(1024, True), (1088, True), (1000, False), (2048, False)])
def test_vocabularies_have_to_fit_up_to_padding(tokenizer: Tokenizer, vocabulary: int, fits: bool) -> None:
    text = corpus_from_texts(["hello"], tokenizer)
    model = Golf(GolfConfig(vocab_size=vocabulary, dim=8, layers=1, heads=1, kv_heads=1))
    if fits:
        refuse_misfit(model, text, 512)
    else:
        with pytest.raises(QuantGolfError, match=f"1,024 pieces and the model {vocabulary:,} logits"):
            refuse_misfit(model, text, 512)


class Table(nn.Module):
    """Logits of any vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.anchor.expand(*tokens.shape, self.vocabulary)


@pytest.mark.parametrize(
    ("pieces", "logits", "fits"), [(50_295, 51_200, True), (151_665, 152_064, True), (32_000, 32_768, False)]
)
def test_large_vocabularies_are_padded_by_more(tokenizer: Tokenizer, pieces: int, logits: int, fits: bool) -> None:
    text = corpus_from_texts(["hello"], tokenizer)
    text = type(text)(**{**text.__dict__, "vocab_size": pieces})
    assert logits - pieces > PADDING
    if fits:
        refuse_misfit(Table(logits), text, 512)
    else:
        with pytest.raises(QuantGolfError, match="expected as many"):
            refuse_misfit(Table(logits), text, 512)


class Short(Golf):
    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > 3:
            raise IndexError("no position 3")
        return super().forward(tokens)


def test_modules_without_logits_are_refused(tokenizer: Tokenizer) -> None:
    text = corpus_from_texts(["hello"], tokenizer)

    class Pair(nn.Linear):
        def forward(self, tokens: Tensor) -> object:
            return (tokens, tokens)

    with pytest.raises(QuantGolfError, match="returned tuple"):
        refuse_misfit(Pair(2, 2), text, 512)
    longer = corpus_from_texts(["abc " * 9], tokenizer)
    with pytest.raises(QuantGolfError, match=r"failed on a window of 9 tokens .*; give a smaller --length"):
        refuse_misfit(Short(TINY), longer, 9)
    with pytest.raises(QuantGolfError, match="failed on one token"):
        refuse_misfit(nn.Linear(2, 2), text, 512)


def test_models_that_need_some_context_get_it(tokenizer: Tokenizer) -> None:
    class Wide(Table):
        """As a convolution without padding."""

        def forward(self, tokens: Tensor) -> Tensor:
            if tokens.shape[1] < 4:
                raise RuntimeError("kernel size 4")
            return super().forward(tokens)

    text = corpus_from_texts(["abc " * 9], tokenizer)
    refuse_misfit(Wide(1024), text, 4)
    with pytest.raises(QuantGolfError, match="1,024 pieces and the model 7 logits"):
        refuse_misfit(Wide(7), text, 4)
    with pytest.raises(QuantGolfError, match=r"failed on one token \(RuntimeError: kernel size 4\)"):
        refuse_misfit(Wide(1024), text, 3)


def test_isolated_documents_ask_for_no_longer_windows_than_they_have(tokenizer: Tokenizer) -> None:
    text = corpus_from_texts(["a", "b", "a", "b"], tokenizer)
    assert text.lengths.max() == 2
    refuse_misfit(Short(TINY), text, 512, "isolated")
    with pytest.raises(QuantGolfError, match="a window of 7 tokens"):
        refuse_misfit(Short(TINY), text, 512)
    uneven = corpus_from_texts(["a", "abc " * 9], tokenizer)
    with pytest.raises(QuantGolfError, match=f"a window of {uneven.lengths[1] - 1} tokens"):
        refuse_misfit(Short(TINY), uneven, 512, "isolated")


class LossAlone(Table):
    """A loss made without cross-entropy: its logits cannot be found."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        if tokens.shape[1] > 5:
            raise ValueError("too long")
        return -super().forward(tokens).log_softmax(-1).gather(-1, targets[..., None]).mean()


def test_a_loss_alone_does_where_it_is_asked_for(tokenizer: Tokenizer) -> None:
    text = corpus_from_texts(["abc " * 9], tokenizer)
    refuse_misfit(LossAlone(1024), text, 4, losses=True)
    with pytest.raises(QuantGolfError, match=r"failed on a window of 6 tokens \(ValueError: too long\)"):
        refuse_misfit(LossAlone(1024), text, 6, losses=True)
    with pytest.raises(QuantGolfError, match="a loss that it computes with"):
        refuse_misfit(LossAlone(1024), text, 4)
    with pytest.raises(QuantGolfError, match="1,024 pieces and the model 7 logits"):
        refuse_misfit(Table(7), text, 4, losses=True)


def test_nothing_is_learned_or_changed_by_trying(tokenizer: Tokenizer) -> None:
    class Normed(Table):
        def __init__(self) -> None:
            super().__init__(1024)
            self.norm = nn.BatchNorm1d(1)

        def forward(self, tokens: Tensor) -> Tensor:
            self.norm(torch.ones(2, 1))
            return super().forward(tokens)

    normed = Normed().train()
    normed.norm.eval()
    refuse_misfit(normed, corpus_from_texts(["abc"], tokenizer), 4)
    assert normed.training and not normed.norm.training and int(normed.norm.num_batches_tracked) == 0
    normed.norm.train()
    refuse_misfit(normed, corpus_from_texts(["abc"], tokenizer), 4)
    assert normed.norm.training and int(normed.norm.num_batches_tracked) == 0
