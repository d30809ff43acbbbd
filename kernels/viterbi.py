"""Dependent quantization (see `quantgolf.solve.trellis`) of a run of targets by one program: the exact Viterbi search.

Costs are fp64, as on the CPU, and every operation is the CPU's, in its order and rounded alike: the same targets have
the same levels, to the last tie. fp32 would be half the traffic and no fewer steps, and what bounds a run is a step's
latency; summed over 256 rows it confuses two paths in 100,000 decisions or so, and whatever follows in those rows.

A run takes three passes. Forward, a thread a state: a step gathers the costs of the two ways into each state, keeps the
less, and notes the way in a bit of a word of 32 rows. Back, from all states of all words at once, so that only 32 steps
come one after another, not as many as there are rows: where each path was at the word's begin, and its 32 quantizers
and labels, two bits each. Last, word by word from the end, the one path that won.
"""

import triton
import triton.language as tl

WORD = tl.constexpr(32)  # rows whose decisions are a word
TRACED = tl.constexpr(8)  # words traced back at once
TO_INTEGER = tl.constexpr(6755399441055744.0)  # 1.5 · 2⁵²: adding it leaves an integer, halves to even


@triton.jit
def rounded(x):
    """The nearest integer of fp64 numbers below 2⁵¹, halves to even."""
    return (x + TO_INTEGER) - TO_INTEGER


@triton.jit
def nearest(target):
    """Of each quantizer and label, 2 · odd + label, the level nearest to fp64 targets."""
    magnitude = tl.abs(target)
    sign = tl.where(target >= 0, 1.0, -1.0)
    three = tl.maximum(4.0 * rounded((magnitude - 3.0) * 0.25) + 3.0, 3.0)
    one = tl.maximum(4.0 * rounded((magnitude - 1.0) * 0.25) + 1.0, 1.0)
    return (
        4.0 * rounded(target * 0.25),
        4.0 * rounded((target - 2.0) * 0.25) + 2.0,
        tl.where(tl.abs(magnitude - three) < magnitude, sign * three, 0.0),
        sign * one,
    )


@triton.jit
def keep_distances(distances, rows, target, mask):
    """Squared distances of targets of rows to their nearest levels, four a row."""
    a, b, c, d = nearest(target)
    tl.store(distances + 4 * rows, (target - a) * (target - a), mask=mask)
    tl.store(distances + 4 * rows + 1, (target - b) * (target - b), mask=mask)
    tl.store(distances + 4 * rows + 2, (target - c) * (target - c), mask=mask)
    tl.store(distances + 4 * rows + 3, (target - d) * (target - d), mask=mask)


@triton.jit
def forward(distances, words, ways, state, count, STATES: tl.constexpr):
    """Decisions of a run begun in `state`, in bits; returns the state its best path ends in."""
    s, both = tl.arange(0, STATES), tl.arange(0, 2 * STATES)
    way = tl.load(ways + both // 2) >> (16 * (both % 2))  # both ways into a state are one thread's
    before, kind = way & 255, (way >> 8) & 3
    cost = tl.where(s == state, 0.0, float("inf")).to(tl.float64)
    ahead = tl.load(distances + kind)  # a row's distances are under way while the row before it is decided
    for word in range(tl.cdiv(count, WORD)):
        bits = tl.zeros([STATES], tl.int32)
        for bit in range(tl.minimum(count - word * WORD, WORD)):
            distance = ahead
            ahead = tl.load(distances + 4 * (word * WORD + bit + 1) + kind)
            reached = tl.reshape(tl.gather(cost, before, 0) + distance, [STATES, 2])
            cost, second = tl.min(reached, 1, return_indices=True, return_indices_tie_break_left=True)
            bits |= second.to(tl.int32) << bit
        tl.store(words + word * STATES + s, bits)
    return tl.argmin(cost, 0, tie_break_left=True)


@triton.jit
def trace(words, origins, kinds, ways, count, STATES: tl.constexpr):
    """Of each word, and each state behind it: the state before it, and the quantizers and labels between."""
    s = tl.arange(0, STATES)[None, :]
    for first in range(0, tl.cdiv(count, WORD), TRACED):
        word = first + tl.arange(0, TRACED)[:, None]
        at, seen = s + tl.zeros_like(word), (s + word).to(tl.int64) * 0
        for back in range(WORD):
            bit = WORD - 1 - back
            live = word * WORD + bit < count
            decided = tl.load(words + word * STATES + at, mask=live & (at >= 0), other=0)
            way = tl.load(ways + at) >> (16 * ((decided >> bit) & 1))
            seen = tl.where(live, seen | (((way >> 8) & 3).to(tl.int64) << (2 * bit)), seen)
            at = tl.where(live, way & 255, at)
        mask = (word * WORD < count) & (s >= 0)
        tl.store(origins + word * STATES + s, at, mask=mask)
        tl.store(kinds + word * STATES + s, seen, mask=mask)


@triton.jit
def viterbi(targets, distances, words, origins, kinds, ways, levels, state, count, STATES: tl.constexpr):
    """Fills levels int32 [count] of targets fp64 [count] along the best path from `state`; returns where it ends.

    Args:
        distances: of `keep_distances`, fp64, with room for one row more.
        words, origins, kinds: int32, int32 and int64 [words of 32 rows, STATES], overwritten.
        ways: int32 [STATES], of each state the two ways into it in 16 bits each: the state before, and from bit 8 on
            2 · odd + label of the level.

    What the program's threads wrote is visible to all of them before and after.
    """
    tl.debug_barrier()
    end = forward(distances, words, ways, state, count, STATES)
    tl.debug_barrier()
    trace(words, origins, kinds, ways, count, STATES)
    tl.debug_barrier()
    at, bit, last = end, tl.arange(0, WORD), tl.cdiv(count, WORD) - 1
    for back in range(last + 1):
        place = (last - back) * STATES + at
        rows = (last - back) * WORD + bit
        target = tl.load(targets + rows, mask=rows < count, other=0.0)
        kind = (tl.load(kinds + place) >> (2 * bit).to(tl.int64)) & 3
        at = tl.load(origins + place)
        a, b, c, d = nearest(target)
        level = tl.where(kind == 0, a, tl.where(kind == 1, b, tl.where(kind == 2, c, d)))
        tl.store(levels + rows, level.to(tl.int32), mask=rows < count)
    tl.debug_barrier()
    return end
