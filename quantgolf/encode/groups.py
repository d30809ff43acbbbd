"""Scales and zeros of groups of columns as bytes: 4 bits a scale where fp16 takes 10, and 1 to 4 a zero.

Scales lie with the steps of rows. Logarithmic ones scatter alike in all matrices but not about the same place:
each matrix says where that is. On the demo model, 64 columns a group, that takes 3.9 to 4.1 bits a scale; differences
from the smallest one, along rows or from both neighbours took 4.1 to 4.6. Zeros scatter as the width has room for, so
those of a width share a stream.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode.dtypes import from_bytes, to_bytes
from quantgolf.encode.planes import decode_planes, encode_planes
from quantgolf.encode.stream import SIGN, Codec
from quantgolf.encode.varint import Cursor
from quantgolf.errors import FormatError
from quantgolf.steps import LARGEST_SIXTEENTHS
from quantgolf.types import CodedGroups, Groups

WIDTHS = range(2, 9)
LARGEST_BASE = 1 << 12
CENTRE = 128  # what the median exponent of a matrix is coded as: most others then differ in the low byte alone


def coded_groups(groups: Groups) -> CodedGroups:
    """How they lie in a file."""
    base = int(groups.scale.median()) - CENTRE if groups.scale.dtype == torch.int16 else None
    return CodedGroups(groups.size, groups.zero is not None, base)


def group_count(size: int, columns: int) -> int:
    """G, the groups of a row."""
    return -(-columns // size)


def lowest_code(bits: int, zeros: bool) -> int:
    """Codes go from here to 2^(bits-1) - 1; only an asymmetric grid has use for one more below."""
    return -(1 << (bits - 1)) + (not zeros)


def check_size(name: str, size: int, shape: tuple[int, int]) -> None:
    """Refuses groups of a matrix [N, K] that are empty or larger than it is, and any where it has no weights.

    Raises:
        FormatError: they are.
    """
    if not 1 <= size <= shape[1] or not shape[0]:
        raise FormatError(
            f"{name} has groups of {size} columns in a matrix {list(shape)}, expected 1 to {shape[1]}, and weights"
        )


def check_groups(name: str, groups: Groups, shape: tuple[int, int], bits: int) -> None:
    """Refuses scales and zeros that do not fit a matrix [N, K] or the format.

    Raises:
        FormatError: another width, a size that is not 1 to K, other shapes or dtypes, scales that are negative, not
            finite or beyond ±119 octaves, zeros that are no codes of so many bits.
    """
    rows, columns = shape
    if bits not in WIDTHS:
        raise FormatError(f"{name} has codes of {bits} bits, expected {WIDTHS[0]} to {WIDTHS[-1]}")
    check_size(name, groups.size, shape)
    wanted, scale, zero = (rows, group_count(groups.size, columns)), groups.scale, groups.zero
    if scale.dtype not in (torch.float16, torch.int16) or tuple(scale.shape) != wanted:
        raise FormatError(
            f"{name} has {scale.dtype} scales {list(scale.shape)}, expected torch.float16 or torch.int16 {list(wanted)}"
        )
    if scale.dtype == torch.float16 and not ((scale >= 0) & scale.isfinite()).all():
        raise FormatError(f"{name} has scales that are negative or not finite, expected finite ones from 0")
    # As int: the magnitude of -2^15 does not fit int16.
    if scale.dtype == torch.int16:
        low, high = int(scale.min()), int(scale.max())
        if max(-low, high) > LARGEST_SIXTEENTHS:
            raise FormatError(
                f"{name} has scales from 2^({low}/16) to 2^({high}/16), expected exponents within ±{LARGEST_SIXTEENTHS}"
            )
    if zero is None:
        return
    if zero.dtype != torch.int8 or tuple(zero.shape) != wanted:
        raise FormatError(f"{name} has {zero.dtype} zeros {list(zero.shape)}, expected torch.int8 {list(wanted)}")
    low, high = lowest_code(bits, zeros=True), (1 << (bits - 1)) - 1
    least, most = int(zero.min()), int(zero.max())
    if least < low or most > high:
        raise FormatError(f"{name} has zeros from {least} to {most}, expected {low} to {high} for {bits} bits")


def encode_zeros(zeros: Iterable[tuple[int, Tensor]], codec: Codec = "auto") -> bytes:
    """Zeros int8 of matrices, each with the width of its codes: a stream for each width that has any."""
    of: dict[int, list[NDArray[np.uint8]]] = {bits: [] for bits in WIDTHS}
    for bits, zero in zeros:
        of[bits].append(to_bytes(zero) ^ SIGN)
    return b"".join(encode_planes(each, codec) for each in of.values())


def decode_zeros(payload: bytes, shapes: Sequence[tuple[int, tuple[int, int]]]) -> list[Tensor]:
    """The zeros int8 of matrices; `shapes` are the widths of their codes and [N, G]. What they are is not checked.

    Raises:
        FormatError: bytes that `encode_zeros` does not write for these shapes.
    """
    cursor = Cursor(payload, "the stream of zeros")
    found: dict[int, Tensor] = {}
    for bits in WIDTHS:
        some = [(i, shape) for i, (width, shape) in enumerate(shapes) if width == bits]
        values = decode_planes(cursor, [math.prod(shape) for _, shape in some], 1)
        for (i, shape), each in zip(some, values, strict=True):
            found[i] = from_bytes(each ^ SIGN, "I8").reshape(shape)
    cursor.finish()
    return [found[i] for i in range(len(shapes))]


def side_bytes(steps: Tensor | Groups) -> int:
    """About how many bytes the fp16 steps [N] of a matrix, or its scales and zeros, take in the streams they share.

    The low bytes of fp16 are noise, everything else takes its entropy, with what is seen of few values too little
    added (Miller and Madow 1955).
    """
    if isinstance(steps, Tensor):
        return math.ceil(_fp16_bits(steps) / 8)
    logarithmic = steps.scale.dtype == torch.int16
    bits = _entropy_bits(steps.scale.cpu().numpy()) if logarithmic else _fp16_bits(steps.scale)
    if steps.zero is not None:
        bits += _entropy_bits(steps.zero.cpu().numpy())
    return math.ceil(bits / 8)


def _fp16_bits(values: Tensor) -> float:
    return 8 * values.numel() + _entropy_bits(to_bytes(values.half())[:, 1])


def _entropy_bits(values: NDArray[np.generic]) -> float:
    _, counts = np.unique(values, return_counts=True)
    if not len(counts):
        return 0.0
    bits = float(-(counts * np.log2(counts / counts.sum())).sum())
    return bits + (len(counts) - 1) / (2 * math.log(2))
