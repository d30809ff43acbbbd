"""AutoRound: its optimized rounding (`iters=0`) with importances from the calibration text, packed by its own layers.

Its learned rounding needs a model of an architecture that it knows, block by block, and is not run here.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peers.protocol import Variant, Weights, by_layer

TITLE = "AutoRound"
PACKAGES = ("auto-round",)
VARIANTS = tuple(
    Variant(
        f"iters=0, {bits} bits, groups of {group}" + ("" if embedding else ", embedding f16"), embedding,
        calibrated=True, options={"bits": bits, "group_size": group},
    )
    for bits, group, embedding in ((4, 64, True), (3, 64, True), (8, 128, True), (4, 64, False), (2, 32, True))
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Each matrix as a linear layer."""
    rounded = import_module("auto_round.data_type.int").quant_tensor_opt_rtn_sym
    found: dict[str, Tensor] = dict(weights.rest)
    for name, matrix in weights.matrices.items():
        moments = weights.moments.get(name)
        importance = None if moments is None else moments.diagonal().clone()
        solved, scales, zero = rounded(matrix.clone(), imatrix=importance, **variant.options)
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight = nn.Parameter(solved, requires_grad=False)
        packed = packed_layer(variant, *matrix.shape)
        packed.pack(layer, scales.reshape(len(matrix), -1), zero, None, device="cpu")
        found |= {f"{name}|{key}": value.contiguous() for key, value in packed.state_dict().items()}
    save_file(found, files / "model.safetensors")


def packed_layer(variant: Variant, rows: int, columns: int) -> Any:
    """An empty layer of the library's, for torch."""
    made = import_module("auto_round_extension.torch.qlinear_torch").QuantLinear
    return made(**variant.options, infeatures=columns, outfeatures=rows, bias=False)


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Each layer's product with the unit matrix."""
    layers, found = by_layer(load_file(files / "model.safetensors"))
    for name, state in layers.items():
        columns = len(state["qweight"]) * 32 // variant.options["bits"]
        layer = packed_layer(variant, state["scales"].shape[1], columns)
        layer.load_state_dict(state)
        layer.post_init()
        found[name] = layer(torch.eye(columns, dtype=torch.float32)).T
    return found
