"""MLX: affine groups and micro-scaled floats, `mlx.core.quantize` on a CPU, in safetensors."""

from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peers.protocol import Variant, Weights

TITLE = "MLX"
PACKAGES = ("mlx",)
VARIANTS = (
    *(
        Variant(f"{bits} bits, groups of {group}" + ("" if embedding else ", embedding f16"), embedding,
                options={"bits": bits, "group_size": group})
        for bits, group in ((8, 64), (6, 64), (4, 64), (3, 64), (2, 32))
        for embedding in ((True, False) if (bits, group) == (4, 64) else (True,))
    ),
    Variant("mxfp4", options={"bits": 4, "group_size": 32, "mode": "mxfp4"}),
    Variant("nvfp4", options={"bits": 4, "group_size": 16, "mode": "nvfp4"}),
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Every matrix, with its scales and biases beside it as MLX models store them; embeddings are among what it
    quantizes by default."""
    mx = import_module("mlx.core")
    found = {name: mx.array(tensor.numpy()) for name, tensor in weights.rest.items()}
    for name, matrix in weights.matrices.items():
        parts = mx.quantize(mx.array(matrix.numpy()).astype(mx.float16), **variant.options)
        found |= {f"{name}|{part}": value for part, value in zip(("w", "scales", "biases"), parts, strict=False)}
    mx.save_safetensors(str(files / "model.safetensors"), found)


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every matrix by `mlx.core.dequantize`."""
    mx = import_module("mlx.core")
    stored = mx.load(str(files / "model.safetensors"))
    found = {}
    for key, value in stored.items():
        name, bar, part = key.partition("|")
        if part not in ("", "w"):
            continue
        if bar:
            value = mx.dequantize(value, stored[f"{name}|scales"], stored.get(f"{name}|biases"), **variant.options)
        found[name] = torch.from_numpy(np.array(value.astype(mx.float32)))
    return found
