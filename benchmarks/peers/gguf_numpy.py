"""The quantizers of the package `gguf`, in numpy, and its container."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers.protocol import Variant, Weights

TITLE = "gguf"
PACKAGES = ("gguf",)
VARIANTS = (
    *(Variant(name, options={"type": name}) for name in ("Q4_0", "Q4_1", "Q5_0", "Q8_0")),
    Variant("Q4_0, embedding f16", False, options={"type": "Q4_0"}),
)
ARCHITECTURE = "llama"


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Every matrix in the variant's type."""
    kind = import_module("gguf").GGMLQuantizationType[variant.options["type"]]
    numpy = import_module("gguf.quants")
    write(weights, {name: (numpy.quantize(matrix.numpy(), kind), kind) for name, matrix in weights.matrices.items()},
          files)  # fmt: skip


def write(weights: Weights, quantized: dict[str, Any], files: Path) -> None:
    """A GGUF file of quantized rows and types by name, and of what stays in 16 bits."""
    writer = import_module("gguf").GGUFWriter(files / "model.gguf", ARCHITECTURE)
    for name, (rows, kind) in quantized.items():
        writer.add_tensor(name, rows, raw_dtype=kind)
    for name, tensor in weights.rest.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every tensor of the file."""
    numpy = import_module("gguf.quants")
    found = {}
    for tensor in import_module("gguf").GGUFReader(files / "model.gguf").tensors:
        values = torch.from_numpy(numpy.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        found[tensor.name] = values.reshape(tuple(int(size) for size in tensor.shape[::-1]))
    return found
