"""The reference model one token at a time, keys and values kept, so that a whole step is one CUDA graph.

`Golf.forward` reads a text at once. Here every tensor keeps its place from step to step, and the position is a tensor
that each step counts up, so that a captured step can be replayed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, rotary, rotate


class DecodeStep(nn.Module):
    """`forward(tokens)`: int64 [B] → fp32 logits [B, V] of what follows, at the next position.

    Args:
        model: of the reference family without gates; its weights may be packed.
        batch, length: B, and positions that there is memory for; after the last the first is written over.
        device, dtype: of the keys and values.

    Raises:
        QuantGolfError: a model with gates.
    """

    def __init__(self, model: Golf, batch: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        if config.gates:
            raise QuantGolfError("the model has gates, expected one of the plain family to decode step by step")
        self.model, self.length = model, length
        self.head_dim = config.dim // config.heads
        kept = (len(config.order), batch, config.kv_heads, length, self.head_dim)
        self.keys = nn.Buffer(torch.zeros(kept, device=device, dtype=dtype))
        self.values = nn.Buffer(torch.zeros(kept, device=device, dtype=dtype))
        cos, sin = rotary(config, length, device)
        self.cos, self.sin = nn.Buffer(cos), nn.Buffer(sin)
        self.at = nn.Buffer(torch.zeros(1, dtype=torch.int64, device=device))
        self.places = nn.Buffer(torch.arange(length, device=device))

    def forward(self, tokens: Tensor) -> Tensor:
        config = self.model.config
        x = F.rms_norm(self.model.emb(tokens), (config.dim,))
        cos, sin = (table.index_select(0, self.at).to(x.dtype) for table in (self.cos, self.sin))
        seen = (self.places <= self.at)[None, None, None, :]
        for run, layer in enumerate(config.order):
            block: Any = self.model.blocks[layer]
            apply = self.model.projections(layer)
            normed = F.rms_norm(x, (config.dim,))
            q, k, v = (part(normed).view(len(x), -1, 1, self.head_dim) for part in (apply.q, apply.k, apply.v))
            q = rotate(F.rms_norm(q, (self.head_dim,)), cos, sin) * block.attn.gain
            k = rotate(F.rms_norm(k, (self.head_dim,)), cos, sin)
            self.keys[run].index_copy_(2, self.at, k.to(self.keys.dtype))
            self.values[run].index_copy_(2, self.at, v.to(self.values.dtype))
            y = F.scaled_dot_product_attention(
                q.to(self.keys.dtype), self.keys[run], self.values[run], attn_mask=seen, enable_gqa=True
            )
            x = x + block.attn_scale * apply.o(y.reshape(len(x), config.dim).to(x.dtype))
            x = x + block.mlp_scale * apply.down(F.relu(apply.up(F.rms_norm(x, (config.dim,)))).square())
        self.at.add_(1).remainder_(self.length)
        x = F.rms_norm(x, (config.dim,))
        logits = (F.linear(x, self.model.emb.weight) if self.model.head is None else self.model.head(x)).float()
        return config.logit_softcap * torch.tanh(logits / config.logit_softcap)

    def restart(self) -> None:
        """Back to the first position, with nothing kept."""
        for buffer in (self.at, self.keys, self.values):
            buffer.zero_()
