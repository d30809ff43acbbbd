"""compressed-tensors: the packed integers that llm-compressor and vLLM store, with the library's scales of extremes:
rounding to nearest, as llm-compressor's `QuantizationModifier` does it."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peers.protocol import Variant, Weights, by_layer

TITLE = "compressed-tensors"
PACKAGES = ("compressed-tensors",)
VARIANTS = tuple(
    Variant(
        f"{'symmetric' if symmetric else 'asymmetric'} {bits} bits, groups of {group}"
        + ("" if embedding else ", embedding f16"),
        embedding, options={"num_bits": bits, "group_size": group, "symmetric": symmetric},
    )
    for bits, group, symmetric, embedding in (
        (4, 64, False, True), (3, 64, False, True), (8, 128, True, True), (4, 64, False, False), (2, 32, False, True),
    )
)  # fmt: skip


def tools(variant: Variant) -> tuple[Any, Any]:
    """The library's compressor and the variant as its scheme."""
    quantization = import_module("compressed_tensors.quantization")
    arguments = quantization.QuantizationArgs(**variant.options, type="int", strategy="group")
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    packed = import_module("compressed_tensors.compressors.pack_quantized.base").PackedQuantizationCompressor
    return packed, scheme


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Every matrix, one state after the other."""
    packed, scheme = tools(variant)
    scales_of = import_module("compressed_tensors.quantization.utils").calculate_qparams
    found: dict[str, Tensor] = dict(weights.rest)
    for name, matrix in weights.matrices.items():
        groups = matrix.half().reshape(len(matrix), -1, variant.options["group_size"])
        scale, zero = scales_of(groups.amin(2), groups.amax(2), scheme.weights)
        state = {"weight": matrix.half(), "weight_scale": scale.half(), "weight_zero_point": zero.to(torch.int8)}
        found |= {f"{name}|{part}": value.contiguous() for part, value in packed.compress(state, scheme).items()}
    save_file(found, files / "model.safetensors")


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every matrix by the compressor's own `decompress`."""
    packed, scheme = tools(variant)
    states, found = by_layer(load_file(files / "model.safetensors"))
    return found | {name: packed.decompress(state, scheme)["weight"] for name, state in states.items()}
