"""ONNX Runtime's `MatMulNBitsQuantizer` on a graph with one MatMul a matrix: round to nearest, k-quant search and HQQ.

The graph is run with the unit matrix to read weights back, by the runtime's own kernels.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.protocol import Variant, Weights, read_rest, write_rest

TITLE = "ONNX Runtime"
PACKAGES = ("onnxruntime", "onnx")
VARIANTS = (
    *(
        Variant(f"{kind}, {bits} bits, blocks of {block}" + ("" if embedding else ", embedding f16"), embedding,
                options={"kind": kind, "bits": bits, "block": block})
        for kind, bits, block, embedding in (
            ("nearest", 8, 64, True), ("nearest", 4, 32, True), ("nearest", 4, 64, True), ("k-quant", 4, 32, True),
            ("HQQ", 4, 64, True), ("HQQ", 4, 64, False), ("nearest", 2, 32, True),
        )
    ),
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """The graph through the quantizer."""
    onnx, tool = import_module("onnx"), import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    quantizer = tool.MatMulNBitsQuantizer(
        graph_of(onnx, weights.matrices), bits=variant.options["bits"], block_size=variant.options["block"],
        is_symmetric=False, algo_config=config_of(tool, variant),
    )  # fmt: skip
    quantizer.process()
    onnx.save(quantizer.model.model, files / "model.onnx")
    write_rest(weights, files)


def config_of(tool: Any, variant: Variant) -> Any:
    """The configuration of an algorithm; None for the tool's own."""
    bits, block = variant.options["bits"], variant.options["block"]
    if variant.options["kind"] == "HQQ":
        return tool.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
    return tool.KQuantWeightOnlyQuantConfig() if variant.options["kind"] == "k-quant" else None


def graph_of(onnx: Any, matrices: dict[str, Tensor]) -> Any:
    """y = x Wᵀ for every matrix, inputs and outputs named after it."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes, stored, ins, outs = [], [], [], []
    for name, matrix in matrices.items():
        rows, columns = matrix.shape
        stored.append(onnx.numpy_helper.from_array(np.ascontiguousarray(matrix.numpy().T), f"{name}|w"))
        nodes.append(helper.make_node("MatMul", [f"{name}|x", f"{name}|w"], [f"{name}|y"], name=name))
        ins.append(helper.make_tensor_value_info(f"{name}|x", kind, [None, columns]))
        outs.append(helper.make_tensor_value_info(f"{name}|y", kind, [None, rows]))
    graph = helper.make_graph(nodes, "matrices", ins, outs, stored)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    )


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every matrix as its product with the unit matrix."""
    session = import_module("onnxruntime").InferenceSession(
        str(files / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    sizes = {given.name: given.shape[1] for given in session.get_inputs()}
    names = [given.removesuffix("|x") for given in sizes]
    units = {given: np.eye(size, dtype=np.float32) for given, size in sizes.items()}
    products = session.run([f"{name}|y" for name in names], units)
    return {name: torch.from_numpy(y).T for name, y in zip(names, products, strict=True)} | read_rest(files)
