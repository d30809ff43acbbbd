"""LQER, asymmetric (Zhang et al. 2024, arXiv:2402.02446): what rounding lost in a matrix comes back in rank 4.

The error is about left · right. As published for the contest: left [N, 4] in 2 bits with one scale, right [4, K] in 4
bits with a scale for each group of 64, and only the three tensors of largest Frobenius error. Left free, and done as
it helps: the singular vectors may be those under H; the right factor is the least-squares answer to the left one as
it was rounded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RANK, TENSORS, GROUP = 4, 3, 64
LEFT, RIGHT = (-2, 1), (-8, 7)  # the codes of 2 and 4 bits


@dataclass(frozen=True)
class LowRank:
    """left codes int8 [N, R] and scale fp16 []; right codes int8 [R, K] and scales fp16 [R, ⌈K / 64⌉]."""

    left: Tensor
    left_scale: Tensor
    right: Tensor
    right_scale: Tensor

    def correction(self) -> Tensor:
        """What is added to the weight, fp32 [N, K]."""
        columns = self.right.shape[1]
        scale = self.right_scale.float().repeat_interleave(GROUP, 1)[:, :columns]
        correction: Tensor = (self.left.float() * self.left_scale.float()) @ (self.right.float() * scale)
        return correction


def low_rank(error: Tensor, hessian: Tensor | None = None) -> LowRank:
    """The correction for error = weight - restored [N, K]; under `hessian` [K, K] where it is given.

    The scale of the left factor is searched for the least error that is left.
    """
    rank = min(RANK, *error.shape)
    root = None if hessian is None else _root(hessian)
    seen = error.double() if root is None else error.double() @ root
    left = leading(seen, rank)
    found = [_rounded(error.double(), left, share) for share in np.linspace(0.6, 2.4, 13)]

    def lost(candidate: LowRank) -> float:
        rest = error.double() - candidate.correction().double()
        return float((rest if root is None else rest @ root).square().sum())

    return min(found, key=lost)


def leading(matrix: Tensor, rank: int) -> Tensor:
    """Left singular vectors of the `rank` largest singular values, columns of mean square 1, fp64 [N, rank]."""
    if len(matrix) > matrix.shape[1]:
        _, vectors = torch.linalg.eigh(matrix.T @ matrix)
        vectors = matrix @ vectors[:, -rank:]
        vectors = vectors / vectors.norm(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny)
    else:
        _, vectors = torch.linalg.eigh(matrix @ matrix.T)
        vectors = vectors[:, -rank:]
    leading: Tensor = vectors.flip(1) * len(matrix) ** 0.5
    return leading


def _rounded(error: Tensor, left: Tensor, share: float) -> LowRank:
    left_scale = torch.tensor(share).half()
    codes = (left / left_scale.double()).round().clamp(*LEFT)
    grid = codes * left_scale.double()
    # Least squares: under any H on the right the answer is the same.
    right = torch.linalg.pinv(grid.T @ grid, hermitian=True) @ (grid.T @ error)
    columns = right.shape[1]
    padded = torch.nn.functional.pad(right, (0, -columns % GROUP)).reshape(len(right), -1, GROUP)
    scale = (padded.abs().amax(2) / (RIGHT[1] + 0.5)).clamp(min=2.0**-24).half()
    right_codes = (padded / scale.double()[..., None]).round().clamp(*RIGHT).reshape(len(right), -1)[:, :columns]
    return LowRank(codes.to(torch.int8), left_scale, right_codes.to(torch.int8).contiguous(), scale)


def _root(hessian: Tensor) -> Tensor:
    """R with R Rᵀ = H, fp64; eigenvalues below zero are rounding."""
    values, vectors = torch.linalg.eigh(hessian.double())
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root
