"""A digest of a tensor's bits, so that two readers of a file, or a file and what it was made of, can be compared
without having both in memory."""

import math
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import torch
from torch import Tensor

AT_ONCE = 1 << 22  # values


def digest(tensor: Tensor) -> str:
    """BLAKE2b over the bytes of a tensor's values, row by row, little-endian; 32 hexadecimal digits. Dtype and shape
    are not in it."""
    return digest_of(rows_of(matrix_of(tensor.detach())))


def digest_of(parts: Iterable[Tensor]) -> str:
    """As `digest`, of a tensor that comes in parts, some of its rows each."""
    found = blake2b(digest_size=16)
    for part in parts:
        found.update(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def matrix_of(tensor: Tensor) -> Tensor:
    """A tensor as [N, K]: all but its first dimension merged; of fewer than two dimensions, one row."""
    # Not -1 for K: nothing says what it is where N is 0.
    return tensor.reshape((1, tensor.numel()) if tensor.dim() < 2 else (len(tensor), math.prod(tensor.shape[1:])))


def rows_of(matrix: Tensor) -> Iterator[Tensor]:
    """The values of [N, K] row by row, at most 4M at once: some rows or a part of one, so that neither of a transposed
    matrix nor of a long row a copy is made whole."""
    rows, columns = matrix.shape
    at_once = max(1, AT_ONCE // max(1, columns))
    for start in range(0, rows if columns else 0, at_once):
        yield from torch.split(matrix[start : start + at_once], AT_ONCE, 1)
