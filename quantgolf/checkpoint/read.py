"""Stored tensors, from safetensors or from `torch.save` without its pickle, and back to safetensors.

Files are memory-mapped: opening one reads its list of tensors, and the numbers come from disk when they are touched.
So a checkpoint costs no memory of its own until then, and a file must not be rewritten in place while it is in use
(`write_state` never does that: it writes beside and renames).
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantgolf.atomic import written
from quantgolf.errors import QuantGolfError

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
RESERVED = "__metadata__"  # of the header of a safetensors file
EXPECTED = (
    "expected a .safetensors, .pt, .pth or .bin file, an index of shards (.index.json), a folder with one of these, "
    "or a .gguf file"
)


@dataclass(frozen=True)
class Stored:
    """Tensors by name, in the file's order where it keeps one, and what was done to get at them."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_file(path: Path) -> Stored:
    """Tensors of one `.safetensors`, `.pt`, `.pth` or `.bin` file.

    `{"model": state, "step": 3}` is understood where exactly one entry is a mapping of names to tensors; a note then
    says what was left out.

    Raises:
        QuantGolfError: the file is missing, of another kind, damaged, or does not say which tensors are meant.
    """
    if not path.is_file():
        raise QuantGolfError(f"checkpoint {path}: no such file, {EXPECTED}")
    if path.suffix == ".safetensors":
        try:
            return Stored(load_file(path))
        except (SafetensorError, OSError) as error:
            raise QuantGolfError(
                f"checkpoint {path}: not a readable safetensors file ({reason(error)}); save or copy it again"
            ) from error
    if path.suffix not in TORCH_SUFFIXES:
        raise QuantGolfError(
            f"checkpoint {path}: suffix {path.suffix or 'missing'!r}, {EXPECTED}; "
            "save it with safetensors.torch.save_file"
        )
    try:  # files of torch before 1.6 are no zip archives, and those cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise QuantGolfError(
            f"checkpoint {path}: cannot be read with weights_only=True, and nothing else is tried because a pickle "
            "may run code; save `model.state_dict()` with safetensors.torch.save_file"
        ) from error
    return _unwrapped(path, state)


def _unwrapped(path: Path, state: Any) -> Stored:
    if _holds_tensors(state):
        return Stored(_dense(path, state))
    if not isinstance(state, Mapping):
        raise QuantGolfError(
            f"checkpoint {path}: holds {type(state).__name__}, expected a mapping of names to tensors; "
            "save `model.state_dict()`"
        )
    inner = [key for key, value in state.items() if _holds_tensors(value)]
    loose = any(isinstance(value, Tensor) and value.is_floating_point() for value in state.values())
    if len(inner) != 1 or loose:
        kinds = ", ".join(f"{key!r} ({type(value).__name__})" for key, value in list(state.items())[:12])
        raise QuantGolfError(
            f"checkpoint {path}: holds {kinds or 'nothing'}, expected tensors alone, or exactly one entry that is a "
            "mapping of names to tensors; save `model.state_dict()` alone, without optimizer or step"
        )
    others = ", ".join(repr(key) for key in state if key != inner[0])
    note = f"took the tensors under {inner[0]!r}" + (f" and left out {others}" if others else "")
    return Stored(_dense(path, state[inner[0]]), (note,))


def _holds_tensors(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _dense(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    odd = [f"{name} {fault}" for name, tensor in state.items() if (fault := _fault(tensor))]
    if odd:
        raise QuantGolfError(f"checkpoint {path}: {listed(odd)}; expected plain tensors")
    return {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in state.items()}


def _fault(tensor: Tensor) -> str:
    """Why a tensor is not plain, and what to do; empty where it is."""
    if tensor.is_nested:
        return "is nested: save its parts under names of their own (.unbind())"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "is sparse or quantized: save it with .to_dense() or .dequantize()"
    if tensor.is_meta:
        return "is on the meta device, without its numbers: save the model once they are loaded"
    size, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > held:  # a file of few bytes may ask for any number of them
        return f"of {size:,} bytes is expanded from {held:,}: save it with .contiguous()"
    return ""


def write_state(path: Path, tensors: Mapping[str, Tensor], overwrite: bool = False) -> None:
    """Writes a safetensors file beside its place and renames it, so that a name never holds half a file.

    safetensors knows no shared storage: a tensor that has several names is written under each of them.

    Raises:
        QuantGolfError: the file exists and `overwrite` is off, its folder cannot be written, or the disk is full; or a
            tensor has the one name that safetensors keeps for itself.
    """
    if RESERVED in tensors:
        raise QuantGolfError(f"a tensor is called {RESERVED!r}, expected another name, which safetensors takes")
    with written(path, overwrite) as beside:
        try:
            save_file(_apart(tensors), beside)
        except SafetensorError as error:
            raise QuantGolfError(
                f"output {path}: cannot be written ({reason(error)}), expected a folder to write to, with room"
            ) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no storage, which `save_file` refuses."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return apart


def reason(error: BaseException) -> str:
    """An exception's message on one line, at most 300 characters of it."""
    return shortened(" ".join(str(error).split()) or type(error).__name__)


def shortened(text: str) -> str:
    """A text of somebody else's, at most 300 characters of it."""
    return text if len(text) <= 300 else f"{text[:300]}…"


def listed(problems: Sequence[str]) -> str:
    """Up to twelve problems on one line, and how many more there are."""
    return "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
