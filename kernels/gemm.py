"""A few rows of activations times a packed matrix, with tensor cores.

The product is taken as weights times transposed activations: Hopper's tensor cores read only their left operand from
registers, which is where weights are once they are unpacked (+15 to 20% in Triton's own measurements). Words are moved
to the threads that need them before they are unpacked, weights never. Two fields half a word apart become two numbers
by one shift and one mask-and-or: each is put under the mantissa of 128, exactly; that constant and the codes' offset
leave the loop as one product with the sum of the activations, which are multiplied by the column steps and summed by a
small kernel before. Row steps multiply the sums.

Where a matrix has too few rows to fill the chip its columns are split. Parts of sums are fp32 and are added in order
by a second kernel, so that results are the same from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantgolf_kernels.field import field, pair
from quantgolf_kernels.packing import part_columns, parts

# Two halves of a word that have a field as the end of their mantissa; where the field begins; what it has too much. As
# little as can be: an activation of 3,000 times 1,024 under fp16 fields cost 0.2% of a result.
UNDER = {torch.bfloat16: (0x43004300, 0, 128), torch.float16: (0x58005800, 3, 128)}
UNDER_BYTES = {torch.float16: (0x5C005C00, 2, 256)}  # of 8 bits, which bf16 has no room for


@triton.jit
def as_operand(half, dtype: tl.constexpr):
    """Halves of words, 16 bits that are a number of `dtype` already."""
    return half.to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def prepare_kernel(x, column, ready, sums, ROWS, M, K, x_stride, WIDE, BLOCK: tl.constexpr):
    """Activations times column steps, with zeros where the tiles go beyond them, and the sum of each row
    and what it is to be multiplied by in the end."""
    m = tl.program_id(0).to(tl.int64)
    shrink = 1.0
    if x.dtype.element_ty == tl.float16:  # the product may not fit: a power of two is taken out of the row
        largest = tl.zeros([BLOCK], tl.float32)
        for start in range(0, WIDE, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < tl.where(m < M, K, 0)
            x_k = tl.load(x + m * x_stride + k, mask=inside, other=0.0).to(tl.float32)
            if column is not None:
                x_k *= tl.load(column + k, mask=inside, other=0.0)
            largest = tl.maximum(largest, tl.abs(x_k))
        exponent = (tl.max(largest, 0).to(tl.int32, bitcast=True) >> 23) & 255
        shrink = ((127 - tl.maximum(exponent - 141, 0)) << 23).to(tl.float32, bitcast=True)  # all below 2^15 then
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDE, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < tl.where(m < M, K, 0)
        x_k = tl.load(x + m * x_stride + k, mask=inside, other=0.0).to(tl.float32)
        if column is not None:
            x_k *= tl.load(column + k, mask=inside, other=0.0)
        x_k = (x_k * shrink).to(x.dtype.element_ty)
        tl.store(ready + m * WIDE + k, x_k, mask=k < WIDE)
        total += x_k.to(tl.float32)
    tl.store(sums + m, tl.sum(total, 0))
    tl.store(sums + ROWS + m, 1.0 / shrink)


@triton.jit
def tile(pointers, mask):
    return tl.load(pointers) if mask is None else tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def gemm_kernel(
    x, sums, data, row, outliers, scale, zero, out, ROWS, M, N, K, J, stride, groups, group_size, magic,
    BITS: tl.constexpr, OFFSET: tl.constexpr, PAIRS: tl.constexpr, TO: tl.constexpr, BIAS: tl.constexpr,
    EVEN: tl.constexpr, MIXED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = 32 // (BITS & -BITS)
    dtype: tl.constexpr = x.dtype.element_ty
    split = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = n < N
    last_n = tl.minimum(n, N - 1)  # rows beyond the last one are read as the last and not stored
    rows = data + last_n.to(tl.int64)[:, None] * stride
    x_rows = x + m.to(tl.int64)[:, None] * (J * PARTS)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(split, tl.cdiv(J, BLOCK_K), SPLIT):
        at = (block * BLOCK_K + tl.arange(0, BLOCK_K))[None, :]
        if PAIRS:
            for part in tl.static_range(PARTS // 2):
                mask = None if EVEN else at < J
                both = pair(rows, at, mask, J, magic, part, BITS, TO)
                x_k, x_far = tile(x_rows + part * J + at, mask), tile(x_rows + (part + PARTS // 2) * J + at, mask)
                total = tl.dot(as_operand(both, dtype), tl.trans(x_k), total)
                total = tl.dot(as_operand(both >> 16, dtype), tl.trans(x_far), total)
        else:
            for part in tl.static_range(PARTS):
                mask = None if EVEN else at < J
                w = field(rows, at, mask, J, part, BITS).to(tl.float32)
                if scale is not None:
                    spot = part * J + (at if MIXED else block * BLOCK_K + tl.zeros([1, 1], tl.int32))
                    group = last_n[:, None] * groups + tl.minimum(spot, K - 1) // group_size
                    w -= OFFSET
                    if zero is not None:
                        w -= tl.load(zero + group)
                    w *= tl.load(scale + group)
                x_k = tile(x_rows + part * J + at, mask)
                total = tl.dot(w.to(dtype), tl.trans(x_k), total, input_precision="ieee")
    if scale is None and split == 0:
        total -= (OFFSET + BIAS) * tl.load(sums + m)[None, :]
    if outliers is not None:
        first = tl.load(outliers + n, mask=there, other=0)
        last = tl.load(outliers + n + 1, mask=there, other=0)
        count = tl.load(outliers + N)
        begin, end = tl.min(tl.where(there, first, count), 0), tl.max(last, 0)
        for entry in range(begin + split * OUTLIERS, end, SPLIT * OUTLIERS):
            e = entry + tl.arange(0, OUTLIERS)
            k = tl.load(outliers + N + 1 + e, mask=e < end, other=0)
            more = tl.load(outliers + N + 1 + count + e, mask=e < end, other=0).to(tl.float32)
            x_e = tl.load(x_rows + k[None, :])
            mine = (e[None, :] >= first[:, None]) & (e[None, :] < last[:, None])
            w = tl.where(mine, more[None, :], 0.0)
            if scale is not None:
                w *= tl.load(scale + n[:, None] * groups + (k // group_size)[None, :], mask=mine, other=0.0)
            # A level can be larger than any fp16, but not 1,024 times.
            total += tl.dot((w * 0.0009765625).to(dtype), tl.trans(x_e), input_precision="ieee") * 1024.0
    total *= tl.load(sums + ROWS + m)[None, :]
    target = out + m.to(tl.int64)[None, :] * N + n[:, None]
    keep = there[:, None] & (m < M)[None, :]
    if SPLIT > 1:
        tl.store(target + split.to(tl.int64) * M * N, total, mask=keep)
    else:
        step_n = tl.load(row + n, mask=there, other=0.0)
        tl.store(target, (total * step_n[:, None]).to(out.dtype.element_ty), mask=keep)


@triton.jit
def sum_kernel(partial, row, out, MN, N, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLIT):
        total += tl.load(partial + split * MN + i, mask=i < MN, other=0.0)
    total *= tl.load(row + i % N, mask=i < MN, other=0.0)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < MN)


def gemm(
    x: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, config: dict[str, int],
) -> Tensor:  # fmt: skip
    """y [M, N] = x [M, K] times the transposed matrix; x with contiguous rows, the rest as in `Packed`.

    `config` has block_n, block_m, block_k (words), split_k, num_warps and num_stages; for fp32 only split_k and
    num_warps count, the rest is as small as its registers want.
    """
    many, rows, each = x.shape[0], data.shape[0], part_columns(bits, columns)
    if x.dtype == torch.float32:  # tiles are made for 16 bits and tensor cores, which fp32 does not take
        config = config | {"block_n": 32, "block_m": 16, "block_k": 16, "num_stages": 1}
    block_n, block_m = config["block_n"], config["block_m"]
    block_k = fit_block(config["block_k"], each, group_size)
    split = min(config["split_k"], triton.cdiv(each, block_k))
    tiles = triton.cdiv(many, block_m)
    ready = torch.empty(tiles * block_m, parts(bits) * each, dtype=x.dtype, device=x.device)
    sums = torch.empty(2, tiles * block_m, device=x.device)
    out = torch.empty(many, rows, dtype=x.dtype, device=x.device)
    partial = torch.empty(split, many, rows, device=x.device) if split > 1 else out
    wide = ready.shape[1]
    prepare_kernel[(tiles * block_m,)](
        x, column, ready, sums, tiles * block_m, many, columns, x.stride(0), wide,
        BLOCK=min(4096, triton.next_power_of_2(wide)), num_warps=8,
    )  # fmt: skip
    found = (UNDER if bits < 8 else UNDER_BYTES).get(x.dtype) if scale is None else None
    magic, to, bias = found or (0, 0, 0)
    meta: dict[str, Any] = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    gemm_kernel[(triton.cdiv(rows, block_n), tiles, split)](
        ready, sums, data, row, outliers, scale, zero, partial, tiles * block_m, many, rows, columns, each,
        data.stride(0), 0 if scale is None else scale.shape[1], group_size or 1, magic, BITS=bits, OFFSET=offset,
        PAIRS=found is not None, TO=to, BIAS=bias, EVEN=each % block_k == 0,
        MIXED=bool(group_size) and (group_size % block_k or each % block_k) != 0,
        BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_K=block_k, SPLIT=split, OUTLIERS=16, **meta,
    )  # fmt: skip
    if split > 1:
        sum_kernel[(triton.cdiv(many * rows, 512),)](
            partial, row, out, many * rows, rows, SPLIT=split, BLOCK=512, num_warps=4
        )
    return out


def fit_block(wanted: int, each: int, group_size: int) -> int:
    """Words to take at once: at most `wanted`, hardly more than a part has, at least 16, within a group if that can be
    (columns of a part are not always a multiple of 16; then the kernel's blocks have more than one group)."""
    block = max(16, min(wanted, triton.next_power_of_2(each)))
    while group_size and (group_size % block or each % block) and block > 16:
        block //= 2
    return block
