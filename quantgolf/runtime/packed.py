"""Codes and steps of a file as a packed matrix, where there is one."""

import torch
from torch import Tensor

from quantgolf.types import Groups, Steps
from quantgolf_kernels import Packed, pack
from quantgolf_kernels.packing import GROUPED, LARGEST_CODE


def packed_of(codes: Tensor, steps: Steps | Groups) -> Packed | str:
    """The packed matrix of codes [N, K] and their steps, on the device of the codes; or why there is none."""
    largest = max(-int(codes.min()), int(codes.max())) if codes.numel() else 0
    if largest > LARGEST_CODE:
        return "codes reach beyond 2^24"
    if isinstance(steps, Groups):
        return _grouped(codes, steps)
    return pack(codes, steps.row.to(codes.device), None if steps.column is None else steps.column.to(codes.device))


def _grouped(codes: Tensor, groups: Groups) -> Packed | str:
    """Rows of one group without a zero are rows with a step; with one, their group ends beyond the last column."""
    whole, columns = groups.scale.shape[1] == 1, codes.shape[1]
    scale = groups.scales().to(codes.device)
    if whole and groups.zero is None:
        return pack(codes, scale[:, 0])
    if groups.size % GROUPED and not whole:
        return f"groups of {groups.size} columns are no multiple of {GROUPED}"
    row, scale = _row_powers(scale)
    narrow = scale.half()
    return pack(
        codes, row, scale=narrow if torch.equal(narrow, scale) else scale,
        zero=None if groups.zero is None else groups.zero.to(codes.device),
        # Of a power of two kernels take the largest blocks that lie within one group.
        group_size=max(GROUPED, 1 << (columns - 1).bit_length()) if whole else groups.size,
    )  # fmt: skip


def _row_powers(scale: Tensor) -> tuple[Tensor, Tensor]:
    """A power of two for each row, and its scales [N, G] without it, below 1: sums are multiplied by the power in fp32,
    and weights in fp16 are no larger than codes. 1 for a row whose scales lie so far apart that the least would lose
    bits."""
    power = torch.frexp(scale.amax(1)).exponent
    moved = torch.ldexp(scale, -power[:, None])
    exact = ((moved >= torch.finfo(torch.float32).tiny) | (scale == 0)).all(1)
    row = torch.ldexp(torch.ones_like(scale[:, 0]), power * exact)
    return row, torch.where(exact[:, None], moved, scale)
