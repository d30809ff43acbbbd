"""One batch forward and backward, to know what calibration will take before it runs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantgolf.calibrate import collect
from quantgolf.types import Calibration

FP32 = 4


@dataclass(frozen=True)
class Rehearsal:
    """What a batch takes.

    Attributes:
        seconds: forward and backward of one batch, without the statistics of any but one parameter.
        activation_bytes: of tensors that live between forward and backward.
    """

    seconds: float
    activation_bytes: int


def rehearse(model: nn.Module, seen: Calibration, batch: tuple[Tensor, Tensor]) -> Rehearsal:
    """Runs a batch with the statistics of the cheapest parameter that makes the whole graph be kept: the first.

    Args:
        seen: from `survey`.
    """
    first = next(iter(seen.blocks.values())).parameter
    started = time.monotonic()
    with _counted(model) as kept:
        collect(model, [batch], only={first})
    seconds = time.monotonic() - started
    inputs = batch[0].numel()
    # Logits in fp32, their softmax and their gradient live beside what is kept for backward.
    logits = max((p.shape[0] for p in model.parameters() if p.ndim == 2), default=0) * inputs * FP32
    return Rehearsal(seconds, sum(kept.values()) + 3 * logits)


def statistics_bytes(sizes: Sequence[tuple[int, int]]) -> int:
    """Memory that statistics of matrices [N, K] take while they are summed: a part of the text, and the total."""
    return sum(2 * FP32 * (rows + columns**2) for rows, columns in sizes)


def solver_bytes(sizes: Sequence[tuple[int, int]]) -> int:
    """Memory that solving takes: the largest matrix a few times in fp32, and its Hessian a few times in fp64."""
    return max((4 * FP32 * rows * columns + 5 * 8 * columns**2 for rows, columns in sizes), default=0)


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
