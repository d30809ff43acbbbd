"""A checkpoint and its module, checked against each other before anything expensive runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantgolf.checkpoint.model import build_model, describe_model
from quantgolf.checkpoint.read import read_state
from quantgolf.errors import QuantGolfError


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: its module with the weights in place, and the tensors as they were stored.

    Attributes:
        module: in evaluation mode, computing in fp32.
        tensors: the checkpoint's own tensors by name, each storage once, under the module's first name for it.
        aliases: the further names of a storage, by that first name (a tied head).
        description: how to rebuild the module; None where the user has to bring it along.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    aliases: dict[str, tuple[str, ...]]
    description: dict[str, Any] | None

    @property
    def parameters(self) -> int:
        """Numbers stored, tied ones once."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def open_checkpoint(path: str | Path, model: str | Path | nn.Module) -> Checkpoint:
    """Reads a checkpoint and puts it into its module.

    Args:
        path: a .safetensors, .pt or .pth file.
        model: a card, `path/to/script.py:factory` (executed), or a module; see `build_model`.

    Raises:
        QuantGolfError: unreadable, not matching the module (all mismatches in one message), or not finite.
    """
    state = read_state(Path(path))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise QuantGolfError(
                f"checkpoint {path}: {name} has {bad} values that are NaN or infinite, expected finite weights; "
                "take an earlier checkpoint"
            )
    module = model.eval() if isinstance(model, nn.Module) else build_model(model)
    module = module.float()
    aliases = fill(module, state, f"checkpoint {path}")
    first = {alias: name for name, others in aliases.items() for alias in others}
    tensors = {first.get(name, name): tensor for name, tensor in state.items()}
    return Checkpoint(module, tensors, aliases, describe_model(model))


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, tuple[str, ...]]:
    """Copies `tensors` into the module's parameters and buffers; one name of a shared storage is enough.

    Returns:
        The further names among `tensors` of every storage that has several, by its first name in the module.

    Raises:
        QuantGolfError: names missing, names too many, or shapes that differ, listed together; `source` says
            where the tensors come from.
    """
    targets = module.state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    first = {name: first_names.setdefault(id(target), name) for name, target in targets.items()}
    given = {first[name] for name in tensors if name in first}
    problems = [f"missing {name}" for name in targets if first[name] == name and name not in given]
    problems += [f"surplus {name}" for name in tensors if name not in targets]
    problems += [
        f"{name} is {list(tensor.shape)} where the model has {list(targets[name].shape)}"
        for name, tensor in tensors.items()
        if name in targets and tensor.shape != targets[name].shape
    ]
    aliases: dict[str, tuple[str, ...]] = {}
    sources: dict[str, str] = {}
    for name in tensors:
        if name not in first:
            continue
        other = sources.setdefault(first[name], name)
        if name != other and not torch.equal(tensors[name], tensors[other]):
            problems.append(f"{name} differs from {other}, which the model ties to it")
        if name != first[name]:
            aliases[first[name]] = (*aliases.get(first[name], ()), name)
    if problems:
        shown = "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise QuantGolfError(f"{source} does not match the model: {shown}. Give the model it was trained as")
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)
    return aliases
