"""No quantization at all: fp16 in safetensors, the size that everybody starts from."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from peers.protocol import Variant, Weights

TITLE = "safetensors"
PACKAGES = ("safetensors",)
VARIANTS = (Variant("fp16", False),)


def quantize(weights: Weights, variant: Variant, files: Path) -> None:
    """Everything in 16 bits."""
    matrices = {name: matrix.half() for name, matrix in weights.matrices.items()}
    save_file(matrices | weights.rest, files / "model.safetensors")


def load(files: Path, variant: Variant) -> dict[str, Tensor]:
    """Every tensor of the file."""
    return load_file(files / "model.safetensors")
