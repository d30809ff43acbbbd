"""optimum-quanto: `quantize` and `freeze` on linear layers, their state in safetensors."""

import json
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peers.protocol import Variant, Weights, read_rest, write_rest

TITLE = "optimum-quanto"
PACKAGES = ("optimum-quanto",)
VARIANTS = (
    *(Variant(kind, options={"weights": kind}) for kind in ("qint8", "qint4", "qint2", "qfloat8")),
    Variant("qint4, embedding f16", False, options={"weights": "qint4"}),
)


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Each matrix as a linear layer."""
    quanto = import_module("optimum.quanto")
    model = nn.ModuleDict()
    for name, matrix in weights.matrices.items():
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float16)
        layer.weight = nn.Parameter(matrix.half(), requires_grad=False)
        model[name.replace(".", "/")] = layer
    quanto.quantize(model, weights=getattr(quanto, variant.options["weights"]))
    quanto.freeze(model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, files / "model.safetensors")
    (files / "quantization_map.json").write_text(json.dumps(quanto.quantization_map(model)), "utf-8")
    (files / "shapes.json").write_text(json.dumps({k: list(v.shape) for k, v in weights.matrices.items()}), "utf-8")
    write_rest(weights, files)


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Each layer's weight, dequantized, after `requantize` of layers without weights."""
    quanto = import_module("optimum.quanto")
    model = nn.ModuleDict()
    for name, (rows, columns) in json.loads((files / "shapes.json").read_text("utf-8")).items():
        model[name.replace(".", "/")] = nn.Linear(columns, rows, bias=False, dtype=torch.float16)
    kinds = json.loads((files / "quantization_map.json").read_text("utf-8"))
    quanto.requantize(model, load_file(files / "model.safetensors"), kinds, device=torch.device("cpu"))
    found = {name.replace("/", "."): layer.weight for name, layer in model.items()}
    return {name: getattr(weight, "dequantize", lambda w=weight: w)() for name, weight in found.items()} | read_rest(
        files
    )
