"""The reference model: the family of Parameter Golf's baseline, small enough to read in one sitting.

Grouped-query attention with rotary positions, RMSNorm without weights, QK norm with a learned gain per
head, a ReLU² MLP, learned residual scales per channel, and one embedding that is both the lookup and the
head, its logits softcapped. Options add what later entries of the contest have: layers that run several
times, weights in banks, a head of its own, gates. quantgolf ships one trained checkpoint of the plain form,
so that every command and test has a real language model to work on; the compressor itself knows nothing of
this module.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.errors import QuantGolfError

MOST_LAYERS = 1000  # run in one forward pass; a card or a file may ask for as many as it likes
SHAPE_FIELDS = 8  # of a config, always stored; the options follow them
GATE_CHANNELS = 12  # of a layer's input that its attention gates look at, as in the contest
# Role of a layer's matrix: where a block keeps it, and the bank that holds it, in which half of its layers.
ROLES = {
    "q": ("attn.q", "qo_bank", 0),
    "k": ("attn.k", "kv_bank", 0),
    "v": ("attn.v", "kv_bank", 1),
    "o": ("attn.o", "qo_bank", 1),
    "up": ("up", "up_bank", 0),
    "down": ("down", "down_bank", 0),
}


@dataclass(frozen=True)
class GolfConfig:
    """Shape of a reference model; `described` is what a card and a file store of it.

    Attributes:
        loop_first, loop_last, loop_times: layers `loop_first` to `loop_last` run `loop_times` times in a row (depth
            recurrence); once is a plain stack.
        banks: the layers' matrices are slices of four 3-D parameters.
        tied: the embedding is the head.
        gates: attention gates, a mix with the embedding at each layer, skips from the first half to the second.
    """

    vocab_size: int = 1024
    dim: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp_mult: int = 3
    logit_softcap: float = 30.0
    rope_base: float = 10000.0
    loop_first: int = 0
    loop_last: int = 0
    loop_times: int = 1
    banks: bool = False
    tied: bool = True
    gates: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_value(field.name, getattr(self, field.name), field.type)
        if not self.loop_first <= self.loop_last < self.layers:
            raise QuantGolfError(
                f"golf config: loop_first is {self.loop_first} and loop_last {self.loop_last}, expected a range within "
                f"layers 0 to {self.layers - 1}"
            )
        runs = self.layers + (self.loop_last - self.loop_first + 1) * (self.loop_times - 1)
        if runs > MOST_LAYERS:
            loops = f" and loop_times {self.loop_times}" if self.loop_times > 1 else ""
            raise QuantGolfError(
                f"golf config: layers is {self.layers}{loops}, {runs} runs of a layer, expected at most {MOST_LAYERS}"
            )
        if self.heads % self.kv_heads:
            raise QuantGolfError(
                f"golf config: heads is {self.heads}, expected a multiple of kv_heads ({self.kv_heads})"
            )
        if self.dim % (2 * self.heads):
            raise QuantGolfError(
                f"golf config: dim is {self.dim}, expected a multiple of 2 * heads ({2 * self.heads}), "
                "because rotary positions turn pairs of channels"
            )
        if self.gates and self.dim < GATE_CHANNELS:
            raise QuantGolfError(
                f"golf config: dim is {self.dim}, expected at least {GATE_CHANNELS} with gates; make it wider or "
                "leave gates out"
            )

    def described(self) -> dict[str, Any]:
        """What a card or a file stores; options that are off are left out, because their names cost bytes."""
        return {
            field.name: getattr(self, field.name)
            for index, field in enumerate(fields(self))
            if index < SHAPE_FIELDS or getattr(self, field.name) != field.default
        }

    @property
    def order(self) -> tuple[int, ...]:
        """The layers in the order a forward pass runs them."""
        loop = range(self.loop_first, self.loop_last + 1)
        return (*range(self.loop_first), *(tuple(loop) * self.loop_times), *range(self.loop_last + 1, self.layers))

    @property
    def kv_dim(self) -> int:
        """Rows of the key and value matrices."""
        return self.kv_heads * (self.dim // self.heads)


def _check_value(name: str, value: Any, kind: object) -> None:
    """A config comes from JSON of anybody's making: nothing but a number of the right kind passes."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is bool:
        fits, expected = isinstance(value, bool), "true or false"
    elif kind is float:
        fits = (whole or isinstance(value, float)) and 0 < value <= sys.float_info.max
        expected = "a positive number"
    elif name in ("loop_first", "loop_last"):
        fits, expected = whole and value >= 0, "the number of a layer, from 0"
    else:
        fits, expected = whole and value > 0, "a positive whole number"
    if not fits:
        raise QuantGolfError(f"golf config: {name} is {value!r:.100}, expected {expected}")


def rotary(config: GolfConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim / 2] of the rotary angles (Su et al. 2021, half-split pairs)."""
    half = config.dim // config.heads // 2
    frequency = config.rope_base ** -(torch.arange(half, device=device, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the channel pairs (i, i + head_dim / 2) of x [..., length, head_dim] by the rotary angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Projections(NamedTuple):
    """The six matrices of a layer, each as a function of its input, so that a layer need not store them."""

    q: Callable[[Tensor], Tensor]
    k: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    o: Callable[[Tensor], Tensor]
    up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class Attention(nn.Module):
    def __init__(self, config: GolfConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.dim // config.heads
        if not config.banks:
            self.q = nn.Linear(config.dim, config.dim, bias=False)
            self.k = nn.Linear(config.dim, config.kv_dim, bias=False)
            self.v = nn.Linear(config.dim, config.kv_dim, bias=False)
            self.o = nn.Linear(config.dim, config.dim, bias=False)
        self.gain = nn.Parameter(torch.full((config.heads, 1, 1), 1.5))
        self.gate = nn.Parameter(torch.zeros(config.heads, GATE_CHANNELS)) if config.gates else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, at: Projections) -> Tensor:
        batch, length, dim = x.shape
        q = at.q(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = at.k(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = at.v(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q = rotate(F.rms_norm(q, (self.head_dim,)), cos, sin) * self.gain
        k = rotate(F.rms_norm(k, (self.head_dim,)), cos, sin)
        # Repeating keys by hand keeps the fast CPU attention path, which `enable_gqa` does not take.
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        y = y.transpose(1, 2)
        if self.gate is not None:
            gate = 2 * torch.sigmoid(F.linear(x[..., :GATE_CHANNELS], self.gate.to(x.dtype)))  # open at zero
            y = y * gate[..., None].to(y.dtype)
        return at.o(y.reshape(batch, length, dim))


class Block(nn.Module):
    def __init__(self, config: GolfConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        if not config.banks:
            self.up = nn.Linear(config.dim, config.mlp_mult * config.dim, bias=False)
            self.down = nn.Linear(config.mlp_mult * config.dim, config.dim, bias=False)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        self.mix = nn.Parameter(torch.tensor([[1.0], [0.0]]).repeat(1, config.dim)) if config.gates else None

    def forward(self, x: Tensor, start: Tensor, cos: Tensor, sin: Tensor, at: Projections) -> Tensor:
        dim = x.shape[-1]
        if self.mix is not None:
            x = self.mix[0] * x + self.mix[1] * start
        x = x + self.attn_scale * self.attn(F.rms_norm(x, (dim,)), cos, sin, at)
        out: Tensor = x + self.mlp_scale * at.down(F.relu(at.up(F.rms_norm(x, (dim,)))).square())
        return out


class Golf(nn.Module):
    """`forward(tokens)`: int64 [batch, length] → fp32 logits [batch, length, vocab_size].

    With banks, `qo_bank` [2L, D, D] holds all queries, then all outputs; `kv_bank` [2L, Dkv, D] keys, then
    values; `up_bank` [L, mD, D]; `down_bank` [L, D, mD].
    """

    def __init__(self, config: GolfConfig) -> None:
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.dim)
        if config.banks:
            layers, dim, hidden = config.layers, config.dim, config.mlp_mult * config.dim
            self.qo_bank = nn.Parameter(torch.randn(2 * layers, dim, dim) * dim**-0.5)
            self.kv_bank = nn.Parameter(torch.randn(2 * layers, config.kv_dim, dim) * dim**-0.5)
            self.up_bank = nn.Parameter(torch.randn(layers, hidden, dim) * dim**-0.5)
            self.down_bank = nn.Parameter(torch.randn(layers, dim, hidden) * hidden**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        skips = len(config.order) // 2 if config.gates else 0
        self.skip_weights = nn.Parameter(torch.ones(skips, config.dim)) if skips else None

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = rotary(self.config, tokens.shape[1], tokens.device)
        x = F.rms_norm(self.emb(tokens), (self.config.dim,))
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        start, order = x, self.config.order
        kept: list[Tensor] = []
        skips = [] if self.skip_weights is None else self.skip_weights.unbind()
        for run, layer in enumerate(order):
            decoder = run - (len(order) - len(skips))
            if decoder >= 0:
                x = x + skips[decoder] * kept.pop()
            x = self.blocks[layer](x, start, cos, sin, self.projections(layer))
            if run < len(skips):
                kept.append(x)
        x = F.rms_norm(x, (self.config.dim,))
        logits = (F.linear(x, self.emb.weight) if self.head is None else self.head(x)).float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap)

    def projections(self, layer: int) -> Projections:
        """The matrices of one layer: its own, or its slices of the banks."""
        if not self.config.banks:
            block = self.blocks[layer]
            return Projections(*(block.get_submodule(path) for path, _, _ in ROLES.values()))
        places = ((getattr(self, bank), layer + half * self.config.layers) for _, bank, half in ROLES.values())
        return Projections(*(partial(banked_linear, bank=bank, index=index) for bank, index in places))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights: fan-in normal, projections back into the residual stream at zero.

        Gates, mixes and skips stay as they are built, which passes everything on. The same generator gives a model
        with banks the same weights as one without.
        """
        tables = [self.emb.weight] if self.head is None else [self.emb.weight, self.head.weight]
        for table in tables:
            table.normal_(0.0, 0.02, generator=generator)
        for layer, block in enumerate(self.blocks):
            for role, (path, bank, half) in ROLES.items():
                if self.config.banks:
                    matrix = getattr(self, bank)[layer + half * self.config.layers]
                else:
                    matrix = block.get_parameter(f"{path}.weight")
                if role in ("o", "down"):
                    matrix.zero_()
                else:
                    matrix.normal_(0.0, matrix.shape[1] ** -0.5, generator=generator)


def banked_linear(x: Tensor, bank: Tensor, index: int) -> Tensor:
    """x times one matrix of a bank, as contest scripts write it: sliced, cast, applied."""
    return F.linear(x, bank[index].to(x.dtype))
