"""The table of constructs: every way of using a weight that capture has to follow, with its plain twin."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from calibrate_subjects import (
    DIM,
    HIDDEN,
    LENGTH,
    Forward,
    Linears,
    Twins,
    Written,
    attention,
    causal,
    convolution,
    draw,
    experts,
    fused,
    gated,
    image,
    lookup,
    pair,
    patches,
    rows_of,
    stretched,
    turned,
    upright,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quantgolf.models.banks import to_banks
from quantgolf.models.golf import Golf, GolfConfig


def multihead(others: Callable[[Tensor], Tensor], **same: str | tuple[str, ...]) -> Twins:
    """`nn.MultiheadAttention` over `others(x)`."""
    inner = nn.MultiheadAttention(DIM, 2, bias=False, batch_first=True)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = others(x)
        return m.attn(x, y, y, need_weights=False)[0]

    middle = Written(forward)
    middle.attn = inner
    names = dict.fromkeys("qkvo", (DIM, DIM))

    def plainly(m: Any, x: Tensor) -> Tensor:
        y = others(x)
        return m.o(attention(m.q(x), m.k(y), m.v(y)))

    def weights(m: Any) -> dict[str, Tensor]:
        parts = (*m.attn.in_proj_weight.chunk(3), m.attn.out_proj.weight)
        return {f"{name}.weight": part for name, part in zip("qkvo", parts, strict=True)}

    return pair(middle, Linears(plainly, **names), weights, attn__out_proj__weight="o", **same)


def two(forward: Forward, middle: nn.Module | None = None, **same: str) -> Twins:
    """`forward` adds what two matrices a and b make of x."""
    plain = Linears(lambda m, x: gated(m.a(x), m.b(x), x.repeat(1, 1, 2)), a=(HIDDEN, DIM), b=(HIDDEN, DIM))
    middle = middle or Written(forward, a=(HIDDEN, DIM), b=(HIDDEN, DIM))
    return pair(middle, plain, lambda m: {"a.weight": m.a, "b.weight": m.b}, **(same or {"a": "a", "b": "b"}))


class FlatBuffer(Written):
    """Two parameters that are views of one buffer, as sharded training leaves them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        flat = torch.empty(2 * HIDDEN * DIM)
        self.a = nn.Parameter(flat[: HIDDEN * DIM].view(HIDDEN, DIM))
        self.b = nn.Parameter(flat[HIDDEN * DIM :].view(HIDDEN, DIM))


def frozen() -> Twins:
    twins = upright(lambda m, x: F.linear(x, m.w))
    twins.model.requires_grad_(False)
    return twins


def compiled(backend: str) -> Twins:
    """The middle compiled; a capture that ran the compiled code would see nothing of it."""
    twins = upright(lambda m, x: F.linear(x, m.w))
    inner = torch.compile(twins.model.middle, backend=backend)
    twins.model.middle = inner
    return replace(twins, same={name.replace("middle.w", "middle._orig_mod.w"): o for name, o in twins.same.items()})


def beside(m: Any, x: Tensor) -> Tensor:
    """A learned prefix joined to the text's activations."""
    return torch.cat([m.prefix[:2].expand(len(x), -1, -1), x], 1)


def on_top(m: Any, x: Tensor) -> Tensor:
    """Activations added in place to a copy of learned positions."""
    h = m.prefix.expand(*x.shape).clone()
    return h.add_(x)


def with_prefix(join: Forward) -> Twins:
    """Activations in the same memory as a copy of a parameter, then multiplied by w as if they were none."""
    shapes = {"prefix": (LENGTH, DIM), "w": (HIDDEN, DIM)}
    model = Written(lambda m, x: (join(m, x) @ m.w.T)[:, -LENGTH:], **shapes)
    twin = Written(lambda m, x: F.linear(join(m, x), m.w)[:, -LENGTH:], **shapes)
    twins = pair(model, twin, lambda m: {"prefix": m.prefix, "w": m.w})
    return replace(twins, same={**twins.same, "middle.w": ("middle.w",)})


def in_place(m: Any, x: Tensor) -> Tensor:
    h = F.linear(x, m.w)
    h.mul_(0.5)
    h += 1
    return h.relu_()


def in_place_twin() -> Twins:
    twins = upright(in_place)
    twins.twin.middle.written = lambda m, x: torch.relu(m.w(x) * 0.5 + 1)
    return twins


CONFIG = GolfConfig(vocab_size=32, dim=16, layers=3, heads=2, kv_heads=1, loop_first=1, loop_last=2, loop_times=3)


def golf(**options: bool) -> Twins:
    """The reference model with its matrices in banks, against itself with a module for each."""
    config = replace(CONFIG, **options)
    twin, model = draw(Golf(config)), Golf(replace(config, banks=True))
    model.load_state_dict(to_banks(twin.state_dict(), config))
    layers = config.layers
    same = {name: name for name in twin.state_dict() if name in ("emb.weight", "head.weight") or "gate" in name}
    for i in range(layers):
        same |= {f"qo_bank.{i}": f"blocks.{i}.attn.q.weight", f"qo_bank.{layers + i}": f"blocks.{i}.attn.o.weight"}
        same |= {f"kv_bank.{i}": f"blocks.{i}.attn.k.weight", f"kv_bank.{layers + i}": f"blocks.{i}.attn.v.weight"}
        same |= {f"up_bank.{i}": f"blocks.{i}.up.weight", f"down_bank.{i}": f"blocks.{i}.down.weight"}
    return Twins(model, twin, {name: (other,) for name, other in same.items()})


def linear(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.w)


def gpt2(m: Any, x: Tensor) -> Tensor:
    """Conv1D of GPT-2: x @ W with W [in, out]."""
    return torch.addmm(torch.zeros(HIDDEN), x.reshape(-1, DIM), m.w).view(*x.shape[:-1], HIDDEN)


def mm(m: Any, x: Tensor) -> Tensor:
    return x.flatten(0, 1).mm(m.w.t().contiguous()).unflatten(0, x.shape[:2])


def attended_heads(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("bld,dhk->blhk", x, m.w.view(DIM, 2, HIDDEN // 2)).flatten(2)


def sliced_twice(m: Any, x: Tensor) -> Tensor:
    """Rows of one parameter, cast, cut and cut again."""
    low, high = m.w.to(torch.float64)[:DIM], m.w.double()[DIM:]
    q, rest = low, high.split((DIM, DIM))
    return gated(*(F.linear(x, part.float()) for part in (q, *rest)))


def unbound(m: Any, x: Tensor) -> Tensor:
    return gated(*(x @ part.t() for part in m.w))


def chunked(m: Any, x: Tensor) -> Tensor:
    return gated(*(F.linear(x, part) for part in m.w.chunk(3)))


def chunked_outputs(m: Any, x: Tensor) -> Tensor:
    return gated(*F.linear(x, m.w).chunk(3, dim=-1))


def joined(m: Any, x: Tensor) -> Tensor:
    return gated(*F.linear(x, torch.cat([m.a, m.b])).split(HIDDEN, -1), x.repeat(1, 1, 2))


def stacked(m: Any, x: Tensor) -> Tensor:
    a, b = torch.einsum("bld,ehd->eblh", x, torch.stack([m.a, m.b]))
    return gated(a, b, x.repeat(1, 1, 2))


def apart(m: Any, x: Tensor) -> Tensor:
    return gated(F.linear(x, m.a), F.linear(x, m.b), x.repeat(1, 1, 2))


def looked_up_in_a_cast(model: Any, tokens: Tensor) -> Tensor:
    return F.embedding(tokens, model.emb.weight.double()).float()


def index_selected(model: Any, tokens: Tensor) -> Tensor:
    return torch.index_select(model.emb.weight, 0, tokens.flatten()).view(*tokens.shape, DIM)


def doubled_in_place(model: Any, tokens: Tensor) -> Tensor:
    return model.emb(tokens).mul_(2.0)


THIRDS = {f"w__{8 * i}-{8 * i + 8}": name for i, name in enumerate("qkv")}
PAIRS: dict[str, Callable[[], Twins]] = {
    "golf with banks, recurrence and tied embedding": golf,
    "golf with banks, recurrence, gates and a head": partial(golf, gates=True, tied=False),
    "linear by keywords": partial(upright, lambda m, x: F.linear(weight=m.w, input=x)),
    "x @ w.T": partial(upright, lambda m, x: x @ m.w.T),
    "matmul with w.mT": partial(upright, lambda m, x: x.matmul(m.w.mT)),
    "w on the left": partial(upright, lambda m, x: (m.w @ x.mT).mT),
    "mm with a contiguous transpose": partial(upright, mm),
    "cast to double and back": partial(upright, lambda m, x: F.linear(x.double(), m.w.double()).float()),
    "detached clone": partial(upright, lambda m, x: F.linear(x, m.w.detach().clone())),
    "permuted view": partial(upright, lambda m, x: x @ m.w.reshape(2, -1, DIM).permute(2, 0, 1).flatten(1)),
    "einsum": partial(upright, lambda m, x: torch.einsum("bld,hd->blh", x, m.w)),
    "einsum with dots": partial(turned, lambda m, x: torch.einsum("...d,dh->...h", x, m.w)),
    "einsum into heads": partial(turned, attended_heads),
    "x @ w": partial(turned, lambda m, x: x @ m.w),
    "addmm (GPT-2's Conv1D)": partial(turned, gpt2),
    "bmm with an expanded w": partial(turned, lambda m, x: torch.bmm(x, m.w.expand(len(x), -1, -1))),
    "fused qkv, outputs chunked": partial(fused, chunked_outputs, w=("q", "k", "v")),
    "fused qkv, weights chunked": partial(fused, chunked, **THIRDS),
    "fused qkv, weights cast and sliced": partial(fused, sliced_twice, **THIRDS),
    "fused qkv, 3-D and unbound": partial(fused, unbound, (3, DIM, DIM), w__0="q", w__1="k", w__2="v"),
    "two joined by cat": partial(two, joined),
    "two joined by stack": partial(two, stacked),
    "two views of one buffer": lambda: two(apart, FlatBuffer(apart)),
    "experts by bmm": partial(experts, lambda m, x: torch.bmm(x.expand(3, -1, -1), m.w)),
    "experts by broadcast @": partial(experts, lambda m, x: x @ m.w),
    "experts by einsum": partial(experts, lambda m, x: torch.einsum("ecd,edf->ecf", x.expand(3, -1, -1), m.w)),
    "experts by baddbmm": partial(
        experts, lambda m, x: torch.baddbmm(torch.zeros(3, 1, HIDDEN), x.expand(3, -1, -1), m.w)
    ),
    "experts stored flat": partial(
        experts, lambda m, x: torch.bmm(x.expand(3, -1, -1), m.w.view(3, DIM, HIDDEN)), (3 * DIM, HIDDEN),
        **{f"w__{DIM * i}-{DIM * i + DIM}": f"e{i}" for i in range(3)},
    ),
    "conv1d, causal and dilated": partial(
        convolution, lambda m, x: F.conv1d(causal(x).mT, m.w, dilation=2),
        lambda x: patches(causal(x), 3, dilation=2), (DIM, 3), stretched,
    ),
    "conv1d, strided and padded": partial(
        convolution, lambda m, x: F.conv1d(x.mT, m.w, None, 2, 1),
        lambda x: patches(x, 3, stride=2, padding=1), (DIM, 3), stretched,
    ),
    "conv1d in groups": partial(
        convolution, lambda m, x: F.conv1d(causal(x)[:, 2:].mT, m.w, groups=2),
        lambda x: patches(causal(x)[:, 2:], 3), (DIM // 2, 3), stretched, 2,
    ),
    "conv2d, padded and dilated": partial(
        convolution, lambda m, x: F.conv2d(image(x), m.w, padding=(2, 1), dilation=(2, 1)),
        lambda x: F.unfold(image(x), 3, padding=(2, 1), dilation=(2, 1)), (1, 3, 3), rows_of,
    ),
    "conv2d of the same size": partial(
        convolution, lambda m, x: F.conv2d(image(x), m.w, padding="same", dilation=(1, 2)),
        lambda x: F.unfold(image(x), 3, padding=(1, 2), dilation=(1, 2)), (1, 3, 3), rows_of,
    ),
    "nn.MultiheadAttention": partial(multihead, lambda x: x, attn__in_proj_weight=("q", "k", "v")),
    "nn.MultiheadAttention across": partial(
        multihead, lambda x: x.flip(1),
        **{"attn__in_proj_weight__0-8": "q", "attn__in_proj_weight__8-24": ("k", "v")},
    ),
    "checkpointing, reentrant": partial(
        upright, lambda m, x: checkpoint(linear, m, x, use_reentrant=True)
    ),
    "checkpointing": partial(upright, lambda m, x: checkpoint(linear, m, x, use_reentrant=False)),
    "compiled": partial(compiled, "eager"),
    "frozen": frozen,
    "in place after a linear": in_place_twin,
    "index lookup": partial(lookup, lambda model, tokens: model.emb.weight[tokens]),
    "index_select lookup": partial(lookup, index_selected),
    "negative index lookup": partial(lookup, lambda model, tokens: model.emb.weight[tokens - 13]),
    "lookup of a cast table": partial(lookup, looked_up_in_a_cast),
    "in place on a lookup": partial(lookup, doubled_in_place, lambda model, tokens: model.emb(tokens) * 2.0),
    "activations beside a prefix": partial(with_prefix, beside),
    "activations on top of a copy": partial(with_prefix, on_top),
}  # fmt: skip
