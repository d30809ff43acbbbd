"""Models as people write them, each beside a twin that does the same with plain linear layers.

The twin's statistics are those of `F.linear` and `F.embedding` alone, which `test_collect.py` checks against an
oracle; whatever way a weight is written, its statistics have to be those of its twin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, DIM, HIDDEN, LENGTH = 13, 8, 16, 6
Forward = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Twins:
    """A model, its twin, and which matrix is which: of several of the twin's names, the rows stand one below the
    other."""

    model: nn.Module
    twin: nn.Module
    same: dict[str, tuple[str, ...]]


class Written(nn.Module):
    """Parameters by name and shape, and a forward written out."""

    def __init__(self, forward: Forward, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.written = forward
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


class Linears(nn.Module):
    """`nn.Linear`s by name and [N, K], and a forward written out: what twins are made of."""

    def __init__(self, forward: Forward, **shapes: tuple[int, int]) -> None:
        super().__init__()
        self.written = forward
        for name, (n, k) in shapes.items():
            self.add_module(name, nn.Linear(k, n, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


class Sandwich(nn.Module):
    """Tokens → embedding → `middle` (to some multiple of DIM channels) → logits."""

    def __init__(self, middle: nn.Module, look: Forward = lambda model, tokens: model.emb(tokens)) -> None:
        super().__init__()
        self.emb, self.middle, self.look = nn.Embedding(VOCAB, DIM), middle, look
        self.head = nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.look(self, tokens)
        # The sum of the pieces, each weighted: none of the middle's outputs has the gradient of another.
        pieces = torch.tanh(self.middle(x)).unflatten(-1, (-1, DIM))
        return self.head(x + torch.einsum("blnd,n->bld", pieces, torch.arange(1.0, 1.0 + pieces.shape[-2])))


def draw(model: nn.Module) -> nn.Module:
    """Weights that all matter, the same at every call."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model


def pair(
    middle: nn.Module, plain: nn.Module, weights: Callable[[Any], dict[str, Tensor]], **same: str | tuple[str, ...]
) -> Twins:
    """Twins that differ in their middle; `weights(middle)` are the plain one's, `same` says which matrix is which."""
    model, twin = draw(Sandwich(middle)), Sandwich(plain)
    own = {"emb.weight": model.emb.weight, "head.weight": model.head.weight}
    twin.load_state_dict({**own, **{f"middle.{name}": tensor for name, tensor in weights(middle).items()}})
    names = {name: (name,) for name in own}
    for name, others in same.items():
        others = (others,) if isinstance(others, str) else others
        names[f"middle.{name.replace('__', '.')}"] = tuple(f"middle.{other}.weight" for other in others)
    return Twins(model, twin, names)


def upright(forward: Forward) -> Twins:
    """`forward` does with w [N, K] what a linear layer does."""
    plain = Linears(lambda m, x: m.w(x), w=(HIDDEN, DIM))
    return pair(Written(forward, w=(HIDDEN, DIM)), plain, lambda m: {"w.weight": m.w}, w="w")


def turned(forward: Forward) -> Twins:
    """`forward` does the same with w [K, N]."""
    plain = Linears(lambda m, x: m.w(x), w=(HIDDEN, DIM))
    return pair(Written(forward, w=(DIM, HIDDEN)), plain, lambda m: {"w.weight": m.w.T}, w="w")


def lookup(look: Forward, plain: Forward = lambda model, tokens: model.emb(tokens)) -> Twins:
    model, twin = draw(Sandwich(nn.Tanh(), look)), draw(Sandwich(nn.Tanh(), plain))
    return Twins(model, twin, {name: (name,) for name in ("emb.weight", "head.weight")})


def gated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(q) * k + v


def fused(forward: Forward, shape: tuple[int, ...] = (3 * DIM, DIM), **same: str | tuple[str, ...]) -> Twins:
    """`forward` makes q, k and v of one parameter."""
    plain = Linears(lambda m, x: gated(m.q(x), m.k(x), m.v(x)), q=(DIM, DIM), k=(DIM, DIM), v=(DIM, DIM))
    return pair(
        Written(forward, w=shape), plain,
        lambda m: {f"{name}.weight": part for name, part in zip("qkv", m.w.view(3, DIM, DIM), strict=True)}, **same,
    )  # fmt: skip


def experts(forward: Forward, shape: tuple[int, ...] = (3, DIM, HIDDEN), **same: str) -> Twins:
    """`forward` gives every token to three experts [E, K, N]; each answers for the tokens that are its own."""

    def plainly(m: Any, x: Tensor) -> Tensor:
        return chosen(x, torch.stack([m.e0(x), m.e1(x), m.e2(x)]).flatten(1, 2))

    plain = Linears(plainly, e0=(HIDDEN, DIM), e1=(HIDDEN, DIM), e2=(HIDDEN, DIM))
    same = same or {f"w__{i}": f"e{i}" for i in range(3)}
    return pair(
        Written(lambda m, x: chosen(x, forward(m, x.flatten(0, 1))), w=shape), plain,
        lambda m: {f"e{i}.weight": part.T for i, part in enumerate(m.w.view(3, DIM, HIDDEN))}, **same,
    )  # fmt: skip


def chosen(x: Tensor, answers: Tensor) -> Tensor:
    """Of answers [E, T, N], those of the expert that the token's first channels ask for."""
    mine = F.one_hot(x[..., :3].argmax(-1).flatten(), 3).T
    return (answers * mine[..., None]).sum(0).unflatten(0, x.shape[:2])


def convolution(
    forward: Forward, unfolded: Callable[[Tensor], Tensor], kernel: tuple[int, ...], fold: Forward, parts: int = 1
) -> Twins:
    """`forward(m, x)` convolves w [N, *kernel]; `unfolded(x)` [B, K of all parts, T] are the patches it sees."""

    def plainly(m: Any, x: Tensor) -> Tensor:
        patches = unfolded(x).transpose(1, 2).chunk(parts, dim=-1)
        return fold(x, torch.cat([m.get_submodule(f"p{i}")(patch) for i, patch in enumerate(patches)], -1).mT)

    n, k = HIDDEN // parts, torch.Size(kernel).numel()
    same = {"w": "p0"} if parts == 1 else {f"w__{i * n}-{i * n + n}": f"p{i}" for i in range(parts)}
    return pair(
        Written(lambda m, x: fold(x, forward(m, x)), w=(HIDDEN, *kernel)),
        Linears(plainly, **{f"p{i}": (n, k) for i in range(parts)}),
        lambda m: {f"p{i}.weight": part.flatten(1) for i, part in enumerate(m.w.chunk(parts))}, **same,
    )  # fmt: skip


def stretched(x: Tensor, y: Tensor) -> Tensor:
    """[B, N, T] back to [B, length of x, N], each step repeated as often as it takes."""
    return y.mT.repeat_interleave(x.shape[1] // y.shape[2], dim=1)


def patches(x: Tensor, kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> Tensor:
    """Unfolded [B, C · kernel, T] of x [B, L, C]."""
    return F.unfold(x.mT[..., None], (kernel, 1), stride=(stride, 1), dilation=(dilation, 1), padding=(padding, 0))


def image(x: Tensor) -> Tensor:
    return x.mT[:, None]


def rows_of(x: Tensor, y: Tensor) -> Tensor:
    """Outputs [B, N, …] at all places of an image → [B, L, N · DIM / 2]."""
    return y.reshape(len(y), y.shape[1], -1, x.shape[1]).flatten(1, 2).mT


def causal(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 4, 0))  # two steps of dilation two


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, DIM // 2)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
