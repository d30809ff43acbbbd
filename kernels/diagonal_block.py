"""Feedback across columns and rows at once, along the anti-diagonals of a matrix (see `quantgolf.solve.diagonals`).

Weights of an anti-diagonal do not depend on each other, but on all diagonals before. The trellis runs along them, down
the rows, and begins again every `restart` rows, so that a program has a segment of a diagonal: errors that reach its
weights, the path (`viterbi`), what it errs. The end of a launch is what all segments wait for; where a matrix has one
segment alone, a launch goes through as many diagonals as a block is wide. Errors of blocks farther away come as
products of tiles, once for each block, in IEEE fp32 as on the CPU.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantgolf_kernels.trellis_block import scratch, warps
from quantgolf_kernels.viterbi import WORD, keep_distances, rounded, viterbi

BLOCK = 32  # rows and columns of a block; errors of its own and of the block before it come one by one
ROWS = 32  # targets made at once


@triton.jit(do_not_specialize=["diagonal", "highest"])
def far_kernel(rest, side, eta, spread, lower, below, diagonal, highest, N, K, BLOCK: tl.constexpr):
    """Errors of all blocks but the nearest, for the blocks (i, j) with i + j = diagonal and i ≥ highest."""
    batch, high = tl.program_id(1).to(tl.int64), highest + tl.program_id(0)
    wide = diagonal - high
    i, j, within = high * BLOCK + tl.arange(0, BLOCK), wide * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    mask_i, mask_j = (i < N)[:, None], (j < K)[:, None]
    place = (batch * N + i[:, None]) * K + j[None, :]
    inside = mask_i & (j < K)[None, :]
    i, j = i.to(tl.int64)[:, None], j.to(tl.int64)[:, None]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, (wide - 1) * BLOCK, BLOCK):
        at = (start + within)[None, :]
        a = tl.load(eta + (batch * N + i) * K + at, mask=mask_i, other=0.0)
        b = tl.load(lower + (batch * K + j) * K + at, mask=mask_j, other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    tl.store(side + place, total, mask=inside)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, (high - 1) * BLOCK, BLOCK):
        at = (start + within)[None, :]
        a = tl.load(below + (batch * N + i) * N + at, mask=mask_i, other=0.0)
        b = tl.load(spread + (batch * K + j) * N + at, mask=mask_j, other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    tl.store(rest + place, tl.load(rest + place, mask=inside) - total, mask=inside)


@triton.jit
def near(factor, errors, at, mask, BLOCK: tl.constexpr):
    """Σ factor · errors from the block before the one that `at` lies in up to `at`: rows of pointers [ROWS]."""
    first = tl.maximum(at // BLOCK - 1, 0) * BLOCK
    place = first[:, None] + tl.arange(0, 2 * BLOCK)[None, :]
    inside = mask[:, None] & (place < at[:, None])
    a = tl.load(factor[:, None] + place, mask=inside, other=0.0)
    return tl.sum(a * tl.load(errors[:, None] + place, mask=inside, other=0.0), 1)


@triton.jit(do_not_specialize=["first", "last"])
def diagonals_kernel(
    rest, side, eta, spread, lower, below, row, column, ways, states, levels,
    wanted, along, found, targets, distances, words, origins, kinds, first, last, N, K, restart, room,
    STATES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    program = batch * tl.num_programs(0) + tl.program_id(0)
    rest, side, eta, levels = rest + batch * N * K, side + batch * N * K, eta + batch * N * K, levels + batch * N * K
    spread, lower, below = spread + batch * K * N, lower + batch * K * K, below + batch * N * N
    row, column = row + batch * N, column + batch * K
    wanted, along, found, targets = (
        wanted + program * room, along + program * room, found + program * room, targets + program * room
    )  # fmt: skip
    distances += program * (room + 1) * 4
    words += program * (room // WORD) * STATES
    origins += program * (room // WORD) * STATES
    kinds += program * (room // WORD) * STATES
    part = tl.arange(0, ROWS)
    for d in range(first, last):
        begin, end = tl.maximum(0, d - K + 1), tl.minimum(N, d + 1)
        segment = (begin // restart + tl.program_id(0)) * restart
        low, high = tl.maximum(begin, segment), tl.minimum(end, segment + restart)
        count = high - low
        for start in range(0, count, ROWS):
            rows = start + part
            inside = rows < count
            i = low + rows
            j = d - i
            wide_i, wide_j = i.to(tl.int64), j.to(tl.int64)
            place = wide_i * K + j
            a = tl.load(side + place, mask=inside, other=0.0) + near(
                lower + wide_j * K, eta + wide_i * K, j, inside, BLOCK
            )
            w = tl.load(rest + place, mask=inside, other=0.0) - near(
                below + wide_i * N, spread + wide_j * N, i, inside, BLOCK
            )
            w = w - tl.load(below + wide_i * (N + 1), mask=inside, other=1.0) * a
            tl.store(along + rows, a, mask=inside)
            tl.store(wanted + rows, w, mask=inside)
            step = tl.load(row + i, mask=inside, other=1.0) * tl.load(column + j, mask=inside, other=1.0)
            target = w.to(tl.float64) / step
            if STATES == 1:
                tl.store(found + rows, rounded(target).to(tl.int32), mask=inside)
            else:
                tl.store(targets + rows, target, mask=inside)
                keep_distances(distances, rows, target, inside)
        if STATES == 1:
            tl.debug_barrier()
        elif count > 0:
            # Diagonals d - K, d and d + K are one run: this one begins where that one ended. Two programs of a launch
            # may read and write that, so what even passes write odd ones read.
            place = batch * K + d % K
            turn = tl.num_programs(1) * K
            state = tl.load(states + (d // K + 1) % 2 * turn + place)
            state = tl.where(low == segment, 0, state)
            state = viterbi(targets, distances, words, origins, kinds, ways, found, state, count, STATES)
            if high == end:
                tl.store(states + d // K % 2 * turn + place, state)
        for start in range(0, count, ROWS):
            rows = start + part
            inside = rows < count
            i = low + rows
            j = d - i
            wide_i, wide_j = i.to(tl.int64), j.to(tl.int64)
            step = tl.load(row + i, mask=inside, other=1.0) * tl.load(column + j, mask=inside, other=1.0)
            level = tl.load(found + rows, mask=inside, other=0)
            error = tl.load(wanted + rows, mask=inside, other=0.0) - (level.to(tl.float64) * step).to(tl.float32)
            error = tl.math.div_rn(error, tl.load(below + wide_i * (N + 1), mask=inside, other=1.0))
            pivot = tl.load(lower + wide_j * (K + 1), mask=inside, other=1.0)
            tl.store(levels + wide_i * K + j, level, mask=inside)
            tl.store(eta + wide_i * K + j, tl.math.div_rn(error, pivot), mask=inside)
            tl.store(spread + wide_j * N + i, tl.load(along + rows, mask=inside, other=0.0) + error, mask=inside)
        tl.debug_barrier()


@dataclass(frozen=True)
class Diagonals:
    """B matrices of equal shape while they are solved; levels int32 [B, N, K].

    Attributes:
        sums: weights without the errors of far blocks above, η U of far blocks to the left, and η, each fp32 [B, N, K].
        spread: (η U)ᵀ, fp32 [B, K, N].
        factors: Uᵀ and Vᵀ.
        steps: of rows and columns.
        states: where runs have come to, [2, B, K].
        space: what programs write for themselves.
        segments: of all rows, `restart` each but the last; `room` is `restart` in whole words.
    """

    sums: tuple[Tensor, Tensor, Tensor]
    spread: Tensor
    factors: tuple[Tensor, Tensor]
    steps: tuple[Tensor, Tensor]
    ways: Tensor
    states: Tensor
    levels: Tensor
    space: tuple[Tensor, ...]
    segments: int
    restart: int
    room: int

    @classmethod
    def begin(
        cls, weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int
    ) -> "Diagonals":
        """Nothing solved yet; the arguments are those of `quantgolf::solve_diagonals`."""
        batch, rows, columns = weight.shape
        device, restart = weight.device, min(restart, rows)
        segments, room = triton.cdiv(rows, restart), triton.cdiv(restart, WORD.value) * WORD.value
        size, states = segments * batch * room, len(ways)
        rest = weight.clone(memory_format=torch.contiguous_format)
        return cls(
            (rest, torch.zeros_like(rest), torch.zeros_like(rest)),
            torch.zeros(batch, columns, rows, device=device),
            (upper.mT.contiguous(), across.mT.contiguous()),
            (row.contiguous(), column.contiguous()),
            ways,
            torch.zeros(2, batch, columns, dtype=torch.int32, device=device),
            torch.empty(rest.shape, dtype=torch.int32, device=device),
            (
                torch.empty(size, device=device), torch.empty(size, device=device),
                torch.empty(size, dtype=torch.int32, device=device), *scratch(segments * batch, room, states, device),
            ),
            segments, restart, room,
        )  # fmt: skip

    def far(self, diagonal: int) -> None:
        """Adds up for the blocks (i, j) with i + j = diagonal what blocks two above or two to the left err."""
        batch, rows, columns = self.levels.shape
        highest = max(0, diagonal - triton.cdiv(columns, BLOCK) + 1)
        lowest = min(triton.cdiv(rows, BLOCK), diagonal + 1)
        if diagonal > 1 and lowest > highest:
            far_kernel[(lowest - highest, batch)](
                *self.sums, self.spread, *self.factors, diagonal, highest, rows, columns,
                BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip

    def between(self, first: int, last: int) -> None:
        """Solves the diagonals from `first` to before `last`, no more than one where there are several segments."""
        batch, rows, columns = self.levels.shape
        begin, end = max(0, first - columns + 1), min(rows, first + 1)
        here = 1 if self.segments == 1 else triton.cdiv(end, self.restart) - begin // self.restart
        diagonals_kernel[(here, batch)](
            *self.sums, self.spread, *self.factors, *self.steps, self.ways, self.states, self.levels, *self.space,
            first, last, rows, columns, self.restart, self.room,
            STATES=len(self.ways), ROWS=ROWS, BLOCK=BLOCK, num_warps=warps(len(self.ways)), enable_fp_fusion=False,
        )  # fmt: skip


def launch_diagonals(
    weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int
) -> Tensor:
    """Levels int32 [B, N, K] of whole matrices: what `quantgolf::solve_diagonals` does, by the kernels."""
    _, rows, columns = weight.shape
    solve = Diagonals.begin(weight, upper, across, row, column, ways, restart)
    at_once = BLOCK if solve.segments == 1 else 1
    for diagonal in range(triton.cdiv(columns, BLOCK) + triton.cdiv(rows, BLOCK)):
        # What lies two blocks above these or two to the left of them is decided by now.
        solve.far(diagonal)
        end = min((diagonal + 1) * BLOCK, rows + columns - 1)  # the last blocks end on the diagonal behind theirs
        for first in range(diagonal * BLOCK, end, at_once):
            solve.between(first, min(first + at_once, end))
    return solve.levels
