"""Reading fields out of planes (`packing`), for all kernels that do."""

import triton
import triton.language as tl


@triton.jit
def moved(word, FROM: tl.constexpr, TO: tl.constexpr, PLANE: tl.constexpr):
    """Only the field of a word that begins at bit FROM, at bit TO."""
    if TO >= FROM:
        return (word << (TO - FROM)) & (((1 << PLANE) - 1) << TO)
    return (word >> (FROM - TO)) & (((1 << PLANE) - 1) << TO)


@triton.jit
def plane_of(
    rows, at, mask, J, START: tl.constexpr, PART: tl.constexpr, PIECES: tl.constexpr, PLANE: tl.constexpr,
    LOW: tl.constexpr,
):  # fmt: skip
    # What the mask leaves out may be anything: a masked field is finite, and the activations there are zeros.
    word = tl.load(rows + ((START + PART % PIECES) * J + at), mask=mask)
    return moved(word, PLANE * (PART // PIECES), LOW, PLANE)


@triton.jit
def field(rows, at, mask, J, PART: tl.constexpr, BITS: tl.constexpr):
    """The fields of columns PART · J + at, int32 [N, B].

    Args:
        rows: where rows begin in the planes, pointers [N, 1].
        at: places in a part, [1, B].
        mask: which of [N, B] to read, or None for all.
        J: words of a part.
    """
    PARTS: tl.constexpr = 32 // (BITS & -BITS)
    if BITS == 8:
        found = plane_of(rows, at, mask, J, 0, PART, PARTS // 4, 8, 0)
    elif BITS & 4:
        found = plane_of(rows, at, mask, J, 0, PART, PARTS // 8, 4, 0)
        if BITS & 2:
            found |= plane_of(rows, at, mask, J, PARTS // 8, PART, PARTS // 16, 2, 4)
    else:
        found = plane_of(rows, at, mask, J, 0, PART, PARTS // 16, 2, 0)
    if BITS & 1:
        found |= plane_of(rows, at, mask, J, BITS & 6, PART, 1, 1, BITS & 6)
    return found


@triton.jit
def pair_of(word, FROM: tl.constexpr, TO: tl.constexpr, PLANE: tl.constexpr):
    """The fields of a word that begin at bits FROM and FROM + 16, at bits TO and TO + 16, and nothing else."""
    MASK: tl.constexpr = ((1 << PLANE) - 1) * 65537
    return ((word << (TO - FROM)) if TO >= FROM else (word >> (FROM - TO))) & (MASK << TO)


@triton.jit
def pair(rows, at, mask, J, magic, PART: tl.constexpr, BITS: tl.constexpr, TO: tl.constexpr):
    """The fields of columns PART · J + at in the lower halves of int32 [N, B], in the upper ones those of the columns
    P / 2 parts behind, each times 2^TO; all or-ed with `magic`, which is an argument because a constant would be or-ed
    apart."""
    PARTS: tl.constexpr = 32 // (BITS & -BITS)
    if BITS == 8:
        found = pair_of(tl.load(rows + at, mask=mask), 8 * PART, TO, 8) | magic
    elif BITS & 4:
        high = tl.load(rows + ((PART % (PARTS // 8)) * J + at), mask=mask)
        found = pair_of(high, 4 * (PART // (PARTS // 8)), TO, 4) | magic
        if BITS & 2:
            crumb = tl.load(rows + ((PARTS // 8 + PART % (PARTS // 16)) * J + at), mask=mask)
            found |= pair_of(crumb, 2 * (PART // (PARTS // 16)), TO + 4, 2)
    else:
        high = tl.load(rows + ((PART % (PARTS // 16)) * J + at), mask=mask)
        found = pair_of(high, 2 * (PART // (PARTS // 16)), TO, 2) | magic
    if BITS & 1:
        bit = tl.load(rows + ((BITS & 6) * J + at), mask=mask)
        found |= pair_of(bit, PART, TO + (BITS & 6), 1)
    return found


@triton.jit
def any_plane(row, k, mask, J, START: tl.constexpr, PIECES: tl.constexpr, PLANE: tl.constexpr):
    part = k // J
    word = tl.load(row + ((START + part % PIECES) * J + k % J), mask=mask, other=0)
    return (word >> (PLANE * (part // PIECES))) & ((1 << PLANE) - 1)


@triton.jit
def any_field(row, k, mask, J, BITS: tl.constexpr):
    """The fields int32 of single columns k, anywhere in the rows that begin at `row`."""
    PARTS: tl.constexpr = 32 // (BITS & -BITS)
    if BITS == 8:
        found = any_plane(row, k, mask, J, 0, PARTS // 4, 8)
    elif BITS & 4:
        found = any_plane(row, k, mask, J, 0, PARTS // 8, 4)
        if BITS & 2:
            found |= any_plane(row, k, mask, J, PARTS // 8, PARTS // 16, 2) << 4
    else:
        found = any_plane(row, k, mask, J, 0, PARTS // 16, 2)
    if BITS & 1:
        found |= any_plane(row, k, mask, J, BITS & 6, 1, 1) << (BITS & 6)
    return found
