"""The search for scales and zeros: the clip of each group with the least error, weighted by what columns count."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.solve.grid import (
    LARGEST,
    POWERS,
    Grid,
    Rounding,
    ends,
    in_groups,
    lowered,
    packed,
    stored,
    top_level,
    values,
    zeros_of,
)  # fmt: skip
from quantgolf.solve.magnitude import rows_out_of_range
from quantgolf.steps import LARGEST_SIXTEENTHS, Groups, Steps

# On the demo and the golf model the median row wants 0.40 of its range at 2 bits, 0.64 at 3 and 0.82 at 4; one row in
# a hundred wants less than 0.3 at 2 bits, 0.46 at 3 and 0.62 at 4.
RATIOS = torch.linspace(0.2, 1.0, 41).tolist()
OCTAVES = 37  # sixteenths of an octave below the range that are tried of logarithmic scales: down to 0.2 as well
NEAR_SCALES, NEAR_ZEROS = (-2, -1, 0, 1, 2), (-2, -1, 1, 2)
AT_ONCE = 1 << 26  # bytes of candidates


def searched_steps(
    weight: Tensor, bits: int, importance: Tensor, grid: Grid, largest: float = LARGEST
) -> Steps | Groups:
    """For each group the scale, and the zero of an asymmetric grid, of the least Σ_j importance_j · error_ij².

    Scales are tried from a fifth of what holds the group's range up to it. Zeros are tried in two places, the one that
    belongs to the range and the middle of the codes, and then around the better of both together with scales near the
    one found there.

    Args:
        weight: [N, K] fp32.
        importance: [K], beside the weight.
        largest: that any code may stand for (`grid.lowered`).
    """
    size = grid.size(weight.shape[1])
    tried = len(RATIOS) if grid.symmetric else 2 * max(len(RATIOS), len(NEAR_SCALES) * len(NEAR_ZEROS))
    rows = max(1, AT_ONCE // (-(-weight.shape[1] // size) * tried * 5))
    parts = [
        _searched(weight[start : start + rows], bits, importance, size, grid) for start in range(0, len(weight), rows)
    ]
    scale = torch.cat([scale for scale, _ in parts])
    zero = None if grid.symmetric else torch.cat([zero for _, zero in parts])
    return packed(lowered(scale, zero, *grid.code_range(bits), largest), zero, size, grid)


def _searched(weight: Tensor, bits: int, importance: Tensor, size: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scales as stored and zeros int8, [N, G]."""
    low, high = ends(weight, size)
    lowest, highest = grid.code_range(bits)
    if grid.symmetric:
        tried = _candidates(torch.maximum(-low, high) / top_level(bits), grid, top_level(bits))
        zero = torch.zeros(tried.shape, dtype=torch.int8, device=weight.device)
        return _best(weight, importance, size, tried, zero, lowest, highest)
    spread, levels = high - low, (1 << bits) - 1
    tried = _candidates(spread / levels, grid, levels)
    zero = zeros_of(low, spread, values(tried[..., -1]), lowest, highest)[..., None].expand(tried.shape)
    both = torch.cat([zero, torch.zeros_like(zero)], 2)
    scale, zero = _best(weight, importance, size, torch.cat([tried, tried], 2), both, lowest, highest)
    at = (values(tried) < values(scale)[..., None]).sum(2)
    shifts = torch.tensor([(0, 0), *((s, z) for z in NEAR_ZEROS for s in NEAR_SCALES)], device=weight.device)
    near = (at[..., None] + shifts[:, 0]).clamp_(0, tried.shape[2] - 1)
    zeros = (zero[..., None] + shifts[:, 1]).clamp_(lowest, highest).to(torch.int8)
    return _best(weight, importance, size, tried.gather(2, near), zeros, lowest, highest)


def _candidates(largest: Tensor, grid: Grid, levels: int) -> Tensor:
    """Scales as stored [N, G, R], rising up to the one that `levels` of hold the range [N, G] of `largest` times it, or
    to the largest that there is."""
    largest = largest.clamp(max=float(POWERS[-1]) if grid.scales == "log" else torch.finfo(torch.float16).max)
    top = stored(largest, grid.scales, levels)
    if grid.scales == "log":
        below = torch.arange(-OCTAVES, 1, dtype=torch.int16, device=top.device)
        return (top[..., None] + below).clamp_(min=-LARGEST_SIXTEENTHS)
    return stored(top.float()[..., None] * torch.tensor(RATIOS, device=top.device), grid.scales, levels)


def _best(
    weight: Tensor, importance: Tensor, size: int, scale: Tensor, zero: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    """Of the candidates [N, G, R] of each group, scales as stored and zeros int8, the best; the first of equals."""
    step = values(scale)
    if (far := rows_out_of_range(weight)) is not None:
        weight, step = torch.ldexp(weight, -far[:, None]), torch.ldexp(step, -far[:, None, None])
    if weight.device.type != "cpu":
        chosen = _best_in_torch(weight, importance, size, step, zero, lowest, highest)
    else:
        found = np.empty(scale.shape[:2], dtype=np.int64)
        with _threads_of_torch():
            _search(
                _array(weight),
                _array(importance),
                size,
                _array(step),
                zero.contiguous().numpy(),
                lowest,
                highest,
                found,
            )
        chosen = torch.from_numpy(found)
    return scale.gather(2, chosen[..., None])[..., 0], zero.gather(2, chosen[..., None])[..., 0]


def _best_in_torch(
    weight: Tensor, importance: Tensor, size: int, step: Tensor, zero: Tensor, lowest: int, highest: int
) -> Tensor:
    """What `_search` finds, int64 [N, G], in plain torch where the weight lies; sums are taken in another order."""
    grouped, counts = in_groups(weight, size), in_groups(importance[None], size)
    least = torch.full_like(step[..., 0], torch.inf)
    chosen = torch.full(least.shape, step.shape[2] - 1, device=step.device)
    for r in range(step.shape[2]):
        size_of, first, last = (
            step[..., r, None],
            lowest - zero[..., r, None].float(),
            highest - zero[..., r, None].float(),
        )
        error = (grouped / size_of).round_().clamp_(first, last).mul_(size_of).sub_(grouped)
        loss = error.square_().mul_(counts).sum(2)
        chosen = torch.where(loss < least, r, chosen)
        least = torch.minimum(loss, least)
    return chosen


def rounded_costs(
    weight: Tensor, rounding: Rounding, importance: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """On the CPU, histogram of the nearest codes from the lowest to the highest one there is, and
    Σ_j importance_j · error_ij² of each row, [N] fp64."""
    counts = np.zeros((len(weight), rounding.highest - rounding.lowest + 1), dtype=np.int32)
    losses, step = np.empty(len(weight)), rounding.step
    if (far := rows_out_of_range(weight)) is not None:
        weight, step = torch.ldexp(weight, -far[:, None]), torch.ldexp(step, -far[:, None])
    with _threads_of_torch():
        _rounded_costs(
            _array(weight), _array(step), rounding.zero.cpu().contiguous().numpy(), rounding.size,
            rounding.lowest, rounding.highest, _array(importance), counts, losses,
        )  # fmt: skip
    if far is not None:
        losses *= np.exp2(2.0 * far.cpu().numpy())
    return counts.sum(0, dtype=np.int64), losses


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """As many threads as torch has, and torch keeps that number.

    Numba's first parallel call sets OpenMP's number of threads, which is torch's too, to all cores. On two busy cores
    that made a process with one thread 20 times slower, and its products differ from those before the call.
    """
    threads, mine = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(min(threads, mine))
    try:
        yield
    finally:
        numba.set_num_threads(mine)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().contiguous().numpy()
    return array


# Sums may be taken in any order: that is what lets a group be worked on eight numbers at a time. A sum does not depend
# on the number of threads.
@numba.njit(parallel=True, cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _search(
    weight: NDArray[np.float32],
    importance: NDArray[np.float32],
    size: int,
    steps: NDArray[np.float32],
    zeros: NDArray[np.int8],
    lowest: int,
    highest: int,
    chosen: NDArray[np.int64],
) -> None:
    """Index of each group's best candidate among [N, G, R]; the first of equals, the last where none is finite."""
    rows, columns = weight.shape
    for i in numba.prange(rows):
        for g in range(steps.shape[1]):
            # Slices: an index that begins at 0 needs no check for being negative, which would keep it from vectors.
            part, counts = weight[i, g * size : min(g * size + size, columns)], importance[g * size :]
            least, best = np.float32(np.inf), steps.shape[2] - 1
            for r in range(steps.shape[2]):
                step = steps[i, g, r]
                low, high = np.float32(lowest - zeros[i, g, r]), np.float32(highest - zeros[i, g, r])
                loss = np.float32(0)
                for j in range(len(part)):
                    level = min(max(np.rint(part[j] / step), low), high)
                    error = part[j] - level * step
                    loss += counts[j] * error * error
                if loss < least:
                    least, best = loss, r
            chosen[i, g] = best


@numba.njit(parallel=True, cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _rounded_costs(
    weight: NDArray[np.float32],
    steps: NDArray[np.float32],
    zeros: NDArray[np.int8],
    size: int,
    lowest: int,
    highest: int,
    importance: NDArray[np.float32],
    counts: NDArray[np.int32],
    losses: NDArray[np.float64],
) -> None:
    rows, columns = weight.shape
    for i in numba.prange(rows):
        loss = np.float32(0)
        for g in range(steps.shape[1]):
            step, first = steps[i, g], zeros[i, g] - lowest
            low, high = np.float32(lowest - zeros[i, g]), np.float32(highest - zeros[i, g])
            for j in range(g * size, min(g * size + size, columns)):
                level = min(max(np.rint(weight[i, j] / step), low), high)
                error = weight[i, j] - level * step
                loss += importance[j] * error * error
                counts[i, np.int64(level) + first] += 1
        losses[i] = loss
