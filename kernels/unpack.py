"""Packed codes back into weights: of a whole matrix, or of some of its rows, as an embedding needs them.

Weights have the bits that `dequantize` gives them, rounded once more to the dtype that is asked for.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantgolf_kernels.field import any_field, field
from quantgolf_kernels.packing import part_columns


@triton.jit
def weight_of(
    code, n, k, mask, row, column, scale, zero, groups, group_size
):  # fmt: skip
    """Weights fp32 of codes fp32 [B, C] in rows n [B, 1] and columns k, [1, C] or [B, C]."""
    step = tl.load(row + n)
    if column is not None:
        step = step * tl.load(column + k, mask=mask, other=0.0)
    if scale is not None:
        group = n * groups + k // group_size
        if zero is not None:
            code -= tl.load(zero + group, mask=mask, other=0.0)
        code *= tl.load(scale + group, mask=mask, other=0.0)
    return code * step


@triton.jit
def rows_kernel(
    chosen, data, row, column, outliers, scale, zero, out, COUNT, N, K, J, stride, groups, group_size,
    BITS: tl.constexpr, OFFSET: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = 32 // (BITS & -BITS)
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.minimum(i, N - 1) if chosen is None else tl.load(chosen + i, mask=i < COUNT, other=0)
    known = ((n >= 0) & (n < N))[:, None]  # a token that is none gives NaN, and reads nothing
    n = tl.minimum(tl.maximum(n, 0), N - 1).to(tl.int64)[:, None]
    begin = tl.program_id(1) * BLOCK_K
    at = begin + tl.arange(0, BLOCK_K)[None, :]
    rows = data + n * stride
    target = out + i.to(tl.int64)[:, None] * K
    for part in tl.static_range(PARTS):
        k = part * J + at
        mask = (i < COUNT)[:, None] & (at < J) & (k < K)
        code = (field(rows, at, mask, J, part, BITS) - OFFSET).to(tl.float32)
        w = weight_of(code, n, k, mask, row, column, scale, zero, groups, group_size)
        tl.store(target + k, tl.where(known, w, float("nan")).to(out.dtype.element_ty), mask=mask)
    if outliers is not None:
        # Few are here: one after the other in each row, over what was stored for them.
        tl.debug_barrier()
        count = tl.load(outliers + N)
        first, last = tl.load(outliers + n), tl.load(outliers + n + 1)
        last = tl.where((i < COUNT)[:, None] & known, last, first)
        for entry in range(0, tl.max(tl.max(last - first, 1), 0), OUTLIERS):
            e = first + entry + tl.arange(0, OUTLIERS)[None, :]
            at_e = tl.load(outliers + N + 1 + e, mask=e < last, other=0)
            mine = (e < last) & (at_e % J >= begin) & (at_e % J < begin + BLOCK_K)
            more = tl.load(outliers + N + 1 + count + e, mask=mine, other=0)
            code_e = (any_field(rows, at_e, mine, J, BITS) - OFFSET + more).to(tl.float32)
            w_e = weight_of(code_e, n, at_e, mine, row, column, scale, zero, groups, group_size)
            tl.store(target + at_e, w_e.to(out.dtype.element_ty), mask=mine)


def unpack_rows(
    chosen: Tensor | None, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None,
    scale: Tensor | None, zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int,
    dtype: torch.dtype, config: dict[str, int],
) -> Tensor:  # fmt: skip
    """Rows `chosen` [T] of the weights, or all, [T or N, K] in `dtype`; the rest as in `Packed`.

    `config` has block_n, block_k (words), num_warps and num_stages.
    """
    rows, each = data.shape[0], part_columns(bits, columns)
    count = rows if chosen is None else chosen.shape[0]
    out = torch.empty(count, columns, dtype=dtype, device=data.device)
    block_k = min(config["block_k"], triton.next_power_of_2(each))
    meta: dict[str, Any] = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    rows_kernel[(triton.cdiv(count, config["block_n"]), triton.cdiv(each, block_k))](
        chosen, data, row, column, outliers, scale, zero, out, count, rows, columns, each, data.stride(0),
        0 if scale is None else scale.shape[1], group_size or 1, BITS=bits, OFFSET=offset,
        BLOCK_N=config["block_n"], BLOCK_K=block_k, OUTLIERS=16, **meta,
    )  # fmt: skip
    return out
