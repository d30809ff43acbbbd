"""From a file's codes to a module whose weights are their dequantized values."""

from pathlib import Path

import torch
from torch import Tensor, nn

from quantgolf.blob import read_blob
from quantgolf.checkpoint import build_model, fill
from quantgolf.checkpoint.model import module_from_description
from quantgolf.encode import decode_model
from quantgolf.errors import QuantGolfError
from quantgolf.types import BlobHeader, CodedModel


def load(
    path: str | Path, model: str | Path | nn.Module | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """The module of a compressed file, in evaluation mode, its weights dequantized to fp32.

    Args:
        path: a file that `quantgolf compress` wrote.
        model: the module to fill, its card, or `path/to/script.py:factory`. Files of the reference family say
            themselves how to build it; a script is never run because a file asks for it.
        device: where the module goes.

    Raises:
        FormatError: the file is damaged or no quantgolf file.
        QuantGolfError: `model` is missing, or does not match the file.
    """
    header, coded = read_blob(Path(path))
    return module_of(header, coded, model, source=f"file {path}").to(device)


def module_of(
    header: BlobHeader, coded: CodedModel, model: str | Path | nn.Module | None = None, source: str = "file"
) -> nn.Module:
    """As `load`, from the parts of a file; `source` names it in messages."""
    tensors = restore(coded)
    if isinstance(model, nn.Module):
        module = model.eval()
    elif model is not None:
        module = build_model(model)
    elif header.model is not None:
        # A forged description could ask for any size: nothing is allocated before its shapes are those of the file.
        with torch.device("meta"):
            module = module_from_description(header.model)
        fill(module, tensors, source)
        module = module.to_empty(device="cpu")
    else:
        raise QuantGolfError(
            f"{source} does not say how its module is built, expected the module it was compressed from; "
            "give --model path/to/script.py:factory"
        )
    module = module.float()
    fill(module, tensors, source)
    return module


def restore(coded: CodedModel) -> dict[str, Tensor]:
    """All tensors of a file by name, tied ones under each of their names, in the checkpoint's shapes.

    Weights are fp32, as the codes define them; tensors that were kept have the checkpoint's dtype.
    """
    quantized, small = decode_model(coded)
    tensors: dict[str, Tensor] = {}
    for entry in coded.tensors:
        whole = quantized[entry.name].dequantize() if entry.name in quantized else small[entry.name]
        tensors.update(dict.fromkeys((entry.name, *entry.aliases), whole.reshape(entry.shape)))
    return tensors
