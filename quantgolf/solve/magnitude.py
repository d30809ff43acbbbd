"""Numbers so large or so small that their squares and products leave fp32, brought near 1 by powers of two.

That is exact, and solvers only compare: weights of 1e-30 are rounded as those of 1 are. Where nothing leaves the range,
and in trained models nothing does, all is left as it is.
"""

import math

import torch
from torch import Tensor

RANGE = 60  # octaves above and below 1 in which squares of fp32 stay within it


def out_of_range(largest: Tensor | float) -> int:
    """The exponent of the power of two next above a magnitude; 0 for 0, and where it is within the range."""
    exponent = math.frexp(float(largest))[1]
    return exponent if abs(exponent) > RANGE else 0


def rows_out_of_range(weight: Tensor) -> Tensor | None:
    """The same of the largest magnitude of each row of a weight [N, K], int32 [N]; None where all are 0."""
    low, high = weight.amin(1), weight.amax(1)
    exponent = torch.frexp(torch.maximum(-low, high)).exponent
    exponent = torch.where(exponent.abs() > RANGE, exponent, 0)
    return exponent if exponent.any() else None


def difference(restored: Tensor, weight: Tensor) -> Tensor:
    """The error [N, K] of a restored weight, in whose memory it lies; in fp64 where fp32 does not hold it."""
    most = torch.finfo(torch.float32).max / 2
    if max(-float(restored.min()), float(restored.max()), -float(weight.min()), float(weight.max())) <= most:
        return restored.sub_(weight)
    return restored.double() - weight.double()
