"""GPTQModel: its GPTQ on one layer at a time, packed by its own linear layers, in safetensors.

A layer is shown as many inputs as it has columns, whose second moments are those of the calibration text: GPTQ asks for
nothing else. The library's own loop over a model needs an architecture it knows.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peers.protocol import Variant, Weights, as_inputs, by_layer

TITLE = "GPTQModel"
PACKAGES = ("GPTQModel",)
VARIANTS = tuple(
    Variant(
        f"{bits} bits, groups of {group}" + ("" if embedding else ", embedding f16"), embedding, calibrated=True,
        options={"bits": bits, "group_size": group, "desc_act": False, "sym": True},
    )
    for bits, group, embedding in ((8, 128, True), (4, 64, True), (4, 64, False), (3, 64, True), (2, 32, True))
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Each matrix as a linear layer."""
    config = import_module("gptqmodel.quantization.config").QuantizeConfig(**variant.options)
    solver = import_module("gptqmodel.quantization.gptq").GPTQ
    found: dict[str, Tensor] = dict(weights.rest)
    for index, (name, matrix) in enumerate(weights.matrices.items()):
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        layer.weight = nn.Parameter(matrix.clone(), requires_grad=False)
        named = import_module("gptqmodel.looper.named_module").NamedModule(layer, name, name, index)
        task = solver(named, config)
        task.quantizer.configure(perchannel=True)
        given = as_inputs(weights.moments[name])[None]
        task.add_batch(given, layer(given))
        solved, scales, zeros, group_of = task.quantize()[:4]
        layer.weight = nn.Parameter(solved.float().reshape(matrix.shape), requires_grad=False)
        packed = packed_layer(variant, *matrix.shape)
        packed.pack_original(layer, scales=scales, zeros=zeros, g_idx=group_of)
        found |= {f"{name}|{key}": value.contiguous() for key, value in packed.state_dict().items()}
    save_file(found, files / "model.safetensors")


def packed_layer(variant: Variant, rows: int, columns: int) -> Any:
    """An empty layer of the library's, for torch."""
    made = import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    return made(**variant.options, in_features=columns, out_features=rows, bias=False, register_buffers=True)


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Each layer's own `dequantize_weight`."""
    layers, found = by_layer(load_file(files / "model.safetensors"))
    for name, state in layers.items():
        layer = packed_layer(variant, state["scales"].shape[1], len(state["g_idx"]))
        layer.load_state_dict(state)
        layer.optimize = lambda: None  # compiles for a minute, and changes no weight
        layer.post_init()
        found[name] = layer.dequantize_weight().T
    return found
