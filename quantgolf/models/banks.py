"""Banks and back: the same weights stored as four 3-D parameters, or as one matrix a projection.

Contest scripts carry a pair of such functions each, to quantize matrix by matrix what trains as banks. Here they
make twins: whatever is said of a plain model has to hold of the banked one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import ROLES, GolfConfig


def to_banks(state: Mapping[str, Tensor], config: GolfConfig) -> dict[str, Tensor]:
    """The state dict of `Golf` with banks from that of its twin without; `config.layers` says how many there are.

    Raises:
        QuantGolfError: a layer's matrix is missing.
    """
    names = _plain_names(config)
    _refuse_missing(names, state)
    banks: dict[str, list[Tensor]] = {}
    for half in (0, 1):  # queries come before outputs, keys before values
        for layer in range(config.layers):
            for path, bank, place in ROLES.values():
                if place == half:
                    banks.setdefault(bank, []).append(state[f"blocks.{layer}.{path}.weight"])
    rest = {name: tensor for name, tensor in state.items() if name not in set(names)}
    return {**rest, **{bank: torch.stack(matrices) for bank, matrices in banks.items()}}


def from_banks(state: Mapping[str, Tensor], config: GolfConfig) -> dict[str, Tensor]:
    """The inverse of `to_banks`; the matrices are copies.

    Raises:
        QuantGolfError: a bank is missing, or holds another number of matrices than `config.layers` asks for.
    """
    sizes: dict[str, int] = {}
    for _, bank, _ in ROLES.values():
        sizes[bank] = sizes.get(bank, 0) + config.layers
    _refuse_missing(list(sizes), state)
    for bank, size in sizes.items():
        if len(state[bank]) != size:
            raise QuantGolfError(
                f"golf state: {bank} holds {len(state[bank])} matrices, expected {size} for {config.layers} layers; "
                "give the config that the weights were trained with"
            )
    plain = {name: tensor for name, tensor in state.items() if name not in sizes}
    for layer in range(config.layers):
        for path, bank, half in ROLES.values():
            plain[f"blocks.{layer}.{path}.weight"] = state[bank][layer + half * config.layers].clone()
    return plain


def _plain_names(config: GolfConfig) -> list[str]:
    return [f"blocks.{layer}.{path}.weight" for layer in range(config.layers) for path, _, _ in ROLES.values()]


def _refuse_missing(names: list[str], state: Mapping[str, Tensor]) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        raise QuantGolfError(
            f"golf state: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} missing, expected {len(names)} "
            "entries of that kind; give the state dict of the other storage, with the config it was trained with"
        )
