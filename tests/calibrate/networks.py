"""Whole models that are no transformer of linear layers: convolutions, routed experts, what capture cannot follow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class ConvNet(nn.Module):
    """A causal language model of convolutions: dilated in one dimension, strided there and back, one of an image."""

    def __init__(self, vocab: int = 13, dim: int = 8) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.causal = nn.ModuleList(nn.Conv1d(dim, dim, 3, dilation=2**i) for i in range(3))
        self.strided = nn.Conv1d(dim, 2 * dim, 4, stride=2, padding=1)
        self.picture = nn.Conv2d(1, 3, (3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2))
        self.pointwise = nn.Conv1d(3 * dim, dim, 1)
        self.head = nn.Linear(dim, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens).mT
        for conv in self.causal:
            x = x + torch.relu(conv(F.pad(x, (2 * conv.dilation[0], 0))))
        y = torch.tanh(self.strided(x)).repeat_interleave(2, dim=-1)
        y = torch.tanh(self.picture(y[:, None]))  # [B, 3, dim, L]
        return self.head((x + self.pointwise(y.flatten(1, 2))).mT)


class Expert(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class SwitchMoE(nn.Module):
    """Each token goes to one expert (Fedus et al. 2022); the last expert gets none, and is called all the same."""

    def __init__(self, vocab: int = 13, dim: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(Expert(dim) for _ in range(experts))
        self.head = nn.Linear(dim, vocab, bias=False)

    def route(self, x: Tensor) -> Tensor:
        """Probabilities [T, experts], the last one's zero."""
        scores = self.router(x)
        never = torch.arange(scores.shape[-1]) == scores.shape[-1] - 1
        return scores.masked_fill(never, -torch.inf).softmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens).flatten(0, 1)
        weight, choice = self.route(x).max(-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mine = (choice == index).nonzero()[:, 0]
            y = y.index_add(0, mine, weight[mine, None] * expert(x[mine]))
        return self.head((x + y).unflatten(0, tokens.shape))


class Gathered(nn.Module):
    """Experts whose matrices are gathered for each token, then multiplied one by one."""

    def __init__(self, vocab: int = 13, dim: int = 8) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(vocab, dim), nn.Linear(dim, vocab)
        self.w = nn.Parameter(torch.empty(3, dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens)
        return self.head(torch.einsum("bld,bldf->blf", x, self.w[tokens % 3]))


class Unfollowed(nn.Module):
    """A recurrent layer written in C, a weight that is computed, ones that only scale, one of a row, one never used."""

    def __init__(self, vocab: int = 13, dim: int = 8) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.normed = weight_norm(nn.Linear(dim, dim, bias=False))
        self.scaled = nn.Parameter(torch.empty(dim, dim))
        self.factors = nn.Parameter(torch.empty(2, dim))
        self.gate = nn.Linear(dim, 1, bias=False)
        self.spare = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.normed(self.lstm(self.emb(tokens))[0]) * self.factors[0] + self.factors[1]
        return self.head(F.linear(x, 0.5 * self.scaled) * torch.sigmoid(self.gate(x)))


class Unmixed(torch.autograd.Function):
    """A linear map with a backward of its own, as 8-bit training code writes it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, 1).T @ x.flatten(0, 1)


class LossOnly(nn.Module):
    """A loss of its own making, out of `nll_loss`: there are no logits to be found."""

    def __init__(self, vocab: int = 13, dim: int = 8) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(vocab, dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(torch.tanh(self.emb(tokens)))
        return F.nll_loss(F.log_softmax(logits.flatten(0, 1), -1), targets.flatten())


class Stateful(nn.Module):
    """Everything a forward pass may leave behind: counted calls, running means, dropped-out units."""

    def __init__(self, vocab: int = 13, dim: int = 8) -> None:
        super().__init__()
        self.emb, self.inner, self.head = nn.Embedding(vocab, dim), nn.Linear(dim, dim), nn.Linear(dim, vocab)
        self.norm, self.drop = nn.BatchNorm1d(dim), nn.Dropout(0.5)
        self.register_buffer("counted", torch.tensor(3))
        self.register_buffer("replaced", torch.tensor(3))

    def forward(self, tokens: Tensor) -> Tensor:
        self.counted += 1
        self.replaced = self.replaced + 1
        x = self.drop(self.inner(self.emb(tokens)))
        return self.head(self.norm(x.flatten(0, 1)).unflatten(0, tokens.shape))


def drawn(model: nn.Module, seed: int = 5) -> Any:
    """The model with weights that all matter, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model
