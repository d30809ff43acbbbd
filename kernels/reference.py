"""What the kernels of packed matrices compute, in plain torch: their bodies on a CPU, and where there is no kernel."""

import torch
from torch import Tensor

from quantgolf_kernels.packing import Packed, unpack


def weights(packed: Packed) -> Tensor:
    """The weights fp32 [N, K]."""
    code = unpack(packed).float()
    if packed.scale is not None:
        spread = torch.arange(packed.columns, device=code.device) // packed.group_size
        if packed.zero is not None:
            code -= packed.zero[:, spread]
        code *= packed.scale[:, spread]
    step = packed.row[:, None]
    if packed.column is not None:
        step = step * packed.column[None, :]
    return code * step


def matmul(x: Tensor, packed: Packed) -> Tensor:
    """x [M, K] times the transposed weights, summed in fp32, [M, N] in x's dtype."""
    return torch.nn.functional.linear(x.float(), weights(packed)).to(x.dtype)


def rows(packed: Packed, chosen: Tensor) -> Packed:
    """The rows `chosen` int64 [T] of a packed matrix, packed."""
    outliers = None
    if packed.outliers is not None:
        count = packed.data.shape[0]
        first, (places, rest) = packed.outliers[: count + 1].long(), packed.outliers[count + 1 :].view(2, -1)
        many = first.diff()[chosen]
        begin = torch.nn.functional.pad(many.cumsum(0), (1, 0))
        entry = torch.arange(int(begin[-1]), device=chosen.device)
        entry += torch.repeat_interleave(first[chosen] - begin[:-1], many)
        outliers = torch.cat([begin.to(torch.int32), places[entry], rest[entry]])
    return Packed(
        packed.data[chosen], packed.row[chosen], packed.bits, packed.offset, packed.columns, packed.column, outliers,
        None if packed.scale is None else packed.scale[chosen], None if packed.zero is None else packed.zero[chosen],
        packed.group_size,
    )  # fmt: skip
