"""A model's own text has the distribution the model gives it, and knows its documents."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantgolf.data import calibration_batches, sample_corpus
from quantgolf.data.sample import _write
from quantgolf.errors import QuantGolfError


class Chain(nn.Module):
    """The next token depends on the last one alone; in training mode it would refuse."""

    def __init__(self, chances: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(chances.log())
        self.lengths: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.lengths.append(tokens.shape[1])
        return self.logits[tokens]


def chain(seed: int = 0, tokens: int = 6) -> Chain:
    return Chain(torch.rand(tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_transitions_are_those_of_the_model(temperature: float) -> None:
    model = chain()
    text = sample_corpus(
        model, vocab_size=5, bos=None, tokens=40_000, length=40, temperature=temperature, batch=2000
    ).tokens.reshape(-1, 41)
    counts = torch.zeros(5, 5, dtype=torch.float64)
    counts.index_put_((text[:, :-1].flatten(), text[:, 1:].flatten()), torch.ones(40_000).double(), accumulate=True)
    chances = (model.logits.detach().double()[:5, :5] / temperature).softmax(-1)
    error = (counts / counts.sum(1, keepdim=True) - chances).abs()
    assert float((error / (chances * (1 - chances) / counts.sum(1, keepdim=True)).sqrt()).max()) < 4
    first = torch.bincount(text[:, 0], minlength=5) / 1000
    assert float((first - 0.2).abs().max()) < 4 * math.sqrt(0.16 / 1000)


def test_documents_begin_at_every_bos() -> None:
    model = chain(1).train()
    text = sample_corpus(model, vocab_size=6, bos=2, tokens=95, length=10, seed=3)
    assert len(text.tokens) == 10 * 11 and model.training
    rows = text.tokens.reshape(10, 11)
    assert (rows[:, 0] == 2).all()
    begins = torch.diff(text.document, prepend=torch.tensor([-1])) > 0
    assert torch.equal(begins, text.tokens == 2) and int(begins.sum()) > 10
    assert text.bytes.tolist() == text.lengths.tolist()
    assert (text.bos, text.vocab_size, text.unknown, text.uncounted) == (2, 6, 0, 0)
    assert text.counted == "none: self-generated"
    assert sum(i.numel() for i, _ in calibration_batches(text, 95, 10)) == 90
    assert calibration_batches(text, 95, 10, "isolated")


def test_the_batch_decides_nothing_and_the_seed_everything() -> None:
    settings = {"vocab_size": 6, "bos": 0, "tokens": 60, "length": 7}
    one, four = (sample_corpus(chain(), batch=batch, **settings).tokens for batch in (1, 4))
    assert torch.equal(one, four)
    assert not torch.equal(one, sample_corpus(chain(), seed=1, **settings).tokens)


def test_windows_are_no_longer_than_told_and_progress_reaches_the_end() -> None:
    model, seen = chain(), []
    sample_corpus(
        model, vocab_size=6, bos=0, tokens=25, length=10, batch=2, progress=lambda done, all_: seen.append((done, all_))
    )
    assert max(model.lengths) == 10 and len(model.lengths) == 20
    assert seen[-1] == (30, 30) and seen == sorted(seen)


def test_tokens_without_a_chance_are_never_drawn() -> None:
    model = Chain(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(5, 5))
    with torch.no_grad():
        model.logits.clamp_(min=-1e30)
    drawn = torch.tensor([[0.0, 0.5, np.nextafter(0.5, 0), np.nextafter(1.0, 0)]])
    with torch.no_grad():
        text = _write(model.eval(), torch.tensor([1]), drawn.double(), 5, 1.0, lambda each: None)
    assert text.tolist() == [[1, 1, 3, 1, 3]]


def test_models_that_give_a_loss_alone_write_too() -> None:
    class Loss(Chain):
        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
            logits = super().forward(tokens)
            return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    settings = {"vocab_size": 6, "bos": 0, "tokens": 20, "length": 7}
    expected = sample_corpus(chain(), **settings).tokens
    assert torch.equal(sample_corpus(Loss(chain().logits.detach().exp()), **settings).tokens, expected)


@pytest.mark.parametrize("keeps", [True, False])
def test_models_that_keep_keys_and_values_see_each_token_once(keeps: bool) -> None:
    class Keeping(Chain):
        """The next token depends on the sum of all before; what is kept of them is the sum."""

        def forward(  # type: ignore[override]
            self, input_ids: Tensor, past_key_values: Tensor | None = None, use_cache: bool = False
        ) -> object:
            sums = input_ids.cumsum(1) + (0 if past_key_values is None else past_key_values)
            logits = super().forward(sums % 6)
            self.lengths[-1] = input_ids.shape[1]
            return SimpleNamespace(logits=logits, past_key_values=sums[:, -1:] if keeps and use_cache else None)

    class Summing(Chain):
        def forward(self, tokens: Tensor) -> Tensor:
            return super().forward(tokens.cumsum(1) % 6)

    settings = {"vocab_size": 6, "bos": 1, "tokens": 30, "length": 7}
    chances = chain().logits.detach().exp()
    model = Keeping(chances)
    assert torch.equal(sample_corpus(model, **settings).tokens, sample_corpus(Summing(chances), **settings).tokens)
    assert model.lengths == ([1] * 7 if keeps else [1, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"tokens": 0}, "tokens is 0"),
        ({"length": 0}, "length is 0"),
        ({"bos": 6}, "bos is 6"),
        ({"vocab_size": 7}, "the tokenizer has 7 pieces and the model 6 logits"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    settings = {"vocab_size": 6, "bos": 0, "tokens": 20, "length": 7} | change
    with pytest.raises(QuantGolfError, match=message):
        sample_corpus(chain(), **settings)  # type: ignore[arg-type]


def test_logits_that_are_not_finite_are_refused() -> None:
    model = chain()
    with torch.no_grad():
        model.logits[0, 0] = torch.nan
    with pytest.raises(QuantGolfError, match="not all finite"):
        sample_corpus(model, vocab_size=6, bos=0, tokens=20, length=7)
