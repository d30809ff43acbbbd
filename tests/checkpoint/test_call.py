"""Logits are found in whatever a module returns, or on the way to its loss."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.checkpoint.call import gives_logits, logits_of, loss_of, reading, wants_targets
from quantgolf.errors import QuantGolfError

TOKENS = torch.tensor([[3, 1, 4, 1], [5, 2, 6, 5]])
TARGETS = torch.tensor([[1, 4, 1, 5], [2, 6, 5, 3]])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7)
        with torch.no_grad():
            self.table.weight.normal_(generator=torch.Generator().manual_seed(0))

    def logits(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens)
        return logits


class Plain(Net):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(tokens)


class Wrapped(Net):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> object:
        assert attention_mask is None
        return SimpleNamespace(logits=self.logits(input_ids), loss=None)


class Mapped(Net):
    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"hidden": tokens, "logits": self.logits(tokens)}


class Pair(Net):
    def forward(self, tokens: Tensor) -> tuple[object, ...]:
        return None, self.logits(tokens), torch.zeros(1, 4, 7)


class NanoGPT(Net):
    """All logits only beside a loss, else those of the last token."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if targets is None:
            return self.logits(idx)[:, -1:], None
        logits = self.logits(idx)
        return logits, F.cross_entropy(logits.view(-1, 7), targets.view(-1), ignore_index=-1)


class Either(Net):
    """nanochat: logits without targets, a loss with them."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = self.logits(idx)
        if targets is None:
            return logits
        return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


class Contest(Net):
    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        logits = self.logits(input_ids).reshape(-1, 7)
        return F.cross_entropy(logits.float(), target_ids.reshape(-1), reduction="mean")


class ByModule(Net):
    """Classes in the second dimension, as nn.CrossEntropyLoss takes them, and the target by keyword."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = nn.CrossEntropyLoss()(target=targets, input=self.logits(tokens).transpose(1, 2))
        return loss


class InPieces(Net):
    """Cross-entropy over pieces of the batch, to save memory."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        rows = self.logits(tokens).reshape(-1, 7)
        losses = [
            F.cross_entropy(x, y, reduction="sum")
            for x, y in zip(rows.split(3), targets.flatten().split(3), strict=True)
        ]
        return torch.stack(losses).sum() / targets.numel()


EVERY = [Plain, Wrapped, Mapped, Pair, NanoGPT, Either, Contest, ByModule, InPieces]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("targets", [None, TARGETS])
def test_logits_are_found(kind: type[Net], targets: Tensor | None) -> None:
    model = kind()
    found = logits_of(model, TOKENS, targets)
    assert found.shape == (2, 4, 7) and torch.equal(found, model.logits(TOKENS))
    found.sum().backward()
    assert model.table.weight.grad is not None
    assert gives_logits(model, TOKENS)
    assert wants_targets(model) == (kind in (Contest, ByModule, InPieces))
    one = TOKENS[:1, :1]
    assert torch.equal(logits_of(model, one), model.logits(one))


@pytest.mark.parametrize("kind", [Plain, Contest, NanoGPT])
def test_compiled_modules_are_asked_alike(kind: type[Net]) -> None:
    model = kind()
    compiled: Any = torch.compile(model, backend="eager")
    assert wants_targets(compiled) == wants_targets(model)
    with torch.no_grad():
        assert torch.equal(logits_of(compiled, TOKENS), model.logits(TOKENS))
        with torch.compiler.set_stance("force_eager"):
            assert torch.equal(logits_of(compiled, TOKENS), model.logits(TOKENS))


def test_only_the_whole_text_counts() -> None:
    """Logits of an auxiliary head, or of a part of the tokens, are not taken for the model's."""

    class Shifted(Net):
        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(tokens)[:, :-1].reshape(-1, 7), tokens[:, 1:].reshape(-1))

    class TwoHeads(Contest):
        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
            return super().forward(tokens, targets) + super().forward(tokens, tokens)

    for kind in (Shifted, TwoHeads):
        assert not gives_logits(kind(), TOKENS)
        with pytest.raises(QuantGolfError, match=r"returned \[\] for tokens \[2, 4\], expected logits \[2, 4, V\]"):
            logits_of(kind(), TOKENS)


class Odd(Net):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, tokens: Tensor) -> object:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "NoneType"),
        (torch.zeros(2, 7), r"\[2, 7\]"),
        (torch.zeros(4, 2, 7), r"\[4, 2, 7\]"),
        (torch.zeros(()), r"\[\]"),
        ((), "tuple"),
        ((torch.zeros(2, 1, 7),), "tuple"),
        ({}, "dict"),
        (SimpleNamespace(logits=None), "SimpleNamespace"),
    ],
)
def test_other_answers_are_refused(answer: object, message: str) -> None:
    for ask in (logits_of, gives_logits):
        with pytest.raises(QuantGolfError, match=f"returned {message} for tokens"):
            ask(Odd(answer), TOKENS)


def test_the_loss_of_a_text_is_a_sum() -> None:
    model = Contest()
    expected = F.cross_entropy(model.logits(TOKENS).reshape(-1, 7), TARGETS.reshape(-1), reduction="sum")
    torch.testing.assert_close(loss_of(model, TOKENS, TARGETS), expected)

    class Each(Net):
        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(tokens).reshape(-1, 7), targets.reshape(-1), reduction="none")

    with pytest.raises(QuantGolfError, match=r"returned \[8\], expected its mean loss"):
        loss_of(Each(), TOKENS, TARGETS)
    assert torch.equal(logits_of(Each(), TOKENS), Each().logits(TOKENS))


def test_reading_leaves_every_part_in_its_mode() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    model[1].eval()
    with pytest.raises(KeyError), reading(model):
        assert not any(part.training for part in model.modules()) and not torch.is_grad_enabled()
        raise KeyError
    assert [part.training for part in model.modules()] == [True, True, False, False]
    assert torch.is_grad_enabled()
