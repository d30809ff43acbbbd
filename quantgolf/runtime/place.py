"""A file's codes into a module as packed weights: its parameters are never in memory as floating point numbers."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from quantgolf.checkpoint import fill
from quantgolf.checkpoint.match import first_names, match, state_of
from quantgolf.encode import block_bytes, decode_model
from quantgolf.runtime.blocks import KeptRows, PackedMatrix
from quantgolf.runtime.linear import attach
from quantgolf.runtime.packed import packed_of
from quantgolf.runtime.parameter import PackedParameter
from quantgolf.runtime.restore import assemble
from quantgolf.types import Block, CodedModel, QTensor


@dataclass(frozen=True)
class Home:
    """Where a module holds a tensor: an attribute of one of its parts."""

    owner: nn.Module
    attribute: str

    def unfit(self) -> str | None:
        """Why no packed weight can stand here; None where one can."""
        kept = self.owner._parameters.get(self.attribute)
        if kept is None:
            return "it is a buffer"
        if isinstance(self.owner, nn.RNNBase):
            return "recurrent layers keep their weights in a list of their own"
        if isinstance(self.owner, nn.Embedding | nn.EmbeddingBag) and self.owner.max_norm is not None:
            return "max_norm changes it"
        return None if kept.is_floating_point() and kept.ndim >= 2 else "it is no floating point matrix"


def place(
    module: nn.Module, coded: CodedModel, source: str, device: torch.device, dtype: torch.dtype, *, empty: bool
) -> nn.Module:
    """Fills a module with a file's tensors, its matrices packed.

    Args:
        module: in fp32.
        coded: the file's tensors.
        source: says in messages where they come from.
        device: where codes are packed, and where all goes.
        dtype: fp32, fp16 or bf16, of parameters that stay floating point, and of the packed ones as models see them.
        empty: that the module has no memory yet (meta) and is given some, for what is not packed.

    Raises:
        FormatError: streams that do not fit their tensors.
        QuantGolfError: tensors that do not match the module, as `fill` says it.
    """
    weights, kept = _decoded(coded, device, dtype)
    state = state_of(module)
    # What a packed tensor looks like to `match`, without its numbers: no two of them are the same tensor.
    shapes = {
        id(weight): torch.full((), at, dtype=torch.float32, device="cpu").expand(weight.shape)
        for at, weight in enumerate(dict.fromkeys(weights.values()))
    }
    looks = {name: shapes[id(weight)] for name, weight in weights.items()}
    twice = _twice(coded, state)
    fits = match(module, kept | {name: look for name, look in looks.items() if name not in twice})
    fits.refuse_problems(source)
    of = {id(look): weights[name] for name, look in looks.items()}
    homes = _homes(module, state)
    placed: list[tuple[list[Home], PackedParameter]] = []
    rest: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for name, tensor in fits.tensors.items():
        weight = of.get(id(tensor))
        if weight is None:
            rest[name] = tensor
        elif (why := next((why for home in homes[name] if (why := home.unfit())), None)) is not None:
            reasons[name] = why
            rest[name] = weight.float().dequantize().cpu()
        else:
            reasons |= _unpackable(weight)
            if any(isinstance(part, PackedMatrix) for part in weight.parts):
                placed.append((homes[name], weight))
            else:
                rest[name] = weight.float().dequantize().cpu()
    for where, _ in placed:
        for home in where:
            del home.owner._parameters[home.attribute]
    if empty:
        module = module.to_empty(device="cpu")
    fill(module, rest, source, share=True)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype) if parameter.is_floating_point() else parameter.data
    module = module.to(device)
    for where, weight in placed:
        for home in where:
            attach(home.owner, home.attribute, weight)
    if reasons:
        listed = "; ".join(
            f"{', '.join(name for name, each in reasons.items() if each == why)} ({why})"
            for why in dict.fromkeys(reasons.values())
        )
        warnings.warn(f"{source}: kept in floating point and not packed: {listed}", stacklevel=3)
    return module


def _decoded(
    coded: CodedModel, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, PackedParameter], dict[str, Tensor]]:
    """Tensors with codes, packed, and those without, by each of their names; codes are dropped as they are packed."""
    weights: dict[str, PackedParameter] = {}
    kept: dict[str, Tensor] = {}
    decoded = decode_model(coded, None if device.type == "cpu" else device)
    for entry, spent in zip(coded.tensors, block_bytes(coded), strict=True):
        names = (entry.name, *entry.aliases)
        costs = [each.matrix for each in spent]
        if all(block.stored is not None for block in entry.blocks):
            parts = [(at, part.cpu()) for at, part in islice(decoded, len(costs)) if isinstance(part, Tensor)]
            kept |= dict.fromkeys(names, assemble(entry, parts))
            continue
        blocks = [
            _block(where, part, cost, device, dtype)
            for (where, part), cost in zip(islice(decoded, len(entry.blocks)), costs, strict=True)
        ]
        weights |= dict.fromkeys(names, PackedParameter(entry.name, entry.shape, entry.lead, blocks, dtype))
    return weights, kept


def _block(
    where: Block, part: QTensor | Tensor, cost: float, device: torch.device, dtype: torch.dtype
) -> PackedMatrix | KeptRows:
    if isinstance(part, Tensor):
        return KeptRows(part.to(device, dtype), where.start)
    codes = part.codes.to(device)
    packed = packed_of(codes, part.steps)
    if isinstance(packed, str):
        values = part.dequantize().to(device, dtype)
        return KeptRows(values.T.contiguous() if where.transposed else values, where.start, packed)
    return PackedMatrix(packed, where.start, where.stop, where.transposed, cost)


def _unpackable(weight: PackedParameter) -> dict[str, str]:
    return {
        Block(weight.name, weight.lead, block.start, block.stop).name(weight.shape): block.unpackable
        for block in weight.parts
        if isinstance(block, KeptRows) and block.unpackable
    }


def _twice(coded: CodedModel, state: Mapping[str, Tensor]) -> set[str]:
    """Names of ties which the module makes in code: it has the tensor under another name."""
    ties = [(entry.name, *entry.aliases) for entry in coded.tensors if entry.aliases]
    return {name for names in ties if any(name in state for name in names) for name in names if name not in state}


def _homes(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[Home]]:
    """All places of each storage, by its first name."""
    first = first_names(state)
    found: dict[str, dict[tuple[int, str], Home]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for attribute in (*owner._parameters, *owner._buffers):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if name in first:
                found.setdefault(first[name], {})[id(owner), attribute] = Home(owner, attribute)
    return {name: list(places.values()) for name, places in found.items()}
