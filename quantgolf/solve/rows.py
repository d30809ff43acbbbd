"""GPTQ with levels that are paths of a trellis down the columns, of whole matrices on a GPU.

Everything is fp64, as in `slope.solve_rows`, and blocks differ from it in one sum's order alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.solve.gptq import Factor
from quantgolf.solve.trellis import Trellis
from quantgolf_kernels.solve_ops import trellis_block

WIDEST = 32  # columns of a block on a GPU, where a column sums what those before it in its block err


def solve_rows_many(
    weights: Tensor, factors: Sequence[Factor], row: NDArray[np.float64], column: NDArray[np.float64], trellis: Trellis,
    block_size: int = WIDEST,
) -> Tensor:  # fmt: skip
    """Levels int32 [B, K, N], transposed, of B matrices of equal shape at once, where the weights are.

    One matrix does not fill a GPU: it has a program a segment of the trellis. On a CPU the inner loop is plain torch,
    and slow.

    Args:
        weights: [B, N, K].
        factors: of each.
        row, column: the step of (i, j) is row[i] · column[j], [B, N] and [B, K].
        block_size: columns between two updates of the rest, at most `WIDEST` are taken; speed, not result.
    """
    device = weights.device
    order = torch.stack([factor.order for factor in factors]).to(device)
    upper = torch.stack([factor.upper.to(device) for factor in factors])
    rest = weights.detach().mT.double()
    there = order[:, :, None].expand(rest.shape)
    rest = rest.gather(1, there)
    rows, columns = torch.from_numpy(row).to(device), torch.from_numpy(column).to(device).gather(1, order)
    ways = torch.from_numpy(trellis.ways).to(device)
    levels, width = torch.empty(rest.shape, dtype=torch.int32, device=device), min(block_size, WIDEST)
    for start in range(0, rest.shape[1], width):
        stop = min(start + width, rest.shape[1])
        levels[:, start:stop], errors = trellis_block(
            rest[:, start:stop], upper[:, start:stop, start:stop], rows, columns[:, start:stop], ways, trellis.restart
        )
        if stop < rest.shape[1]:
            rest[:, stop:].baddbmm_(upper[:, start:stop, stop:].double().mT, errors, alpha=-1)
    levels = torch.empty_like(levels).scatter_(1, there, levels)
    return levels.masked_fill_(torch.stack([factor.dead for factor in factors]).to(device)[:, :, None], 0)
