"""Codes times steps: the one place that defines which number a stored weight stands for."""

import torch
from torch import Tensor


@torch.library.custom_op("quantgolf::dequantize", mutates_args=())
def dequantize(codes: Tensor, row: Tensor, column: Tensor | None = None) -> Tensor:
    """Weight [N, K] fp32 = codes · (row ⊗ column), each product rounded once to fp32, in that order.

    Args:
        codes: integer multiples of the step, int8, int16 or int32, [N, K].
        row: step of each output row, floating point, [N].
        column: factor of each input column, floating point, [K]; None stands for ones.
    """
    step = row.float()[:, None]
    if column is not None:
        step = step * column.float()[None, :]
    return codes.float() * step


@dequantize.register_fake
def _(codes: Tensor, row: Tensor, column: Tensor | None = None) -> Tensor:
    return codes.new_empty(codes.shape, dtype=torch.float32)
