"""Stored tensors, from safetensors or from `torch.save` without its pickle, and back to safetensors."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantgolf.errors import QuantGolfError


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.pt` or `.pth` file, by name, in the file's order where it keeps one.

    Raises:
        QuantGolfError: the file is missing, of another kind, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise QuantGolfError(f"checkpoint {path}: no such file, expected a .safetensors, .pt or .pth file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise QuantGolfError(
                f"checkpoint {path}: not a readable safetensors file ({error}); save or copy it again"
            ) from error
    if path.suffix not in {".pt", ".pth"}:
        raise QuantGolfError(
            f"checkpoint {path}: suffix {path.suffix or 'missing'!r}, expected .safetensors, .pt or .pth; "
            "save it with safetensors.torch.save_file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise QuantGolfError(
            f"checkpoint {path}: cannot be read with weights_only=True, and nothing else is tried because a pickle "
            "may run code; save `model.state_dict()` with safetensors.torch.save_file"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise QuantGolfError(
            f"checkpoint {path}: holds {type(state).__name__}, expected a mapping of names to tensors; "
            "save `model.state_dict()` alone, without optimizer or step"
        )
    return dict(state)


def write_state(path: Path, tensors: Mapping[str, Tensor], overwrite: bool = False) -> None:
    """Writes a safetensors file beside its place and renames it, so that a name never holds half a file.

    Raises:
        QuantGolfError: the file exists and `overwrite` is off, or its folder cannot be written.
    """
    if path.exists() and not overwrite:
        raise QuantGolfError(f"output {path}: exists already, expected a new name; choose another or pass --overwrite")
    beside = None
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        raise QuantGolfError(f"output {path}: cannot be written ({error}); choose a folder you may write to") from error
