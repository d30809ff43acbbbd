"""The reference model: the family of Parameter Golf's baseline, small enough to read in one sitting.

Grouped-query attention with rotary positions, RMSNorm without weights, QK norm with a learned gain per
head, a ReLU² MLP, learned residual scales per channel, and one embedding that is both the lookup and the
head, its logits softcapped. quantgolf ships one trained checkpoint of it, so that every command and test
has a real language model to work on; the compressor itself knows nothing of this module.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.errors import QuantGolfError

MOST_LAYERS = 1000  # a card or a file may ask for as many as it likes


@dataclass(frozen=True)
class GolfConfig:
    """Shape of a reference model; `asdict` of it is what a card and a blob header store."""

    vocab_size: int = 1024
    dim: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp_mult: int = 3
    logit_softcap: float = 30.0
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise QuantGolfError(f"golf config: {name} is {value}, expected a positive number")
        if self.layers > MOST_LAYERS:
            raise QuantGolfError(f"golf config: layers is {self.layers}, expected at most {MOST_LAYERS}")
        if self.heads % self.kv_heads:
            raise QuantGolfError(
                f"golf config: heads is {self.heads}, expected a multiple of kv_heads ({self.kv_heads})"
            )
        if self.dim % (2 * self.heads):
            raise QuantGolfError(
                f"golf config: dim is {self.dim}, expected a multiple of 2 * heads ({2 * self.heads}), "
                "because rotary positions turn pairs of channels"
            )


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


class Attention(nn.Module):
    def __init__(self, config: GolfConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.dim // config.heads
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.k = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.o = nn.Linear(config.dim, config.dim, bias=False)
        self.gain = nn.Parameter(torch.full((config.heads, 1, 1), 1.5))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q = self.q(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q = rotate(F.rms_norm(q, (self.head_dim,)), cos, sin) * self.gain
        k = rotate(F.rms_norm(k, (self.head_dim,)), cos, sin)
        # Repeating keys by hand keeps the fast CPU attention path, which `enable_gqa` does not take.
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        out: Tensor = self.o(y.transpose(1, 2).reshape(batch, length, dim))
        return out


class Block(nn.Module):
    def __init__(self, config: GolfConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.up = nn.Linear(config.dim, config.mlp_mult * config.dim, bias=False)
        self.down = nn.Linear(config.mlp_mult * config.dim, config.dim, bias=False)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        dim = x.shape[-1]
        x = x + self.attn_scale * self.attn(F.rms_norm(x, (dim,)), cos, sin)
        out: Tensor = x + self.mlp_scale * self.down(F.relu(self.up(F.rms_norm(x, (dim,)))).square())
        return out


class Golf(nn.Module):
    """`forward(tokens)`: int64 [batch, length] → fp32 logits [batch, length, vocab_size]."""

    def __init__(self, config: GolfConfig) -> None:
        super().__init__()
        self.config = config
        self.emb = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        cos, sin = rotary(self.config, tokens.shape[1], tokens.device)
        x = F.rms_norm(self.emb(tokens), (self.config.dim,))
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(F.rms_norm(x, (self.config.dim,)), self.emb.weight).float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights: fan-in normal, projections back into the residual stream at zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim != 2:
                continue
            if name.endswith(("attn.o.weight", "down.weight")):
                parameter.zero_()
            else:
                std = 0.02 if name == "emb.weight" else parameter.shape[1] ** -0.5
                parameter.normal_(0.0, std, generator=generator)
