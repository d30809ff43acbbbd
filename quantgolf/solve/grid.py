"""The grid of a row: symmetric levels ±(2^(bits-1) - 1) times one fp16 step, and the search for that step."""

import torch
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
    best = largest.to(torch.float16)
    least = torch.full_like(largest, torch.inf)
    for ratio in RATIOS:
        step = as_steps(largest * ratio)
        error = weight - nearest(weight, step, bits) * step.float()[:, None]
        loss = error.square_() @ importance
        better = loss < least
        least = torch.where(better, loss, least)
        best = torch.where(better, step, best)
    return best
