"""One batch forward and backward, to know what calibration will take before it runs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantgolf.calibrate import collect
from quantgolf.compress.memory import growth_of
from quantgolf.types import Calibration

FP32 = 4


@dataclass(frozen=True)
class Rehearsal:
    """What a batch takes.

    Attributes:
        seconds: forward and backward of one batch, without the statistics of any but one parameter.
        activation_bytes: that the process grew by; where the system does not tell, those of the tensors that autograd
            keeps, with as much again for what is made of them.
    """

    seconds: float
    activation_bytes: int


def rehearse(model: nn.Module, seen: Calibration, batch: tuple[Tensor, Tensor]) -> Rehearsal:
    """Runs a batch with the statistics of the cheapest parameter that makes the whole graph be kept: the first.

    Args:
        seen: from `survey`.
    """
    first = [block.parameter for block in seen.blocks.values()][:1]
    started = time.monotonic()
    with _counted(model) as kept:
        grown = growth_of(lambda: collect(model, [batch], only=first))
    return Rehearsal(time.monotonic() - started, grown or 2 * sum(kept.values()))


def held_sizes(sizes: Mapping[str, tuple[int, int]], seen: Calibration) -> list[tuple[int, ...]]:
    """What is held of matrices [N, K]: (N, K), and N once more where G is kept as well."""
    return [(*size, size[0]) if name in seen.outputs else size for name, size in sizes.items()]


def statistics_bytes(sizes: Sequence[tuple[int, ...]]) -> int:
    """Memory that statistics of `held_sizes` take while they are summed: a part of the text, and the total."""
    return sum(2 * FP32 * (rows + columns**2 + sum(n**2 for n in outputs)) for rows, columns, *outputs in sizes)


def solver_bytes(sizes: Sequence[tuple[int, ...]], at_once: int = 1) -> int:
    """Memory that solving the largest of `held_sizes` takes, so many `at_once`: each matrix a few times in fp32, and
    its Hessian, and G where it is kept, a few times in fp64."""
    needs = (
        4 * FP32 * rows * columns + 5 * 8 * (columns**2 + sum(n**2 for n in outputs))
        for rows, columns, *outputs in sizes
    )
    return sum(sorted(needs, reverse=True)[:at_once])


@contextmanager
def _counted(model: nn.Module) -> Iterator[dict[int, int]]:
    """While entered, bytes of every storage that autograd keeps, by address; those of parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
