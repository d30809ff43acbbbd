"""Intel Neural Compressor: linear layers, weight-only, rounded to nearest with a searched range, or HQQ."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peers.protocol import Variant, Weights, read_rest, write_rest

TITLE = "Neural Compressor"
PACKAGES = ("neural_compressor_pt",)
VARIANTS = tuple(
    Variant(
        f"{kind} {bits} bits, groups of 64" + ("" if embedding else ", embedding f16"), embedding,
        options={"config": kind, "options": options},
    )
    for kind, bits, embedding, options in (
        ("RTN", 8, True, {"bits": 8, "group_size": 64}),
        ("RTN", 4, True, {"bits": 4, "group_size": 64, "use_sym": False, "use_mse_search": True}),
        ("RTN", 4, False, {"bits": 4, "group_size": 64, "use_sym": False, "use_mse_search": True}),
        ("RTN", 3, True, {"bits": 3, "group_size": 64, "use_sym": False, "use_mse_search": True}),
        ("HQQ", 4, True, {"bits": 4, "group_size": 64}),
    )
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Each matrix as a linear layer, all through `prepare` and `convert`."""
    tool = import_module("neural_compressor.torch.quantization")
    model = layers_of({name: tuple(matrix.shape) for name, matrix in weights.matrices.items()})
    for name, matrix in weights.matrices.items():
        model[name.replace(".", "/")].weight = nn.Parameter(matrix.clone(), requires_grad=False)
    config = getattr(tool, f"{variant.options['config']}Config")(**variant.options["options"])
    made = tool.convert(tool.prepare(model, config))
    torch.save(made.state_dict(), files / "quantized_weight.pt")
    shapes = {name: list(matrix.shape) for name, matrix in weights.matrices.items()}
    (files / "shapes.json").write_text(json.dumps(shapes), "utf-8")
    write_rest(weights, files)


def layers_of(shapes: dict[str, Any]) -> nn.ModuleDict:
    """Linear layers without weights of their own."""
    return nn.ModuleDict({n.replace(".", "/"): nn.Linear(s[1], s[0], bias=False) for n, s in shapes.items()})


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Each layer's own `recover`."""
    modules = import_module("neural_compressor.torch.algorithms.weight_only.modules")
    state = torch.load(files / "quantized_weight.pt", weights_only=True)
    found = read_rest(files)
    for name, (rows, columns) in json.loads((files / "shapes.json").read_text("utf-8")).items():
        own = {
            k.rpartition("/")[2].partition(".")[2]: v
            for k, v in state.items()
            if k.startswith(name.replace(".", "/") + ".")
        }
        if "weight" in own:
            found[name] = own["weight"]
            continue
        options = variant.options["options"]
        layer = modules.INCWeightOnlyLinear(
            columns, rows, bits=options["bits"], group_size=options["group_size"], bias=False, device="cpu",
            zp="qzeros" in own,
        )  # fmt: skip
        layer.load_state_dict(own)
        found[name] = layer.recover()
    return found
