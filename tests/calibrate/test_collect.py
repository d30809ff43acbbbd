"""Statistics against slow oracles that never look at the capture."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.calibrate import collect
from quantgolf.calibrate.collect import sampled_loss
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig


class Tied(nn.Module):
    """Lookup, one hidden layer used `passes` times, and the embedding again as the head."""

    def __init__(self, passes: int = 1, unused: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6, bias=False)
        self.passes = passes
        if unused:
            self.spare = nn.Linear(6, 6)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(index))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        for _ in range(self.passes):
            x = x + torch.tanh(self.hidden(x))
        return F.linear(x, self.emb.weight)


def token_batches(count: int = 3, vocab: int = 11) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    streams = [torch.randint(vocab, (2, 6), generator=generator) for _ in range(count)]
    return [(stream[:, :-1], stream[:, 1:]) for stream in streams]


def oracle(model: Tied, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The sums of a one-pass `Tied` by writing its forward pass out and asking autograd for every output."""
    sums: dict[str, Tensor] = {}

    def add(key: str, value: Tensor) -> None:
        sums[key] = sums.get(key, torch.zeros(())) + value.double()

    for index, (tokens, _) in enumerate(batches):
        generator = torch.Generator().manual_seed(index)
        looked_up = model.emb.weight[tokens].detach().requires_grad_()
        hidden = F.linear(looked_up, model.hidden.weight)
        x = looked_up + torch.tanh(hidden)
        logits = F.linear(x, model.emb.weight)
        gradients = torch.autograd.grad(sampled_loss(logits, generator), [looked_up, hidden, logits])
        for position in tokens.flatten():
            add("count", F.one_hot(position, 11))
        for key, g in zip(("gamma", "hidden_g", "head_g"), gradients, strict=True):
            for vector in g.flatten(0, 1):
                add(key, torch.outer(vector, vector))
        for key, activations in (("hidden_h", looked_up), ("head_h", x)):
            for vector in activations.detach().flatten(0, 1):
                add(key, torch.outer(vector, vector))
    return sums


def test_every_use_matches_the_oracle() -> None:
    model, batches = Tied(), token_batches()
    stats, sums, tokens = collect(model, batches).stats, oracle(model, batches), 30
    (hidden,) = stats["hidden.weight"].uses
    torch.testing.assert_close(hidden.column.double(), sums["hidden_h"] / tokens, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(hidden.row.double(), sums["hidden_g"].diagonal() / tokens, atol=1e-6, rtol=1e-5)
    uses = {use.kind: use for use in stats["emb.weight"].uses}
    torch.testing.assert_close(uses["lookup"].row.double(), sums["count"] / tokens, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(uses["lookup"].column.double(), sums["gamma"] / tokens, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(uses["linear"].column.double(), sums["head_h"] / tokens, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(uses["linear"].row.double(), sums["head_g"].diagonal() / tokens, atol=1e-6, rtol=1e-5)
    assert stats["emb.weight"].tokens == tokens
    assert stats["hidden.weight"].loss(torch.zeros(6, 6)) == 0


def test_three_identical_passes_count_threefold() -> None:
    class Threefold(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding.from_pretrained(torch.eye(11, 6), freeze=False)
            self.hidden = nn.Linear(6, 11, bias=False)
            self.calls = 1

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.emb(tokens)
            logits = self.hidden(x)
            for _ in range(self.calls - 1):
                logits = logits + self.hidden(x) - self.hidden(x).detach()
            return logits

    model = Threefold()
    once = collect(model, token_batches()).stats["hidden.weight"].uses[0]
    model.calls = 2  # three calls: one feeds the loss, one adds to it, one is subtracted without a gradient
    twice = collect(model, token_batches()).stats["hidden.weight"].uses[0]
    torch.testing.assert_close(twice.column, 3 * once.column)
    # G is the mean over visits, and the detached visit has none.
    torch.testing.assert_close(twice.row, once.row * 2 / 3)
    assert twice.visits == 3 * once.visits


def test_split_batches_equal_whole_up_to_the_sampled_labels() -> None:
    model, batches = Tied(), token_batches()
    split = collect(model, batches).stats["hidden.weight"].uses[0]
    inputs, targets = zip(*batches, strict=True)
    whole = collect(model, [(torch.cat(inputs), torch.cat(targets))]).stats["hidden.weight"].uses[0]
    torch.testing.assert_close(split.column, whole.column)
    assert split.visits == whole.visits


def test_model_leaves_as_it_came_even_frozen() -> None:
    model = Tied().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reference = collect(model, token_batches()).stats
    model.requires_grad_(False)
    frozen = collect(model, token_batches()).stats
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for name, stats in reference.items():
        for use, other in zip(stats.uses, frozen[name].uses, strict=True):
            torch.testing.assert_close(use.row, other.row)
            torch.testing.assert_close(use.column, other.column)


def test_autocast_does_not_touch_the_statistics_dtype() -> None:
    model = Golf(GolfConfig(vocab_size=32, dim=32, layers=1))
    model.initialise(torch.Generator().manual_seed(0))
    batches = token_batches(vocab=32)
    with torch.autocast("cpu", torch.bfloat16):
        stats = collect(model, batches).stats
    for weight in stats.values():
        for use in weight.uses:
            assert use.row.dtype == use.column.dtype == torch.float32
            eigenvalues = torch.linalg.eigvalsh(use.column.double())
            assert eigenvalues.min() >= -1e-6 * eigenvalues.max()


def test_golf_model_is_captured_whole() -> None:
    model = Golf(GolfConfig(vocab_size=32, dim=32, layers=2))
    stats = collect(model, token_batches(vocab=32)).stats
    assert set(stats) == {name for name, p in model.named_parameters() if p.ndim == 2}
    assert [use.kind for use in stats["emb.weight"].uses] == ["lookup", "linear"]


def test_unused_weight_is_absent() -> None:
    assert "spare.weight" not in collect(Tied(unused=True), token_batches()).stats


def test_no_text_and_infinite_activations_are_refused() -> None:
    with pytest.raises(QuantGolfError, match="0 tokens"):
        collect(Tied(), [])
    model = Tied()
    with torch.no_grad():
        model.hidden.weight.fill_(torch.nan)
    with pytest.raises(QuantGolfError, match="not all finite"):
        collect(model, token_batches())
