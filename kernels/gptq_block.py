"""GPTQ inside a block of columns (Frantar et al. 2022, arXiv:2210.17323), the block of a few rows held in registers.

Rows do not know of each other, columns come one after another: a GPU waits for a column's latency, not for arithmetic.
So a warp has whole rows, its lanes the columns. A column is picked out by a masked sum over lanes, what it erred goes
to all lanes at once, and nothing is written before the block is done. Several rows a warp hide each other's latency.

Every operation rounds as on the CPU (no fused multiply-add, IEEE division, halves to even), and inside a block errors
arrive in the same order, so that a block's codes are those of the CPU to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # a warp
TO_INTEGER = tl.constexpr(12582912.0)  # 1.5 · 2²³: adding it to a number below 2²² leaves an integer, halves to even


@triton.jit
def gptq_block_kernel(
    weight, upper, step, zero, group, codes, errors, lowest, highest, N, C, weight_batch, weight_row, upper_batch,
    upper_row, step_batch, step_group, zero_batch, zero_group, group_batch,
    GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    batch, rows, at = tl.program_id(1).to(tl.int64), tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (rows < N)[:, None] & (at < C)[None, :]
    rows = rows.to(tl.int64)
    weight += batch * weight_batch + rows[:, None] * weight_row + at[None, :]
    tile = tl.load(weight, mask=inside, other=0.0).to(tl.float32)  # weights; behind the column at hand, errors
    levels = tl.zeros([ROWS, COLUMNS], tl.int32)
    step += batch * step_batch + rows
    zero += batch * zero_batch + rows
    size = tl.load(step, mask=rows < N, other=1.0)
    centre = tl.load(zero, mask=rows < N, other=0).to(tl.float32)
    upper += batch * upper_batch
    for j in range(C):
        pivot = tl.load(upper + j * upper_row + j).to(tl.float32)
        spread = tl.load(upper + j * upper_row + at, mask=(at > j) & (at < C), other=0.0).to(tl.float32)
        if GROUPED:
            g = tl.load(group + batch * group_batch + j).to(tl.int64)
            size = tl.load(step + g * step_group, mask=rows < N, other=1.0)
            centre = tl.load(zero + g * zero_group, mask=rows < N, other=0).to(tl.float32)
        now = (at == j)[None, :]
        wanted = tl.sum(tl.where(now, tile, 0.0), 1)
        level = tl.minimum(tl.maximum(tl.math.div_rn(wanted, size), lowest - centre), highest - centre)
        level = (level + TO_INTEGER) - TO_INTEGER
        error = (wanted - level * size) * tl.math.div_rn(1.0, pivot)
        tile = tl.where(now, error[:, None], tile - spread[None, :] * error[:, None])
        levels = tl.where(now, (level + centre).to(tl.int32)[:, None], levels)
    place = (batch * N + rows[:, None]) * C + at[None, :]
    tl.store(codes + place, levels.to(tl.int8), mask=inside)
    tl.store(errors + place, tile.to(errors.dtype.element_ty), mask=inside)


def launch_gptq_block(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    """Codes int8 and errors of blocks of columns: what `quantgolf::gptq_block` does, by the kernel.

    Args:
        weight: [B, N, C], its columns side by side in memory; not written.
        upper: [B, C, C], its columns side by side.
        step, zero: [B, G, N], their rows side by side.
        group: [B, C], side by side.
        lowest, highest: of the codes.
    """
    batch, rows, columns = weight.shape
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    errors = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    gptq_block_kernel[(triton.cdiv(rows, ROWS), batch)](
        weight, upper, step, zero, group, codes, errors, float(lowest), float(highest), rows, columns, weight.stride(0),
        weight.stride(1), upper.stride(0), upper.stride(1), step.stride(0), step.stride(1), zero.stride(0),
        zero.stride(1), group.stride(0),
        GROUPED=step.shape[1] > 1, ROWS=ROWS, COLUMNS=triton.next_power_of_2(columns), num_warps=1,
        enable_fp_fusion=False,
    )  # fmt: skip
    return codes, errors
