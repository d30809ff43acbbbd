"""A checkpoint and its module, checked against each other before anything expensive runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantgolf.checkpoint import huggingface
from quantgolf.checkpoint.fingerprint import fingerprint
from quantgolf.checkpoint.finite import refuse_non_finite
from quantgolf.checkpoint.match import Match, first_names, match, state_of
from quantgolf.checkpoint.model import build_model, code_of, describe_model, unwrap
from quantgolf.checkpoint.read import Stored
from quantgolf.checkpoint.shards import locate, read_stored
from quantgolf.errors import QuantGolfError

CONVERTED = "transformers gave the stored tensors their module's names and shapes, and left out what it does not use"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: its module with the weights in place, and the tensors as they were stored.

    Stored fp32 tensors and the module's parameters are the same memory, which may be a mapped file: neither is to
    be changed in place.

    Attributes:
        module: in evaluation mode, computing in fp32.
        tensors: the checkpoint's own tensors by name, each storage once, under the module's first name for it.
        aliases: the further names of a storage, by that first name (a tied head). The module decides what is tied:
            tensors that share storage in a file alone are kept as two.
        description: how to rebuild the module; None where the user has to bring it along.
        code: what computes with the weights (see `code_of`).
        notes: what was done to make the stored tensors fit (prefixes taken off, entries left out), a sentence each.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    aliases: dict[str, tuple[str, ...]]
    description: dict[str, Any] | None
    code: str = ""
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers stored, tied ones once."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """Of the tensors and of what computes with them (see `quantgolf.checkpoint.fingerprint`)."""
        return fingerprint(self.tensors, {"description": self.description, "code": self.code})


def open_checkpoint(path: str | Path, model: str | Path | nn.Module | None = None) -> Checkpoint:
    """Reads a checkpoint and puts it into its module.

    Weights that are stored in fp32 exist once: the module's parameters become the stored tensors, which a file is
    mapped to. Of those stored narrower, the stored tensors stay as they are and the module has them in fp32.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, the index of a sharded one, a folder that holds one of these
            (Hugging Face's among them), or a .gguf file.
        model: a card, `path/to/script.py:factory` (executed), `hf:PATH`, or a module, which takes the weights
            over; see `build_model`. None means `hf:PATH` where `path` is a Hugging Face folder or a .gguf file.

    Raises:
        QuantGolfError: unreadable, not matching the module (all mismatches in one message), or not finite.
    """
    path = Path(path)
    source = f"checkpoint {path}"
    found = locate(path)
    if model is None:
        model = _implied(path, found)
    place = huggingface.path_of(model)
    stored, module = _stored_and_module(path, found, model)
    fits = match(module, stored.tensors)
    if fits.problems and place is not None and huggingface.is_hugging_face(path):
        notes = (
            *stored.notes,
            CONVERTED,
        )
        stored = Stored(huggingface.convert(path, stored.tensors.values()), notes)
        fits = match(module, stored.tensors)
    fits.refuse_problems(source)
    if isinstance(model, nn.Module):  # is the caller's: left alone where anything is wrong
        refuse_non_finite(fits.tensors, source)
        _put(module, fits, share=True)
    else:  # in this order only one copy of the weights is ever resident
        _put(module, fits, share=True)
        refuse_non_finite(fits.tensors, source)
    return Checkpoint(
        module, fits.tensors, fits.aliases, describe_model(model), code_of(model), (*stored.notes, *fits.notes)
    )


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, share: bool = False
) -> dict[str, tuple[str, ...]]:
    """Puts `tensors` into the module's parameters and buffers; one name of a shared storage is enough.

    Args:
        module: keeps its dtypes and devices.
        tensors: by name.
        source: says in messages where the tensors come from.
        share: let the module have the tensors' own memory where it can, instead of copies.

    Returns:
        The further names among `tensors` of every storage that has several, by its first name in the module.

    Raises:
        QuantGolfError: names missing, names too many, or shapes that differ, listed together.
    """
    fits = match(module, tensors)
    fits.refuse_problems(source)
    _put(module, fits, share)
    return fits.aliases


def _implied(path: Path, found: Path) -> str:
    if found.suffix == ".gguf":
        return f"{huggingface.PREFIX}{found}"
    if huggingface.is_hugging_face(path):
        return f"{huggingface.PREFIX}{path}"
    raise QuantGolfError(
        f"checkpoint {path}: --model is missing, expected its card.json, path/to/script.py:factory or hf:PATH"
    )


def _stored_and_module(path: Path, found: Path, model: str | Path | nn.Module) -> tuple[Stored, nn.Module]:
    """What is stored, and the module it goes into, in fp32; of a GGUF file they are the same memory."""
    place = huggingface.path_of(model)
    if found.suffix == ".gguf":
        built, tensors = huggingface.read_gguf(found)
        stored = Stored(tensors)
        if place is not None and place.is_file() and found.samefile(place):
            return stored, built
    else:
        stored = read_stored(path)
    module = unwrap(model).eval() if isinstance(model, nn.Module) else build_model(model)
    return stored, module.float()


def _put(module: nn.Module, fits: Match, share: bool) -> None:
    """Gives the module its weights: the tensors themselves where `share` is on and dtype and device agree, which is
    what `module.to` does to a parameter; copies of them otherwise."""
    targets = state_of(module)
    first = first_names(targets)
    with torch.no_grad():
        for name, target in targets.items():
            tensor = fits.tensors[first[name]]
            if share and _interchangeable(target, tensor):
                target.data = tensor
            elif first[name] == name or target.is_meta:
                target.copy_(tensor)


def _interchangeable(target: Tensor, tensor: Tensor) -> bool:
    """Whether one can stand for the other: alike, dense, and the target's memory is nobody else's too."""
    alike = target.dtype == tensor.dtype and target.device == tensor.device and not target.is_meta
    alone = target.untyped_storage().nbytes() == target.numel() * target.element_size()
    return alike and alone and target.is_contiguous() and tensor.is_contiguous()
