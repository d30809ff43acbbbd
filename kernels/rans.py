"""rANS on a GPU: all lanes of a stream are the elements of one tensor, a step takes one symbol of each.

Lanes share one sequence of words, in which every step depends on how many the step before took. So a stream is one
program, however long: it fills one processor of the chip, and streams that are independent (codes of fixed widths, one
a matrix) are programs of one launch. A step is a look-up of the slot and of its symbol's share, the new state, one scan
that says at once which lane takes which word and which escape, and the next state of the trellis.

Words of a step are loaded before it is known who takes them, which keeps their latency out of the chain of dependent
loads, and handed out by `tl.gather`: no lane can ask for one beyond the loaded ones, whatever the stream says. In the
common case symbols lie step after step in memory, all lanes of a step side by side; `level_entries` and `place_levels`
turn that order into the one matrices have, on the whole chip.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_LANES = 2048  # that are kept in registers; more take turns
LEAST_LANES = 32
TILE = 32
PRECISION = tl.constexpr(14)
SLOTS = tl.constexpr(1 << 14)
LOWEST = tl.constexpr(1 << 16)
ZERO = tl.constexpr(127)
LAST = tl.constexpr(254)


@triton.jit
def _decode_step(
    x, machine, entry, there, words, word, word_end, excess, escaped, escapes, shares, slots, feedback, forward, bad,
    PLAIN: tl.constexpr, SCALAR: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One symbol of each lane that is `there`: new states and machines, symbols or levels, places in the sequences.

    Lanes that are not look up slots as well, which are as good as any, and change nothing.
    """
    lane = tl.arange(0, LANES)
    left = tl.minimum(word_end - word, LANES).to(tl.int32)
    window = tl.load(words + word + lane, mask=lane < left, other=0)
    context = tl.zeros([LANES], tl.int32)
    odd = context
    if not PLAIN:
        machine = machine & ((entry & 1) - 1)
        odd = machine & 1
        context = (entry & 254) | odd
    slot = x & (SLOTS - 1)
    symbol = tl.load(slots + (context * SLOTS + slot.to(tl.int32))).to(tl.int32)
    share = tl.load(shares + (context * 256 + symbol)).to(tl.uint32, bitcast=True)
    low = (share & 0xFFFF) * (x >> PRECISION) + slot - (share >> 16)
    refilled = there & (low < LOWEST)
    taken = refilled.to(tl.int32)
    if not PLAIN:
        escape = there & (((symbol + 2) & 255) < 3)  # 254, 0, and 255, which nothing encodes
        taken += tl.where(escape, 1 << 16, 0)
    before = tl.cumsum(taken, 0) - taken
    total = tl.sum(taken, 0)
    given = tl.gather(window, before & 0xFFFF, 0).to(tl.uint32) & 0xFFFF
    x = tl.where(there, tl.where(refilled, (low << 16) | given, low), x)
    found = symbol
    if not PLAIN:
        k = symbol - ZERO
        if (total >> 16) > 0:
            mine = escaped + (before >> 16)
            more = tl.load(excess + mine, mask=escape & (mine < escapes), other=0)
            # The largest that levels in int32 have room for: of k where there is one state, and else of about half k.
            largest = odd * 0 + (2**31 - 1 - ZERO) if SCALAR else odd + (2**30 - 1 - ZERO)
            bad |= (escape & ((more > largest) | (symbol > LAST))).to(tl.int32)
            more = tl.minimum(more, largest)
            k = tl.where(escape, tl.where(k > 0, k + more, k - more), k)
        found = k
        if not SCALAR:
            found = tl.where(k == 0, 0, 2 * k - tl.where(k > 0, odd, -odd))
            machine = (machine >> 1) ^ (odd * feedback) ^ ((k & 1) * forward)
    return x, machine, found, word + (total & 0xFFFF), escaped + (total >> 16), bad


@triton.jit
def _length(starts, lane, lanes):
    """Weights of these lanes, which end where the next one starts; 0 where there is no such lane."""
    end = tl.load(starts + lane + 1, mask=lane < lanes, other=0)
    return (end - tl.load(starts + lane, mask=lane < lanes, other=0)).to(tl.int32)


@triton.jit(do_not_specialize=["word_end", "escapes", "lanes", "feedback", "forward"])
def rans_kernel(
    words, excess, entries, streams, starts, shares, slots, states, machines, out, ends,
    word_end, escapes, lanes, stride, feedback, forward,
    PLAIN: tl.constexpr, SCALAR: tl.constexpr, ASIDE: tl.constexpr, LANES: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """A program decodes a stream; with turns it writes over `states` and `machines`. Lanes lie side by side if ASIDE,
    and then all of `out` is written."""
    stream = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    word, start, total = stream * 0, stream * 0, stream * 0
    if PLAIN:
        streams += stream * 6
        word, word_end, states = tl.load(streams), tl.load(streams + 1), states + tl.load(streams + 2)
        lanes, start, total = tl.load(streams + 3).to(tl.int32), tl.load(streams + 4), tl.load(streams + 5)
        stride = lanes
        slots += stream << PRECISION
        shares += stream << 8
        steps = ((total + lanes - 1) // lanes).to(tl.int32)
    else:
        most, turn = tl.zeros([LANES], tl.int32), lanes * 0
        while turn < lanes:
            most = tl.maximum(most, _length(starts, turn + lane, lanes))
            turn += LANES
        steps = tl.max(most, 0)
    bad = tl.zeros([LANES], tl.int32)
    strays = tl.zeros([LANES], tl.int32)
    escaped, t, row = stream * 0, lanes * 0, start
    if not TURNS:
        owned = lane < lanes
        x = tl.load(states + lane, mask=owned, other=0).to(tl.uint32, bitcast=True)
        machine = tl.zeros([LANES], tl.int32)
        coming = machine
        if PLAIN:
            count = tl.where(owned, ((total - lane + lanes - 1) // lanes).to(tl.int32), 0)
        else:
            count = _length(starts, lane, lanes)
            if ASIDE:
                coming = tl.load(entries + lane, mask=lane < tl.where(steps > 0, stride, 0), other=0).to(tl.int32)
            else:
                at = tl.load(starts + lane, mask=owned, other=0)
                coming = tl.load(entries + at, mask=count > 0, other=0).to(tl.int32)
        while t < steps:
            there = t < count
            entry = coming
            if not PLAIN:  # of the next step: it does not depend on this one
                if ASIDE:
                    after = tl.where(t + 1 < steps, stride, 0)
                    coming = tl.load(entries + (row + stride) + lane, mask=lane < after, other=0).to(tl.int32)
                else:
                    coming = tl.load(entries + at + 1, mask=t + 1 < count, other=0).to(tl.int32)
            x, machine, found, word, escaped, bad = _decode_step(
                x, machine, entry, there, words, word, word_end, excess, escaped, escapes, shares, slots, feedback,
                forward, bad, PLAIN, SCALAR, LANES,
            )  # fmt: skip
            found = found.to(out.dtype.element_ty)
            if PLAIN:
                tl.store(out + row + lane, found, mask=there)
            elif ASIDE:
                tl.store(out + row + lane, tl.where(there, found, 0), mask=lane < stride)
            else:
                tl.store(out + at, found, mask=there)
                at += 1
            row += stride
            t += 1
        strays = (owned & (x != LOWEST)).to(tl.int32)
    else:
        while t < steps:
            turn = lanes * 0
            while turn < lanes:
                mine = turn + lane
                owned = mine < lanes
                entry = tl.zeros([LANES], tl.int32)
                machine = entry
                at = row + mine
                if PLAIN:
                    there = owned & (at < start + total)
                else:
                    there = t < _length(starts, mine, lanes)
                    if not ASIDE:
                        at = tl.load(starts + mine, mask=there, other=0) + t
                    machine = tl.load(machines + mine, mask=there, other=0)
                    entry = tl.load(entries + at, mask=there, other=0).to(tl.int32)
                x = tl.load(states + mine, mask=there, other=0).to(tl.uint32, bitcast=True)
                x, machine, found, word, escaped, bad = _decode_step(
                    x, machine, entry, there, words, word, word_end, excess, escaped, escapes, shares, slots, feedback,
                    forward, bad, PLAIN, SCALAR, LANES,
                )  # fmt: skip
                tl.store(out + at, found.to(out.dtype.element_ty), mask=there)
                tl.store(states + mine, x.to(tl.int32, bitcast=True), mask=there)
                if not PLAIN:
                    tl.store(machines + mine, machine, mask=there)
                turn += LANES
            tl.debug_barrier()  # a thread may load what another one stored
            row += stride
            t += 1
        turn = lanes * 0
        while turn < lanes:
            x = tl.load(states + turn + lane, mask=turn + lane < lanes, other=LOWEST)
            strays += (x != LOWEST).to(tl.int32)
            turn += LANES
    ends += stream * 4
    tl.store(ends, word)
    tl.store(ends + 1, escaped)
    tl.store(ends + 2, tl.sum(bad, 0).to(tl.int64))
    tl.store(ends + 3, tl.sum(strays, 0).to(tl.int64))


@triton.jit
def _last_at_or_below(values, count, wanted):
    """The last index whose value, of `count` ascending ones, is at most `wanted`; the first is."""
    low = (wanted * 0).to(tl.int32)
    span = count
    while span > 1:
        half = span >> 1
        middle = low + half
        inside = middle < count
        low = tl.where(inside & (tl.load(values + middle, mask=inside, other=0) <= wanted), middle, low)
        span -= half
    return low


@triton.jit(do_not_specialize=["lanes", "stride", "count", "restart"])
def entries_kernel(
    starts, matrices, rows, columns, class_at, out, lanes, stride, count, restart,
    ASIDE: tl.constexpr, STEPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(lanes, LANES)
    lane = (tl.program_id(0) % across) * LANES + tl.arange(0, LANES)[None, :]
    t = (tl.program_id(0) // across) * STEPS + tl.arange(0, STEPS)[:, None]
    owned = lane < lanes
    there = t < _length(starts, lane, lanes)
    place = tl.load(starts + lane, mask=owned, other=0) + t
    of = matrices + _last_at_or_below(matrices, count, place)
    within = place - tl.load(of, mask=there, other=0)
    n, k = tl.load(of + count, mask=there, other=1), tl.load(of + 2 * count, mask=there, other=1)
    d, i = within // n, within % n
    j = tl.where(tl.load(of + 5 * count, mask=there, other=0) != 0, (d + (k - i % k)) % k, d)
    spread = tl.load(columns + tl.load(of + 4 * count, mask=there, other=0) + j, mask=there, other=0)
    spread -= tl.load(rows + tl.load(of + 3 * count, mask=there, other=0) + i, mask=there, other=0)
    entry = tl.load(class_at + spread, mask=there, other=0).to(tl.int32) * 2 + tl.where(i % restart == 0, 1, 0)
    at = t.to(tl.int64) * stride + lane if ASIDE else place
    tl.store(out + at, entry.to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=["lanes", "stride", "base"])
def place_kernel(
    levels, starts, out, lanes, stride, base, N, K,
    ASIDE: tl.constexpr, DIAGONAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(K, COLUMNS)
    i = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)[:, None]
    j = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    there = (i < N) & (j < K)
    d = (i + j) % K if DIAGONAL else j
    place = base + d.to(tl.int64) * N + i
    lane = _last_at_or_below(starts, lanes, place)
    at = (place - tl.load(starts + lane)) * stride + lane if ASIDE else place
    tl.store(out + i.to(tl.int64) * K + j, tl.load(levels + at, mask=there, other=0), mask=there)


def decode_levels(
    words: Tensor, excess: Tensor, entries: Tensor, starts: Tensor, stride: int, shares: Tensor,
    slots: Tensor, feedback: int, forward: int, states: Tensor, most_lanes: int = MOST_LANES,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Levels and `ends` as `rans_op.rans_levels`, whose arguments these are; beyond `most_lanes` lanes take turns."""
    lanes, turns = _lanes(states.shape[0], most_lanes)
    levels = torch.zeros_like(entries, dtype=torch.int32)
    ends = entries.new_empty(1, 4, dtype=torch.int64)
    rans_kernel[(1,)](
        words, excess, entries, None, starts, shares, slots, states.clone() if turns else states,
        torch.zeros_like(states) if turns else None, levels, ends, words.shape[0], excess.shape[0], states.shape[0],
        stride, feedback, forward, PLAIN=False, SCALAR=feedback == 0 and forward == 0, ASIDE=stride > 0,
        LANES=lanes, TURNS=turns, num_warps=_warps(lanes), num_stages=1,
    )  # fmt: skip
    return levels, ends


def decode_streams(
    words: Tensor, streams: Tensor, shares: Tensor, slots: Tensor, states: Tensor, count: int, most: int,
    most_lanes: int = MOST_LANES,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Symbols and `ends` as `rans_op.rans_streams`, whose arguments these are."""
    lanes, turns = _lanes(most, most_lanes)
    symbols, ends = slots.new_zeros(count), streams.new_empty(streams.shape[0], 4)
    rans_kernel[(streams.shape[0],)](
        words, None, None, streams, None, shares, slots, states.clone() if turns else states, None, symbols, ends,
        0, 0, 0, 0, 0, 0, PLAIN=True, SCALAR=True, ASIDE=True, LANES=lanes, TURNS=turns,
        num_warps=_warps(lanes), num_stages=1,
    )  # fmt: skip
    return symbols, ends


def fill_entries(
    starts: Tensor, matrices: Tensor, rows: Tensor, columns: Tensor, class_at: Tensor, restart: int, stride: int,
    size: int, steps: int,
) -> Tensor:  # fmt: skip
    """Entries as `rans_op.level_entries`, whose arguments these are."""
    out, lanes = class_at.new_zeros(size), starts.shape[0] - 1
    grid = (triton.cdiv(lanes, TILE) * triton.cdiv(steps, TILE),)
    entries_kernel[grid](
        starts, matrices, rows, columns, class_at, out, lanes, stride, matrices.shape[1], restart,
        ASIDE=stride > 0, STEPS=TILE, LANES=TILE, num_warps=4,
    )  # fmt: skip
    return out


def place(levels: Tensor, starts: Tensor, stride: int, base: int, rows: int, columns: int, diagonal: bool) -> Tensor:
    """A matrix as `rans_op.place_levels`, whose arguments these are."""
    out = levels.new_empty(rows, columns)
    grid = (triton.cdiv(rows, TILE) * triton.cdiv(columns, TILE),)
    place_kernel[grid](
        levels, starts, out, starts.shape[0] - 1, stride, base, rows, columns,
        ASIDE=stride > 0, DIAGONAL=diagonal, ROWS=TILE, COLUMNS=TILE, num_warps=4,
    )  # fmt: skip
    return out


def _lanes(count: int, most: int) -> tuple[int, bool]:
    """Lanes decoded at once, and whether others have to wait."""
    lanes = min(most, max(LEAST_LANES, triton.next_power_of_2(count)))
    return lanes, count > lanes


def _warps(lanes: int) -> int:
    # Instructions of a step on each of four schedulers, sm_90: 2048 lanes in 16, 8 and 4 warps 1816, 1536 and 1607; 128
    # in 1 and 4 warps 420 and 160.
    return min(lanes // 32, 4 if lanes <= 512 else 8)
