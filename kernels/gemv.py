"""One row of activations times a packed matrix.

A program owns a few rows of the matrix over all their columns, so that nothing is added across programs, nothing is
zeroed before, and one launch is all: at one token a layer's fixed cost is what separates the best kernels from memory
speed (about 18 µs of 27 for 4 bits at 8192² on an H100 in public figures). Tensor cores have nothing to do here.

What is left is to make few instructions of a weight, where the compiler's output says (no GPU was at hand) that more
than three of the logical kind cost more than memory does. Two fields half a word apart are put under 128 in bf16 at
once, all planes of them: the upper one is fp32 as it is, with the lower one as noise below 2^-9 of a step, the lower
one after a shift. What is too much is taken off at the end with the codes' offsets; a higher constant would save
shifts, but one large activation times it would drown the sum (with 2^12 one of 1,000 cost 1% of a row at 4 bits).
Where activations are fp32 or groups have scales each weight is made exact instead. Column steps multiply the
activations, row steps the sums.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantgolf_kernels.field import moved, pair_of
from quantgolf_kernels.packing import part_columns, parts

UPPER = tl.constexpr(128 + 0x4300 / 65536)  # what the upper of two fields has too much, the lower one's 128 included


@triton.jit
def value(word, INDEX: tl.constexpr):
    """Byte INDEX of words, fp32, and 256 more."""
    return (moved(word, 8 * INDEX, 15, 8) | (135 << 23)).to(tl.float32, bitcast=True)


@triton.jit
def exact(
    high, mid, low, scale, zero, group, OFFSET: tl.constexpr, BITS: tl.constexpr, PIECES: tl.constexpr,
    CRUMBS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Codes fp32 [N, B] of one part, times their groups' scales.

    `high`, `mid` and `low` are the words of the widest plane, of crumbs beside nibbles, and of bits, or None, moved so
    that the part is the INDEX-th of those that a piece of the widest plane holds.
    """
    PLANE: tl.constexpr = 8 if BITS == 8 else 4 if BITS & 4 else 2
    q = moved(high, PLANE * INDEX, 0, PLANE)
    if mid is not None:
        q |= moved(mid, 2 * INDEX * (PIECES // CRUMBS), 4, 2)
    if low is not None:
        q |= moved(low, INDEX * PIECES, BITS & 6, 1)
    w = q.to(tl.float32) - OFFSET
    if zero is not None:
        w -= tl.load(zero + group)[:, None]
    if scale is not None:
        w *= tl.load(scale + group)[:, None]
    return w


@triton.jit
def two(high, mid, low, magic, BITS: tl.constexpr, PIECES: tl.constexpr, CRUMBS: tl.constexpr, INDEX: tl.constexpr):
    """The fields of a part and of the one P / 2 behind it, in the halves of int32 [N, B], each under 128 in bf16."""
    PLANE: tl.constexpr = 4 if BITS & 4 else 2
    found = pair_of(high, PLANE * INDEX, 0, PLANE) | magic
    if mid is not None:
        found |= pair_of(mid, 2 * INDEX * (PIECES // CRUMBS), 4, 2)
    if low is not None:
        found |= pair_of(low, INDEX * PIECES, BITS & 6, 1)
    return found


@triton.jit
def activations(x, column, k, mask):
    """Activations times column steps, fp32."""
    if mask is None:
        x_k = tl.load(x + k, eviction_policy="evict_last").to(tl.float32)
        if column is not None:
            x_k *= tl.load(column + k, eviction_policy="evict_last")
    else:
        x_k = tl.load(x + k, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if column is not None:
            x_k *= tl.load(column + k, mask=mask, other=0.0, eviction_policy="evict_last")
    return x_k


@triton.jit
def gemv_kernel(
    x, data, row, column, outliers, scale, zero, out, N, K, J, stride, groups, group_size, magic,
    BITS: tl.constexpr, OFFSET: tl.constexpr, EVEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    OUTLIERS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = 32 // (BITS & -BITS)
    PIECES: tl.constexpr = PARTS // 4 if BITS == 8 else PARTS // 8 if BITS & 4 else PARTS // 16
    CRUMBS: tl.constexpr = PARTS // 16 if BITS & 2 else 1
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32 or scale is not None
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = n < N
    # Rows beyond the last one are read as the last: no mask in the loop, and nothing is stored for them.
    last_n = tl.minimum(n, N - 1)
    rows = data + last_n.to(tl.int64)[:, None] * stride
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    taken = tl.zeros([1, BLOCK_K], tl.float32)
    for start in range(0, J, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)[None, :]
        inside = None if EVEN else at < J
        for piece in range(PIECES):  # not unrolled: a piece's words and activations are as many as registers hold
            high = tl.load(rows + (piece * J + at), mask=inside)
            mid = None
            if BITS & 6 == 6:
                mid = tl.load(rows + ((PIECES + piece % CRUMBS) * J + at), mask=inside) >> (2 * (piece // CRUMBS))
            low = None
            if BITS & 1:
                low = tl.load(rows + ((BITS & 6) * J + at), mask=inside) >> piece
            if EXACT:
                for index in tl.static_range(PARTS // PIECES):
                    first = (index * PIECES + piece) * J
                    x_k = activations(x, column, first + at, None if EVEN else (at < J) & (first + at < K))
                    group = last_n * groups + tl.minimum(first + start, K - 1) // group_size
                    total += exact(high, mid, low, scale, zero, group, OFFSET, BITS, PIECES, CRUMBS, index) * x_k
            elif BITS < 8:
                for index in tl.static_range(PARTS // PIECES // 2):
                    first = (index * PIECES + piece) * J
                    x_k = activations(x, column, first + at, None if EVEN else (at < J) & (first + at < K))
                    first += PARTS // 2 * J
                    x_far = activations(x, column, first + at, None if EVEN else (at < J) & (first + at < K))
                    both = two(high, mid, low, magic, BITS, PIECES, CRUMBS, index)
                    total += (both << 16).to(tl.float32, bitcast=True) * x_k
                    total += both.to(tl.float32, bitcast=True) * x_far
                    taken += x_k * (OFFSET + 128) + x_far * (OFFSET + UPPER)
            else:
                for index in tl.static_range(PARTS // PIECES):
                    first = (index * PIECES + piece) * J
                    x_k = activations(x, column, first + at, None if EVEN else (at < J) & (first + at < K))
                    total += value(high, index) * x_k
                    taken += x_k * (OFFSET + 256)
    y = tl.sum(total, 1)
    if not EXACT:
        y -= tl.sum(tl.sum(taken, 1), 0)
    if outliers is not None:
        first = tl.load(outliers + n, mask=there, other=0)
        last = tl.load(outliers + n + 1, mask=there, other=0)
        count = tl.load(outliers + N)
        begin, end = tl.min(tl.where(there, first, count), 0), tl.max(last, 0)
        for entry in range(begin, end, OUTLIERS):
            e = entry + tl.arange(0, OUTLIERS)
            k = tl.load(outliers + N + 1 + e, mask=e < end, other=0)
            more = tl.load(outliers + N + 1 + count + e, mask=e < end, other=0).to(tl.float32)
            more *= tl.load(x + k, mask=e < end, other=0.0).to(tl.float32)
            if column is not None:
                more *= tl.load(column + k, mask=e < end, other=0.0)
            mine = (e[None, :] >= first[:, None]) & (e[None, :] < last[:, None])
            if scale is not None:
                group = n[:, None] * groups + (k // group_size)[None, :]
                y += tl.sum(tl.where(mine, more[None, :] * tl.load(scale + group, mask=mine, other=0.0), 0.0), 1)
            else:
                y += tl.sum(tl.where(mine, more[None, :], 0.0), 1)
    y *= tl.load(row + n, mask=there, other=0.0)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=there)


def gemv(
    x: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, config: dict[str, int],
) -> Tensor:  # fmt: skip
    """y [1, N] = x [1, K] times the transposed matrix; x contiguous, the rest as in `Packed`.

    `config` has block_n, block_k (words), num_warps and num_stages.
    """
    rows, each = data.shape[0], part_columns(bits, columns)
    out = torch.empty(1, rows, dtype=x.dtype, device=x.device)
    block = fit_block(config["block_k"], each, group_size)
    meta: dict[str, Any] = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    gemv_kernel[(triton.cdiv(rows, config["block_n"]),)](
        x, data, row, column, outliers, scale, zero, out, rows, columns, each, data.stride(0),
        0 if scale is None else scale.shape[1], group_size or 1, 0x43004300, BITS=bits, OFFSET=offset,
        EVEN=each % block == 0 and parts(bits) * each == columns, BLOCK_N=config["block_n"], BLOCK_K=block,
        OUTLIERS=32, **meta,
    )  # fmt: skip
    return out


def fit_block(wanted: int, each: int, group_size: int) -> int:
    """Words to take at once: at most `wanted`, hardly more than a part has, and within a group of columns."""
    block = min(wanted, triton.next_power_of_2(each))
    if group_size:
        while group_size % block or each % block:
            block //= 2
    return block
