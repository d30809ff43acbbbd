"""Dtypes by the names safetensors gives them, and the narrower ones small tensors may be stored in."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.errors import QuantGolfError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

# A dtype → what its values may be stored in when they survive it, smallest first, with the largest relative error.
NARROWER = {"F32": {"F16": 2.0**-11}, "F64": {"F16": 2.0**-11, "F32": 2.0**-24}}


def dtype_name(dtype: torch.dtype, owner: str) -> str:
    """The safetensors name of a dtype; `owner` names the tensor in messages.

    Raises:
        QuantGolfError: a dtype the format has no name for.
    """
    for name, known in DTYPES.items():
        if dtype == known:
            return name
    raise QuantGolfError(f"{owner} is {dtype}, expected one of {', '.join(DTYPES)}; cast it before compressing")


def stored_name(tensor: Tensor, name: str) -> str:
    """The dtype a tensor of dtype `name` is stored in: the first narrower one that holds every value, or its own.

    Rounding to nearest keeps the error within 2^-11 of a value in fp16 and 2^-24 in fp32. Where a value overflows,
    is not finite, or falls among the subnormals of a tensor that is mostly as small, the tensor stays wider.
    """
    for narrower, tolerance in NARROWER.get(name, {}).items():
        error = (tensor.to(DTYPES[narrower]).to(tensor.dtype) - tensor).abs()
        magnitude = tensor.abs()
        if not tensor.numel() or (error <= tolerance * magnitude.clamp(min=float(magnitude.mean()))).all():
            return narrower
    return name


def to_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The values of a tensor, row by row, as little-endian bytes [values, bytes a value]."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().reshape(-1, tensor.element_size())


def from_bytes(data: NDArray[np.uint8], name: str) -> Tensor:
    """The values [n] of dtype `name` from their little-endian bytes [n, bytes a value]."""
    return torch.from_numpy(np.ascontiguousarray(data)).reshape(-1).view(DTYPES[name])
