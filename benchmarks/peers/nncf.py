"""NNCF's `compress_weights` on an OpenVINO model with one MatMul a matrix, saved as OpenVINO's own files.

Data-free modes and scale estimation from the calibration text's second moments; read back through the runtime, with the
unit matrix.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.protocol import Variant, Weights, as_inputs, read_rest, write_rest

TITLE = "NNCF"
PACKAGES = ("nncf", "openvino")
VARIANTS = (
    Variant("INT8_ASYM", options={"mode": "INT8_ASYM"}),
    *(
        Variant(f"{mode}, groups of 64" + (", scale estimation" if estimated else "") +
                ("" if embedding else ", embedding f16"), embedding, calibrated=estimated,
                options={"mode": mode, "group_size": 64, "ratio": 1.0, "all_layers": True})
        for mode, estimated, embedding in (
            ("INT4_SYM", False, True), ("INT4_ASYM", False, True), ("INT4_ASYM", True, True), ("NF4", False, True),
            ("INT4_ASYM", False, False),
        )
    ),
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """The model through `compress_weights`."""
    nncf, ov = import_module("nncf"), import_module("openvino")
    options = dict(variant.options)
    options["mode"] = getattr(nncf.CompressWeightsMode, options["mode"])
    if variant.calibrated:
        given = {name: as_inputs(moments).numpy() for name, moments in weights.moments.items()}
        options |= {"dataset": nncf.Dataset([given]), "scale_estimation": True}
    model = nncf.compress_weights(model_of(weights.matrices), **options)
    ov.save_model(model, files / "model.xml", compress_to_fp16=True)
    write_rest(weights, files)


def model_of(matrices: dict[str, Tensor]) -> Any:
    """y = x Wᵀ for every matrix, inputs and outputs named after it."""
    ov, ops = import_module("openvino"), import_module("openvino.opset13")
    inputs, results = [], []
    for name, matrix in matrices.items():
        x = ops.parameter([-1, matrix.shape[1]], dtype=np.float32, name=name)
        x.output(0).set_names({name})
        y = ops.matmul(x, ops.constant(matrix.numpy(), name=f"{name}|w"), False, True, name=f"{name}|product")
        y.output(0).set_names({f"{name}|y"})
        inputs.append(x)
        results.append(ops.result(y))
    return ov.Model(results, inputs, "matrices")


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every matrix as its product with the unit matrix, in fp32."""
    ov = import_module("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    model = ov.Core().compile_model(files / "model.xml", "CPU", exact)
    sizes = {given.any_name: given.partial_shape[1].get_length() for given in model.inputs}
    found = {}
    products = model({name: np.eye(size, dtype=np.float32) for name, size in sizes.items()})
    for name in sizes:
        found[name] = torch.from_numpy(np.array(products[f"{name}|y"])).T
    return found | read_rest(files)
