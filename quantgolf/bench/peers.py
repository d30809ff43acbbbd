"""Other libraries' weight-only products, where they are installed: what ours are compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

Layer = Callable[[Tensor], Tensor]
SHAPES = 4096  # more than are measured in one run
GROUP = 128  # columns with a scale and a zero in common, at 4 bits


@dataclass(frozen=True)
class Peer:
    """A library's layer of weights.

    Attributes:
        name: library and form.
        bits: of a weight, scales not counted.
        multiple: rows and columns have to be multiples of it.
        make: the layer, from weights bf16 [N, K] on a GPU; it takes activations [M, K].
    """

    name: str
    bits: int
    multiple: int
    make: Callable[[Tensor], Layer]


def peers() -> tuple[list[Peer], list[str]]:
    """Those that are installed, and in words those that are not."""
    found: list[Peer] = []
    missing: list[str] = []
    for library, its in (("torchao", _torchao()), ("gemlite", _gemlite())):
        if find_spec(library) is None:
            missing.append(f"{library} is not installed, and not compared with: pip install {library}")
        else:
            found += its
    return found, missing


def _torchao() -> list[Peer]:
    # Its 8-bit form is made to be fused by the compiler, and is slow without. Weights are an argument, so that all
    # copies of a matrix run what was compiled once; every shape is compiled, where by default the ninth would not be.
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(_linear, dynamic=False, fullgraph=True)

    def fused(x: Tensor, weight: Tensor) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=SHAPES, accumulated_recompile_limit=SHAPES):
            return compiled(x, weight)

    def layer(config: Callable[[Any], Any], multiply: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Layer:
        quantization = import_module("torchao.quantization")
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
        made.weight = nn.Parameter(weight.clone(), requires_grad=False)
        quantization.quantize_(made, config(quantization))
        return lambda x: multiply(x, made.weight)

    def int4(quantization: Any) -> Any:  # tinygemm
        return quantization.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")

    def int8(quantization: Any) -> Any:
        return quantization.Int8WeightOnlyConfig()

    return [
        Peer("torchao int4 g128", 4, 1024, lambda weight: layer(int4, nn.functional.linear, weight)),
        Peer("torchao int8", 8, 16, lambda weight: layer(int8, fused, weight)),
    ]


def _gemlite() -> list[Peer]:
    def int4(weight: Tensor) -> Layer:
        helper = import_module("gemlite.helper")
        grouped = weight.float().view(-1, GROUP)
        low = grouped.amin(1, keepdim=True)
        scale = (grouped.amax(1, keepdim=True) - low).clamp_min(1e-8) / 15
        zero = (-low / scale).round()
        codes = (grouped / scale + zero).round().clamp(0, 15).to(torch.uint8).view_as(weight)
        scale, zero = scale.to(weight.dtype), zero.to(weight.dtype)
        layer: Layer = helper.A16W4_HQQ_INT(device=weight.device, dtype=weight.dtype).from_weights(codes, scale, zero)
        return layer

    def int8(weight: Tensor) -> Layer:
        helper = import_module("gemlite.helper")
        made = helper.A16W8_INT8(device=weight.device, dtype=weight.dtype)
        layer: Layer = made.from_weights(weight.clone())
        return layer

    return [Peer("gemlite int4 g128", 4, GROUP, int4), Peer("gemlite int8", 8, GROUP, int8)]


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.linear(x, weight)
