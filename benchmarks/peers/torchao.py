"""torchao: weight-only integers, by `quantize_` on linear layers, saved as its tensors' own state: a byte a weight."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peers.protocol import Variant, Weights

TITLE = "torchao"
PACKAGES = ("torchao",)
PROTOTYPE = "torchao.prototype.quantization.int4"  # where 0.18 keeps the packing that a CPU computes with
VARIANTS = (
    Variant("int8"),
    *(
        Variant(f"int{bits}, groups of {group}" + ("" if embedding else ", embedding f16"), embedding,
                options={"bits": bits, "group": group})
        for bits, group in ((6, 64), (4, 64), (3, 64), (2, 32))
        for embedding in ((True, False) if (bits, group) == (4, 64) else (True,))
    ),
    *(
        Variant(f"int4 packed, {chosen}, groups of 64", options={"packed": chosen, "group": 64})
        for chosen in ("tinygemm", "hqq")
    ),
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Each matrix as a linear layer, all of them through `quantize_`."""
    model = nn.ModuleDict()
    for name, matrix in weights.matrices.items():
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight = nn.Parameter(matrix.bfloat16(), requires_grad=False)
        model[name.replace(".", "/")] = layer
    import_module("torchao.quantization").quantize_(model, config_of(variant))
    torch.save({"layers": model.state_dict(), "rest": dict(weights.rest)}, files / "model.pt")


def config_of(variant: Variant) -> Any:
    """The library's own configuration."""
    quantization = import_module("torchao.quantization")
    if "packed" in variant.options:
        return import_module(PROTOTYPE).PrototypeInt4WeightOnlyConfig(
            group_size=variant.options["group"], int4_choose_qparams_algorithm=variant.options["packed"],
            set_inductor_config=False,
        )  # fmt: skip
    if "bits" not in variant.options:
        return quantization.Int8WeightOnlyConfig()
    kind, group = getattr(torch, f"int{variant.options['bits']}"), quantization.PerGroup(variant.options["group"])
    return quantization.IntxWeightOnlyConfig(weight_dtype=kind, granularity=group)


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Each weight's own `dequantize`; a packed one, which has none, is multiplied with the unit matrix."""
    import_module(PROTOTYPE)  # allows its tensors' classes, as the package does its own
    stored = torch.load(files / "model.pt", weights_only=True)
    layers = {key.removesuffix(".weight").replace("/", "."): value for key, value in stored["layers"].items()}
    found: dict[str, Tensor] = {}
    for name, value in layers.items():
        if "packed" in variant.options:
            found[name] = nn.functional.linear(torch.eye(value.shape[1], dtype=torch.bfloat16), value).T
        else:
            found[name] = value.dequantize()
    rest: dict[str, Tensor] = stored["rest"]
    return found | rest
