"""The grid of a row: symmetric levels ±(2^(bits-1) - 1) times one fp16 step, and the search for that step."""

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError

# On the demo and the golf model the median row wants 0.40 of its range at 2 bits, 0.64 at 3 and 0.82 at 4; one row in
# a hundred wants less than 0.3 at 2 bits, 0.46 at 3 and 0.62 at 4.
RATIOS = torch.linspace(0.2, 1.0, 41).tolist()
SMALLEST = 2.0**-24  # fp16's smallest number; that steps near it are coarse costs little, codes follow the rounded step


def top_level(bits: int) -> int:
    """Largest level of a width: 7 for 4 bits."""
    return (1 << (bits - 1)) - 1


def absmax_steps(weight: Tensor, bits: int) -> Tensor:
    """fp16 steps [N] that put each row's largest magnitude on the last level.

    Raises:
        QuantGolfError: a row too large for an fp16 step.
    """
    return as_steps(weight.abs().amax(1) / top_level(bits))


def as_steps(step: Tensor) -> Tensor:
    """Steps [N] rounded to fp16, at least the smallest there is (a row of zeros has to have some)."""
    rounded = step.clamp(min=SMALLEST).to(torch.float16)
    if rounded.isinf().any():
        raise QuantGolfError(
            f"a row needs the step {float(step.max()):.3g}, expected at most {torch.finfo(torch.float16).max:g} "
            "(fp16): scale the weight down"
        )
    return rounded


def nearest(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """Codes int8 [N, K]: the nearest level of each weight, clipped to the last."""
    top = top_level(bits)
    return (weight / step.float()[:, None]).round_().clamp_(-top, top).to(torch.int8)


def searched_steps(weight: Tensor, bits: int, importance: Tensor) -> Tensor:
    """fp16 steps [N], each the clip of its row with the least Σ_j importance_j · error_ij² over `RATIOS`."""
    largest = absmax_steps(weight, bits).float()
    steps = as_steps(largest[:, None] * torch.tensor(RATIOS, device=weight.device))
    if weight.device.type != "cpu":
        return steps.gather(1, _searched(weight, importance, steps.float(), top_level(bits))[:, None])[:, 0]
    chosen = np.empty(len(weight), dtype=np.int64)
    with _threads_of_torch():
        _search(_array(weight), _array(importance), steps.float().numpy(), top_level(bits), chosen)
    return steps.gather(1, torch.from_numpy(chosen)[:, None])[:, 0]


def _searched(weight: Tensor, importance: Tensor, steps: Tensor, top: int) -> Tensor:
    """What `_search` finds, int64 [N], in plain torch where the weight lies; sums are taken in another order."""
    least = torch.full_like(steps[:, 0], torch.inf)
    chosen = torch.full(least.shape, steps.shape[1] - 1, device=steps.device)
    for r in range(steps.shape[1]):
        step = steps[:, r, None]
        error = (weight / step).round_().clamp_(-top, top).mul_(step).sub_(weight)
        loss = error.square_().mul_(importance).sum(1)
        chosen = torch.where(loss < least, r, chosen)
        least = torch.minimum(loss, least)
    return chosen


def rounded_costs(
    weight: Tensor, step: Tensor, bits: int, importance: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """On the CPU, histogram of the nearest levels [2·top + 1], Σ_j importance_j · error_ij² of each row, [N] fp64."""
    top = top_level(bits)
    counts = np.zeros((len(weight), 2 * top + 1), dtype=np.int32)
    losses = np.empty(len(weight))
    with _threads_of_torch():
        _rounded_costs(_array(weight), _array(step), top, _array(importance), counts, losses)
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


# Sums may be taken in any order: that is what lets a row be worked on eight numbers at a time. A row's sum does not
# depend on the number of threads.
@numba.njit(parallel=True, cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _search(
    weight: NDArray[np.float32],
    importance: NDArray[np.float32],
    steps: NDArray[np.float32],
    top: int,
    chosen: NDArray[np.int64],
) -> None:
    """Index of each row's best step among `steps` [N, ratios]; the first of equals, the last where none is finite."""
    rows, columns = weight.shape
    high = np.float32(top)
    for i in numba.prange(rows):
        least, best = np.float32(np.inf), steps.shape[1] - 1
        for r in range(steps.shape[1]):
            step = steps[i, r]
            loss = np.float32(0)
            for j in range(columns):
                level = min(max(np.rint(weight[i, j] / step), -high), high)
                error = weight[i, j] - level * step
                loss += importance[j] * error * error
            if loss < least:
                least, best = loss, r
        chosen[i] = best


@numba.njit(parallel=True, cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def _rounded_costs(
    weight: NDArray[np.float32],
    step: NDArray[np.float32],
    top: int,
    importance: NDArray[np.float32],
    counts: NDArray[np.int32],
    losses: NDArray[np.float64],
) -> None:
    rows, columns = weight.shape
    high = np.float32(top)
    for i in numba.prange(rows):
        loss = np.float32(0)
        for j in range(columns):
            level = min(max(np.rint(weight[i, j] / step[i]), -high), high)
            error = weight[i, j] - level * step[i]
            loss += importance[j] * error * error
            counts[i, np.int64(level) + top] += 1
        losses[i] = loss
