"""The inner loops of the solvers on a GPU as ops: a block of columns of GPTQ, scalar or along a trellis down the rows,
and whole matrices whose errors go across columns and rows.

On a CPU the solvers have loops of their own (`quantgolf.solve`), compiled for it. The bodies here are plain torch, for
any device and as slow as that is: they say what the kernels have to equal.
"""

import torch
from torch import Tensor


@torch.library.custom_op("quantgolf::gptq_block", mutates_args=())
def gptq_block(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    """Codes and errors of GPTQ in a block of columns, of B matrices of equal shape; computed in fp32.

    Args:
        weight: the block's weights after all errors of blocks before, fp32 or fp64 [B, N, C], C at most 128.
        upper: U of (H + damping)⁻¹ = Uᵀ U, its rows and columns that belong to the block, fp32 or fp64 [B, C, C].
        step: of G groups of columns, fp32 [B, G, N], more than 0.
        zero: code of each group that stands for 0, int8 [B, G, N], from `lowest` to `highest`.
        group: of each column, int32 [B, C], from 0 to G - 1.
        lowest, highest: codes are integers from one to the other, 0 among them, within int8.

    Returns:
        Codes int8 [B, N, C], and (weight - (code - zero) · step) / U_jj of each weight as it was when its turn came,
        in the weight's dtype [B, N, C].

    Raises:
        ValueError: other shapes, dtypes or devices, or columns that do not lie side by side.
    """
    _check_gptq(weight, upper, step, zero, group, lowest, highest)
    rest, triangle = weight.float().clone(), upper.float()
    codes, errors = torch.empty(weight.shape, dtype=torch.int8, device=weight.device), torch.empty_like(rest)
    batch = torch.arange(len(weight), device=weight.device)
    for j in range(weight.shape[2]):
        size, centre = step[batch, group[:, j], :, None], zero[batch, group[:, j], :, None].float()
        now, pivot = rest[:, :, j, None], triangle[:, j, j, None, None]
        level = (now / size).round().clamp(lowest - centre, highest - centre)
        error = (now - level * size) * (1 / pivot)
        codes[:, :, j, None], errors[:, :, j, None] = (level + centre).to(torch.int8), error
        rest[:, :, j + 1 :] -= error * triangle[:, j, None, j + 1 :]
    return codes, errors.to(weight.dtype)


@gptq_block.register_fake
def _(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    _check_gptq(weight, upper, step, zero, group, lowest, highest)
    return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(weight.shape)


@gptq_block.register_kernel("cuda")
def _(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    from quantgolf_kernels.gptq_block import launch_gptq_block

    _check_gptq(weight, upper, step, zero, group, lowest, highest)
    with torch.cuda.device(weight.device):
        return launch_gptq_block(weight, upper, step, zero, group, lowest, highest)


@torch.library.custom_op("quantgolf::trellis_block", mutates_args=())
def trellis_block(
    weight: Tensor, upper: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int
) -> tuple[Tensor, Tensor]:
    """Levels and errors of GPTQ in a block of columns, each column a path of a trellis down the rows; in fp64.

    Args:
        weight: the block's weights after all errors of blocks before, columns first: fp64 [B, C, N].
        upper: as of `gptq_block`, [B, C, C].
        row, column: fp64 [B, N] and [B, C]; the step of (i, j) is row[i] · column[j].
        ways: int32 [states], of each state the two ways into it in 16 bits each, the lower state's first: the state
            before, and from bit 8 on 2 · odd + label of the level (`quantgolf.solve.trellis`). One state rounds.
        restart: the trellis begins again in state 0 at rows that are multiples of it.

    Returns:
        Levels int32 [B, C, N], and (weight - level · step) / U_jj as of `gptq_block`, fp64 [B, C, N].

    Raises:
        ValueError: other shapes, dtypes or devices, or rows that do not lie side by side.
    """
    _check_trellis(weight, upper, row, column, ways, restart)
    rest, triangle = weight.clone(), upper.double()
    levels, errors = torch.empty(weight.shape, dtype=torch.int32, device=weight.device), torch.empty_like(rest)
    for j in range(weight.shape[1]):
        step = row * column[:, j, None]
        targets = rest[:, j] / step
        for start in range(0, weight.shape[2], restart):
            segment = slice(start, start + restart)
            state = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
            levels[:, j, segment] = best_path(targets[:, segment], ways, state)[0]
        errors[:, j] = (rest[:, j] - levels[:, j] * step) / triangle[:, j, j, None]
        rest[:, j + 1 :] -= triangle[:, j, j + 1 :, None] * errors[:, j, None]
    return levels, errors


@trellis_block.register_fake
def _(weight: Tensor, upper: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int) -> tuple[Tensor, Tensor]:
    _check_trellis(weight, upper, row, column, ways, restart)
    return weight.new_empty(weight.shape, dtype=torch.int32), weight.new_empty(weight.shape)


@trellis_block.register_kernel("cuda")
def _(weight: Tensor, upper: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int) -> tuple[Tensor, Tensor]:
    from quantgolf_kernels.trellis_block import launch_trellis_block

    _check_trellis(weight, upper, row, column, ways, restart)
    with torch.cuda.device(weight.device):
        return launch_trellis_block(weight, upper, row, column, ways, restart)


@torch.library.custom_op("quantgolf::solve_diagonals", mutates_args=())
def solve_diagonals(
    weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int
) -> Tensor:
    """Levels int32 [B, N, K] with feedback across columns and rows, each diagonal a path of a trellis down the rows.

    Errors are fp32, targets and paths fp64.

    Args:
        weight: fp32 [B, N, K].
        upper: U of (H + damping)⁻¹ = Uᵀ U, fp32 [B, K, K].
        across: V of (G + damping)⁻¹ = Vᵀ V, fp32 [B, N, N].
        row, column: fp64 [B, N] and [B, K]; the step of (i, j) is row[i] · column[j].
        ways, restart: as of `trellis_block`; the runs are columns of R[i, d] = levels[i, (d - i) mod K].

    Raises:
        ValueError: other shapes, dtypes or devices, or columns that do not lie side by side.
    """
    _check_diagonals(weight, upper, across, row, column, ways, restart)
    batch, rows, columns = weight.shape
    lower, below = upper.mT, across.mT
    eta, spread = torch.zeros_like(weight), weight.new_zeros(batch, columns, rows)
    levels = torch.empty(weight.shape, dtype=torch.int32, device=weight.device)
    states = torch.zeros(batch, columns, dtype=torch.int64, device=weight.device)
    for d in range(rows + columns - 1):
        begin, end = max(0, d - columns + 1), min(rows, d + 1)
        i = torch.arange(begin, end, device=weight.device)
        j, at = d - i, d % columns
        pivot = below[:, i, i]
        along = (lower[:, j] * eta[:, i]).sum(2)
        wanted = weight[:, i, j] - (below[:, i] * spread[:, j]).sum(2) - pivot * along
        step = row[:, i] * column[:, j]
        targets, level = wanted / step, torch.empty(len(weight), len(i), dtype=torch.int32, device=weight.device)
        for segment in range(begin // restart * restart, end, restart):
            inside = slice(max(segment, begin) - begin, min(segment + restart, end) - begin)
            if segment >= begin:
                states[:, at] = 0
            level[:, inside], states[:, at] = best_path(targets[:, inside], ways, states[:, at])
        error = (wanted - (level * step).float()) / pivot
        levels[:, i, j], eta[:, i, j], spread[:, j, i] = level, error / lower[:, j, j], along + error
    return levels


@solve_diagonals.register_fake
def _(weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int) -> Tensor:
    _check_diagonals(weight, upper, across, row, column, ways, restart)
    return weight.new_empty(weight.shape, dtype=torch.int32)


@solve_diagonals.register_kernel("cuda")
def _(weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int) -> Tensor:
    from quantgolf_kernels.diagonal_block import launch_diagonals

    _check_diagonals(weight, upper, across, row, column, ways, restart)
    with torch.cuda.device(weight.device):
        return launch_diagonals(weight, upper, across, row, column, ways, restart)


def best_path(targets: Tensor, ways: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Levels int32 [P, n] of P runs of targets fp64 [P, n] begun in state int64 [P], and the states they end in.

    Exact Viterbi; of two paths that cost the same the one by lower states wins.
    """
    if len(ways) == 1:
        return targets.round().to(torch.int32), state
    paths = torch.arange(len(targets), device=targets.device)
    way = torch.stack([ways, ways >> 16]).long()
    before, kind = way & 255, way >> 8 & 3
    cost = torch.full((len(targets), len(ways)), torch.inf, dtype=torch.float64, device=targets.device)
    cost[paths, state] = 0
    levels, seconds = nearest_levels(targets), []
    for at in range(targets.shape[1]):
        distance = (targets[:, at, None] - levels[:, at]) ** 2
        one, other = (cost[:, before] + distance[:, kind]).unbind(1)
        seconds.append((other < one).long())
        cost = torch.minimum(one, other)
    end = state = cost.argmin(1)
    found = torch.empty(targets.shape, dtype=torch.int32, device=targets.device)
    for at in range(targets.shape[1] - 1, -1, -1):
        second = seconds[at][paths, state]
        found[:, at] = levels[paths, at, kind[second, state]].to(torch.int32)
        state = before[second, state]
    return found, end


def nearest_levels(targets: Tensor) -> Tensor:
    """Of each quantizer and label, 2 · odd + label, the level nearest to fp64 targets [...]: [..., 4]."""
    magnitude, sign = targets.abs(), torch.where(targets >= 0, 1.0, -1.0)
    three = (4 * ((magnitude - 3) / 4).round() + 3).clamp(min=3)
    one = (4 * ((magnitude - 1) / 4).round() + 1).clamp(min=1)
    return torch.stack(
        [
            4 * (targets / 4).round(),
            4 * ((targets - 2) / 4).round() + 2,
            torch.where((magnitude - three).abs() < magnitude, sign * three, 0.0),
            sign * one,
        ],
        -1,
    )


def _check_gptq(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> None:
    if weight.ndim != 3 or not 1 <= weight.shape[2] <= 128 or weight.stride(2) != 1:
        raise ValueError(
            f"weight is {list(weight.shape)} with strides {list(weight.stride())}, expected [B, N, C] with 1 to 128 "
            "columns side by side"
        )
    batch, rows, columns = weight.shape
    groups = step.shape[1] if step.ndim == 3 else 1
    _check("weight", weight, weight, (batch, rows, columns), torch.float32, torch.float64)
    _check("upper", upper, weight, (batch, columns, columns), torch.float32, torch.float64)
    _check("step", step, weight, (batch, groups, rows), torch.float32)
    _check("zero", zero, weight, (batch, groups, rows), torch.int8)
    _check("group", group, weight, (batch, columns), torch.int32)
    if not -128 <= lowest <= 0 <= highest <= 127 or lowest == highest:
        raise ValueError(f"codes go from {lowest} to {highest}, expected two of -128 to 127 with 0 among them")


def _check_trellis(weight: Tensor, upper: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int) -> None:
    if weight.ndim != 3 or weight.stride(2) != 1:
        raise ValueError(
            f"weight is {list(weight.shape)} with strides {list(weight.stride())}, expected [B, C, N] with rows side "
            "by side"
        )
    batch, columns, rows = weight.shape
    _check("weight", weight, weight, (batch, columns, rows), torch.float64)
    _check("upper", upper, weight, (batch, columns, columns), torch.float32, torch.float64)
    _check("row", row, weight, (batch, rows), torch.float64)
    _check("column", column, weight, (batch, columns), torch.float64)
    _check_ways(ways, weight, restart)


def _check_diagonals(
    weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, ways: Tensor, restart: int
) -> None:
    if weight.ndim != 3 or weight.stride(2) != 1:
        raise ValueError(
            f"weight is {list(weight.shape)} with strides {list(weight.stride())}, expected [B, N, K] with columns "
            "side by side"
        )
    batch, rows, columns = weight.shape
    _check("weight", weight, weight, (batch, rows, columns), torch.float32)
    _check("upper", upper, weight, (batch, columns, columns), torch.float32)
    _check("across", across, weight, (batch, rows, rows), torch.float32)
    _check("row", row, weight, (batch, rows), torch.float64)
    _check("column", column, weight, (batch, columns), torch.float64)
    _check_ways(ways, weight, restart)


def _check_ways(ways: Tensor, beside: Tensor, restart: int) -> None:
    """Raises ValueError where `ways` or `restart` are not those of a trellis on the device of a tensor `beside`."""
    states = ways.shape[0] if ways.ndim else 0
    if ways.ndim != 1 or states not in (1, 4, 8, 16, 32, 64, 128, 256):
        raise ValueError(f"ways is {list(ways.shape)}, expected [states] with 1, 4, 8, 16, 32, 64, 128 or 256 states")
    _check("ways", ways, beside, (states,), torch.int32)
    if restart < 1:
        raise ValueError(f"restart is {restart}, expected at least 1 row")


def _check(name: str, tensor: Tensor, beside: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    """One line of what is wrong with a tensor; its last dimension has to lie side by side."""
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, expected {' or '.join(map(str, dtypes))} {list(shape)}"
        )
    if tensor.device != beside.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {beside.device}, where the weight is")
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {list(tensor.stride())}, expected its last dimension side by side")
