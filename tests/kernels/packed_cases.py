"""Packed matrices to test kernels with, and what they stand for in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantgolf_kernels.packing import Packed, pack


@dataclass(frozen=True)
class Case:
    """A packed matrix and its weights, fp64 [N, K]."""

    packed: Packed
    weight: Tensor


def case(
    shape: tuple[int, int],
    bits: int,
    device: torch.device,
    *,
    seed: int = 0,
    column: bool = True,
    outliers: int = 0,
    group_size: int = 0,
    zero: bool = False,
    narrow: bool = False,
) -> Case:
    """Random codes over the whole width, unsigned where there are zeros, `outliers` of them far beyond it; scales and
    zeros `narrow` as files have them, in fp16 and int8."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    half = 0 if zero else 1 << (bits - 1)
    codes = torch.randint(-half, (1 << bits) - half, shape, generator=generator, dtype=torch.int32)
    where = torch.randperm(codes.numel(), generator=generator)[:outliers]
    codes.view(-1)[where] = torch.randint(300, 5000, (len(where),), generator=generator, dtype=torch.int32) * (
        1 if zero else torch.tensor([1, -1], dtype=torch.int32)[torch.arange(len(where)) % 2]
    )
    row = torch.rand(rows, generator=generator) + 0.1
    steps = torch.rand(columns, generator=generator) + 0.1 if column else None
    groups = (rows, -(-columns // group_size)) if group_size else None
    scale = torch.rand(groups, generator=generator) + 0.5 if groups else None
    middle = torch.rand(groups, generator=generator) * (1 << bits) if groups and zero else None
    if narrow and scale is not None:
        scale = scale.half()
        middle = None if middle is None else (middle - 128).to(torch.int8)
    weight = codes.double()
    if scale is not None:
        spread = torch.arange(columns) // group_size
        weight = (weight - (0 if middle is None else middle.double()[:, spread])) * scale.double()[:, spread]
    weight = weight * row.double()[:, None] * (1 if steps is None else steps.double()[None, :])
    moved = [None if part is None else part.to(device) for part in (steps, scale, middle)]
    packed = pack(
        codes.to(device), row.to(device), moved[0], scale=moved[1], zero=moved[2], group_size=group_size, bits=bits
    )
    return Case(packed, weight.to(device))


def arguments(packed: Packed) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The tensors of a packed matrix in the order launchers take them."""
    return packed.data, packed.row, packed.column, packed.outliers, packed.scale, packed.zero


def far(found: Tensor, wanted: Tensor) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
