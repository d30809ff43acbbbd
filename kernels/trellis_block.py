"""GPTQ inside a block of columns whose levels are paths of a trellis down the rows.

A column can begin when all those before it are decided, a path when all targets of its rows are there; but the trellis
begins again every `restart` rows, and a segment knows of no other. So a program has one segment and goes through the
block's columns: errors of the columns before, the path (`viterbi`), what it erred. Everything is fp64, as on the CPU.
Blocks are short (`COLUMNS`): inside them a column sums errors that lie in L2, behind them a matrix product does it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantgolf_kernels.viterbi import WORD, keep_distances, rounded, viterbi

ROWS = 128  # targets made at once
BEFORE = 8  # earlier columns whose errors are loaded at once


@triton.jit
def trellis_block_kernel(
    weight, upper, row, column, ways, levels, errors, targets, distances, words, origins, kinds,
    N, C, restart, room, weight_batch, weight_column, upper_batch, upper_row,
    STATES: tl.constexpr, ROWS: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    segment, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    program = batch * tl.num_programs(0) + segment
    first = segment * restart
    count = tl.minimum(N - first, restart).to(tl.int32)
    weight += batch * weight_batch + first
    upper += batch * upper_batch
    row += batch * N + first
    column += batch * C
    levels += batch * C * N + first
    errors += batch * C * N + first
    targets += program * room
    distances += program * (room + 1) * 4
    words += program * (room // WORD) * STATES
    origins += program * (room // WORD) * STATES
    kinds += program * (room // WORD) * STATES
    part, before = tl.arange(0, ROWS), tl.arange(0, BEFORE)
    for j in range(C):
        size, place = tl.load(column + j), tl.full([], 1, tl.int64) * j * N
        for start in range(0, count, ROWS):
            rows = start + part
            inside = rows < count
            fed = tl.zeros([BEFORE, ROWS], tl.float64)
            for earlier in range(0, j, BEFORE):
                k = earlier + before
                factor = tl.load(upper + k * upper_row + j, mask=k < j, other=0.0).to(tl.float64)
                error = tl.load(
                    errors + k.to(tl.int64)[:, None] * N + rows[None, :], mask=(k < j)[:, None] & inside[None, :],
                    other=0.0,
                )  # fmt: skip
                fed += factor[:, None] * error
            wanted = tl.load(weight + j * weight_column + rows, mask=inside, other=0.0) - tl.sum(fed, 0)
            target = wanted / (tl.load(row + rows, mask=inside, other=1.0) * size)
            tl.store(errors + place + rows, wanted, mask=inside)
            if STATES == 1:
                tl.store(levels + place + rows, rounded(target).to(tl.int32), mask=inside)
            else:
                tl.store(targets + rows, target, mask=inside)
                keep_distances(distances, rows, target, inside)
        if STATES == 1:
            tl.debug_barrier()
        else:
            viterbi(targets, distances, words, origins, kinds, ways, levels + place, 0, count, STATES)
        pivot = tl.load(upper + j * upper_row + j).to(tl.float64)
        for start in range(0, count, ROWS):
            rows = start + part
            inside = rows < count
            step = tl.load(row + rows, mask=inside, other=1.0) * size
            level = tl.load(levels + place + rows, mask=inside, other=0).to(tl.float64)
            wanted = tl.load(errors + place + rows, mask=inside, other=0.0)
            tl.store(errors + place + rows, (wanted - level * step) / pivot, mask=inside)
        tl.debug_barrier()


def launch_trellis_block(
    weight: Tensor, upper: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int
) -> tuple[Tensor, Tensor]:
    """Levels int32 and errors fp64 [B, C, N] of a block of columns: what `quantgolf::trellis_block` does, by the
    kernel."""
    batch, columns, rows = weight.shape
    levels = torch.empty(weight.shape, dtype=torch.int32, device=weight.device)
    errors = torch.empty(weight.shape, dtype=torch.float64, device=weight.device)
    row, column, restart = row.contiguous(), column.contiguous(), min(restart, rows)
    segments, room, states = triton.cdiv(rows, restart), triton.cdiv(restart, WORD.value) * WORD.value, len(ways)
    trellis_block_kernel[(segments, batch)](
        weight, upper, row, column, ways, levels, errors, *scratch(segments * batch, room, states, weight.device),
        rows, columns, restart, room, weight.stride(0), weight.stride(1), upper.stride(0), upper.stride(1),
        STATES=states, ROWS=ROWS, BEFORE=BEFORE, num_warps=warps(states), enable_fp_fusion=False,
    )  # fmt: skip
    return levels, errors


def scratch(programs: int, room: int, states: int, device: torch.device) -> tuple[Tensor, ...]:
    """Targets, distances, words, origins and kinds of `viterbi` for runs of up to `room` rows, a multiple of 32."""
    words = programs * room // WORD.value * states
    return (
        torch.empty(programs * room, dtype=torch.float64, device=device),
        torch.empty(programs * (room + 1) * 4, dtype=torch.float64, device=device),
        torch.empty(words, dtype=torch.int32, device=device),
        torch.empty(words, dtype=torch.int32, device=device),
        torch.empty(words, dtype=torch.int64, device=device),
    )


def warps(states: int) -> int:
    """A thread a state, but enough of them for what is done by rows."""
    return max(4, states // 32)
