"""A training script's model as Parameter Golf's users have it: no logits to be had, only a loss.

    quantgolf compress checkpoint.pt --model tests/calibrate/contest_script.py:build …

Written for these tests after the contest's constructs: weights kept in fp32 and cast where they are used, an
embedding that is also the head, U-net skips, a residual mix with the embedding, gains and scales as control tensors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Hyperparameters:
    vocab_size = 1024
    num_layers = 3
    model_dim = 32
    num_heads = 4
    num_kv_heads = 2
    mlp_mult = 2
    rope_base = 10000.0
    logit_softcap = 30.0
    qk_gain_init = 1.5


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),))


class CastedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.to(x.dtype) if self.bias is not None else None
        return F.linear(x, self.weight.to(x.dtype), bias)


class Rotary(nn.Module):
    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.register_buffer("inv_freq", base ** -(torch.arange(0, dim, 2).float() / dim), persistent=False)
        self._cached: tuple[Tensor, Tensor] | None = None

    def forward(self, seq_len: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self._cached is None or self._cached[0].shape[2] != seq_len:
            freqs = torch.outer(torch.arange(seq_len, device=self.inv_freq.device).float(), self.inv_freq)
            self._cached = (freqs.cos()[None, None], freqs.sin()[None, None])
        return self._cached[0].to(dtype), self._cached[1].to(dtype)


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x1 * (-sin) + x2 * cos), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, h: type[Hyperparameters]) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = h.num_heads, h.num_kv_heads
        self.head_dim = h.model_dim // h.num_heads
        kv_dim = h.num_kv_heads * self.head_dim
        self.c_q = CastedLinear(h.model_dim, h.model_dim, bias=False)
        self.c_k = CastedLinear(h.model_dim, kv_dim, bias=False)
        self.c_v = CastedLinear(h.model_dim, kv_dim, bias=False)
        self.proj = CastedLinear(h.model_dim, h.model_dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((h.num_heads,), h.qk_gain_init))
        self.rotary = Rotary(self.head_dim, h.rope_base)

    def forward(self, x: Tensor) -> Tensor:
        bsz, seqlen, dim = x.shape
        q = self.c_q(x).reshape(bsz, seqlen, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.c_k(x).reshape(bsz, seqlen, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.c_v(x).reshape(bsz, seqlen, self.num_kv_heads, self.head_dim).transpose(1, 2)
        cos, sin = self.rotary(seqlen, q.dtype)
        q = apply_rotary_emb(F.rms_norm(q, (self.head_dim,)), cos, sin)
        k = apply_rotary_emb(F.rms_norm(k, (self.head_dim,)), cos, sin)
        q = q * self.q_gain.to(q.dtype)[None, :, None, None]
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True, enable_gqa=True)
        return self.proj(y.transpose(1, 2).contiguous().reshape(bsz, seqlen, dim))


class MLP(nn.Module):
    def __init__(self, h: type[Hyperparameters]) -> None:
        super().__init__()
        self.fc = CastedLinear(h.model_dim, h.mlp_mult * h.model_dim, bias=False)
        self.proj = CastedLinear(h.mlp_mult * h.model_dim, h.model_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.relu(self.fc(x)).square())


class Block(nn.Module):
    def __init__(self, h: type[Hyperparameters]) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.attn, self.mlp = CausalSelfAttention(h), MLP(h)
        self.attn_scale = nn.Parameter(torch.ones(h.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(h.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(h.model_dim), torch.zeros(h.model_dim))))

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        x = mix[0][None, None, :] * x + mix[1][None, None, :] * x0
        x = x + self.attn_scale.to(x.dtype)[None, None, :] * self.attn(self.attn_norm(x))
        return x + self.mlp_scale.to(x.dtype)[None, None, :] * self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    def __init__(self, h: type[Hyperparameters], autocast: bool = False) -> None:
        super().__init__()
        self.logit_softcap, self.autocast = h.logit_softcap, autocast
        self.tok_emb = nn.Embedding(h.vocab_size, h.model_dim)
        self.num_encoder_layers = h.num_layers // 2
        self.num_decoder_layers = h.num_layers - self.num_encoder_layers
        num_skips = min(self.num_encoder_layers, self.num_decoder_layers)
        self.skip_weights = nn.Parameter(torch.ones(num_skips, h.model_dim))
        self.blocks = nn.ModuleList(Block(h) for _ in range(h.num_layers))
        self.final_norm = RMSNorm()

    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            x = F.rms_norm(self.tok_emb(input_ids), (self.tok_emb.embedding_dim,))
            x0, skips = x, []
            for i in range(self.num_encoder_layers):
                x = self.blocks[i](x, x0)
                skips.append(x)
            for i in range(self.num_decoder_layers):
                if skips:
                    x = x + self.skip_weights[i].to(x.dtype)[None, None, :] * skips.pop()
                x = self.blocks[self.num_encoder_layers + i](x, x0)
            x = self.final_norm(x).reshape(-1, x.size(-1))
            logits = F.linear(x, self.tok_emb.weight)
        logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return F.cross_entropy(logits.float(), target_ids.reshape(-1), reduction="mean")


def build(autocast: bool = False) -> GPT:
    """A model with weights that all matter, the same at every call."""
    model = GPT(Hyperparameters, autocast)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.2 if parameter.ndim == 2 else 0.05
            start = torch.zeros_like(parameter) if name.endswith("weight") else parameter
            parameter.copy_(start + scale * torch.randn(parameter.shape, generator=generator))
    return model


def build_autocast() -> GPT:
    """The same as contest scripts run it: the embedding in bf16, everything else cast as it is used."""
    model = build(autocast=True)
    model.tok_emb.bfloat16()
    return model
