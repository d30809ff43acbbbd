"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): round one column after another and let the columns still to come
absorb each error, as the full Hessian says they can.

A weight on a GPU is solved there (`quantgolf_kernels.gptq_block`), without waiting for the CPU in between. Inside a
block of columns its codes are the CPU's to the bit. What a block leaves to the columns behind it is summed in fp64,
not fp32, so a code differs where a target lies within fp32 rounding of a tie, and with it what follows in that row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.solve.device import on_gpu
from quantgolf.solve.grid import Rounding
from quantgolf.solve.magnitude import out_of_range
from quantgolf_kernels.solve_ops import gptq_block

RETRIES = 6
SMALL = 128  # columns of a triangle that is inverted in one go
WIDEST = 128  # columns of a block that a GPU's registers hold


@dataclass(frozen=True)
class Factor:
    """The Hessian as the feedback needs it.

    Attributes:
        order: columns in processing order, int64 [K], on the CPU.
        upper: U of (H + damping)⁻¹ = Uᵀ U in that order, fp64 [K, K], where it was factorised; that of H / 4^exponent.
        damp: the share of the mean diagonal that was added.
        retries: how often the damping had to grow until the factorisation succeeded.
        dead: columns without any input, bool [K], in the weight's own order, on the CPU.
        exponent: 0 but for huge and tiny Hessians. Feedback takes ratios alone, for which their size is no matter.
    """

    order: Tensor
    upper: Tensor
    damp: float
    retries: int
    dead: Tensor
    exponent: int = 0

    def pivots(self) -> Tensor:
        """ℓ_jj² = 1 / U_jj² by the weight's own columns, [K], on the CPU: what an error left in column j costs in the
        end."""
        pivots = torch.empty(len(self.order), dtype=torch.float64)
        pivots[self.order] = self.upper.diagonal().double().cpu().square().reciprocal() * 4.0**self.exponent
        pivots[self.dead] = 0
        return pivots

    def spreads(self) -> Tensor:
        """log2 U_jj by the weight's own columns, fp64 [K], on the CPU."""
        spreads = torch.empty(len(self.order), dtype=torch.float64)
        spreads[self.order] = self.upper.diagonal().double().log2().cpu() - self.exponent
        return spreads


def factorise(hessian: Tensor, damp: float, act_order: bool, name: str, device: torch.device | None = None) -> Factor:
    """Cholesky factor of the inverse Hessian, with the damping raised tenfold while it fails.

    Args:
        device: where to do it; None is the CPU. Factors of another device differ in their last places.

    Raises:
        QuantGolfError: still not positive definite after `RETRIES` retries.
    """
    h = hessian.to(device or "cpu", torch.float64)
    exponent = -(-out_of_range(h.diagonal().max()) // 2)
    h = h / 4.0**exponent if exponent else h
    diagonal = h.diagonal().cpu()
    dead = diagonal == 0
    alive = diagonal[~dead]
    diagonal = torch.where(dead, 1.0, diagonal)
    mean = float(alive.mean()) if len(alive) else 1.0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(len(h))
    # A lower factor of the reversed matrix, inverted and reversed back, is U without inverting H first.
    backwards = order.flip(0)
    diagonal, there = diagonal[backwards].to(h.device), backwards.to(h.device)
    reverse = h[there][:, there]
    for retry in range(RETRIES + 1):
        used = damp * 10**retry
        reverse.diagonal().copy_(diagonal + used * mean)
        lower, failed = torch.linalg.cholesky_ex(reverse)
        if not failed:
            upper = _inverse(lower).flip(0, 1)
            if upper.isfinite().all():
                return Factor(order, upper, used, retry, dead, exponent)
    raise QuantGolfError(
        f"the Hessian of {name} is not positive definite even with damp {used:g}, expected at most {damp:g}: "
        "calibrate on more text in fp32"
    )


def _inverse(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix [K, K], half of it at a time."""
    found = torch.zeros_like(lower, memory_format=torch.contiguous_format)
    _invert(lower, found)
    return found


def _invert(lower: Tensor, found: Tensor) -> None:
    size = len(lower)
    if size <= SMALL:
        found.copy_(torch.linalg.solve_triangular(lower, torch.eye(size).to(lower), upper=False))
        return
    half = size // 2 // 8 * 8
    _invert(lower[:half, :half], found[:half, :half])
    _invert(lower[half:, half:], found[half:, half:])
    torch.mm(found[half:, half:], lower[half:, :half] @ found[:half, :half], out=found[half:, :half]).neg_()


def feed_back(weight: Tensor, factor: Factor, rounding: Rounding, block_size: int) -> Tensor:
    """Codes int8 [N, K] of GPTQ on the grid that `rounding` is of, on the weight's device.

    Columns are processed in blocks: inside a block errors spread at once, to the columns behind it in one
    matrix product. Columns of a group may be anywhere in that order: the group has its scale before.
    """
    if on_gpu(weight):
        return feed_back_many(weight[None], [factor], [rounding], block_size)[0]
    columns = weight.shape[1]
    upper = factor.upper.float().cpu()
    # One column is one row of `rest`: the inner loop of the block solve runs over contiguous output rows.
    rest = weight.cpu().float()[:, factor.order].T.contiguous()
    step, zero = (side.cpu().float().T.contiguous().numpy() for side in (rounding.step, rounding.zero))
    group = (factor.order // rounding.size).numpy()
    codes = torch.empty(columns, weight.shape[0], dtype=torch.int8)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty(stop - start, weight.shape[0])
        solve_block(
            rest[start:stop].numpy(), upper[start:stop, start:stop].contiguous().numpy(), step, zero, group[start:stop],
            rounding.lowest, rounding.highest, codes[start:stop].numpy(), errors.numpy(),
        )  # fmt: skip
        if stop < columns:
            rest[stop:] -= upper[start:stop, stop:].T @ errors
    dead = factor.dead[factor.order]
    codes[dead] = rounding.zero.cpu().T[factor.order[dead] // rounding.size]
    result = torch.empty_like(codes)
    result[factor.order] = codes
    return result.T.contiguous().to(weight.device)


def feed_back_many(
    weights: Tensor, factors: Sequence[Factor], roundings: Sequence[Rounding], block_size: int = WIDEST
) -> Tensor:
    """Codes int8 [B, N, K] of B matrices of equal shape at once, as `feed_back` gives them on a GPU.

    Rows of one matrix do not fill a GPU. On a CPU the inner loop is plain torch, and slow.

    Args:
        weights: [B, N, K].
        factors, roundings: of each; roundings of the same groups and codes.
        block_size: columns between two updates of the rest, at most `WIDEST` are taken; speed, not result.
    """
    columns, device, same = weights.shape[2], weights.device, roundings[0]
    order = torch.stack([factor.order for factor in factors]).to(device)
    upper = torch.stack([factor.upper.to(device, torch.float64) for factor in factors])
    step = torch.stack([rounding.step.to(device).T for rounding in roundings]).contiguous()
    zero = torch.stack([rounding.zero.to(device).T for rounding in roundings]).contiguous()
    group = (order // same.size).to(torch.int32)
    there = order[:, None].expand(weights.shape)
    rest = weights.detach().double().gather(2, there)
    codes, width = torch.empty(weights.shape, dtype=torch.int8, device=device), min(block_size, WIDEST)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        codes[:, :, start:stop], errors = gptq_block(
            rest[:, :, start:stop], upper[:, start:stop, start:stop], step, zero, group[:, start:stop], same.lowest,
            same.highest,
        )  # fmt: skip
        if stop < columns:
            # fp64 has tensor cores of its own on data-centre GPUs and no lower precision that a flag lets in.
            rest[:, :, stop:].baddbmm_(errors, upper[:, start:stop, stop:], alpha=-1)
    result = torch.empty_like(codes).scatter_(2, there, codes)
    dead = torch.stack([factor.dead for factor in factors]).to(device)[:, None]
    return torch.where(dead, zero.mT.repeat_interleave(same.size, 2)[:, :, :columns], result)


@numba.njit(cache=True, nogil=True)
def solve_block(
    weight: NDArray[np.float32],
    upper: NDArray[np.float32],
    step: NDArray[np.float32],
    zero: NDArray[np.float32],
    group: NDArray[np.int64],
    lowest: int,
    highest: int,
    codes: NDArray[np.int8],
    errors: NDArray[np.float32],
) -> None:
    """Solves a block of columns in place: weight, codes and errors [columns, N], upper [columns, columns]; step and
    zero are [G, N], group [columns]."""
    columns, rows = weight.shape
    low, high = np.float32(lowest), np.float32(highest)
    for j in range(columns):
        scale = np.float32(1) / upper[j, j]
        g = group[j]
        for i in range(rows):
            level = np.rint(weight[j, i] / step[g, i])
            level = min(max(level, low - zero[g, i]), high - zero[g, i])
            codes[j, i] = np.int8(level + zero[g, i])
            errors[j, i] = (weight[j, i] - level * step[g, i]) * scale
        for k in range(j + 1, columns):
            factor = upper[j, k]
            for i in range(rows):
                weight[k, i] -= factor * errors[j, i]
