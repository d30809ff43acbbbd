"""bitsandbytes: NF4 and FP4 in blocks, and the rows of LLM.int8(), by its own functions on a CPU."""

from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peers.protocol import Variant, Weights, by_layer

TITLE = "bitsandbytes"
PACKAGES = ("bitsandbytes",)
VARIANTS = (
    *(
        Variant(f"{kind}, blocks of {block}" + (", scales in 8 bits" if nested else "") +
                ("" if embedding else ", embedding f16"), embedding,
                options={"quant_type": kind, "blocksize": block, "compress_statistics": nested})
        for kind, block, nested in (("nf4", 64, True), ("fp4", 64, True))
        for embedding in ((True, False) if (kind, block, nested) == ("nf4", 64, True) else (True,))
    ),
    Variant("LLM.int8"),
)  # fmt: skip


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Every matrix, with its state as `Linear4bit` stores it."""
    functional = import_module("bitsandbytes.functional")
    found: dict[str, Tensor] = dict(weights.rest)
    for name, matrix in weights.matrices.items():
        if variant.name == "LLM.int8":
            codes, scales, _ = functional.int8_vectorwise_quant(matrix.half())
            found |= {f"{name}|codes": codes, f"{name}|scales": scales}
            continue
        codes, state = functional.quantize_4bit(matrix.half(), **variant.options)
        found[f"{name}|codes"] = codes
        found |= {f"{name}|{part}": value for part, value in state.as_dict(packed=True).items()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, files / "model.safetensors")


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every matrix by its own functions."""
    functional = import_module("bitsandbytes.functional")
    matrices, found = by_layer(load_file(files / "model.safetensors"))
    for name, parts in matrices.items():
        codes = parts.pop("codes")
        if variant.name == "LLM.int8":
            found[name] = functional.int8_vectorwise_dequant(codes, parts["scales"])
        else:
            state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
            found[name] = functional.dequantize_4bit(codes, state)
    return found
