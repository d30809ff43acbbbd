"""HQQ: half-quadratic quantization without data, its layers' own state."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peers.protocol import Variant, Weights, by_layer

TITLE = "HQQ"
PACKAGES = ("hqq",)
VARIANTS = tuple(
    Variant(
        f"{bits} bits, groups of {group}" + ("" if embedding else ", embedding f16"), embedding,
        options={"nbits": bits, "group_size": group},
    )
    for bits, group in ((8, 64), (4, 64), (3, 64), (2, 16))
    for embedding in ((True, False) if bits == 4 else (True,))
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Each matrix as an `HQQLinear`."""
    quantization = import_module("hqq.core.quantize")
    config = quantization.BaseQuantizeConfig(**variant.options, axis=1)
    state: dict[str, Any] = {}
    for name, matrix in weights.matrices.items():
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight = nn.Parameter(matrix, requires_grad=False)
        made = quantization.HQQLinear(layer, config, compute_dtype=torch.float16, device="cpu")
        state |= {f"{name}|{key}": value for key, value in made.state_dict().items()}
    torch.save(state | dict(weights.rest), files / "model.pt")


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Each layer's own `dequantize`."""
    quantization = import_module("hqq.core.quantize")
    layers, found = by_layer(torch.load(files / "model.pt", weights_only=True))
    for name, state in layers.items():
        layer = quantization.HQQLinear(None, None, compute_dtype=torch.float16, device="cpu")
        layer.load_state_dict(state)
        found[name] = layer.dequantize()
    return found
