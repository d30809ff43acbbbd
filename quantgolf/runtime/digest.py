"""A digest of a tensor's bits, so that two readers of a file, or a file and what it was made of, can be compared
without having both in memory."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import torch
from torch import Tensor

AT_ONCE = 1 << 22  # values


def digest(tensor: Tensor) -> str:
    """BLAKE2b over the bytes of a tensor's values, row by row, little-endian; 32 hexadecimal digits. Dtype and shape
    are not in it."""
    values = tensor.detach()
    return digest_of(rows_of(values.reshape(1, -1) if values.dim() < 2 else values.reshape(len(values), -1)))


def digest_of(parts: Iterable[Tensor]) -> str:
    """As `digest`, of a tensor that comes in parts, some of its rows each."""
    found = blake2b(digest_size=16)
    for part in parts:
        found.update(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def rows_of(matrix: Tensor) -> Iterator[Tensor]:
    """The rows of [N, K], about 4M values at once, so that of a transposed matrix no copy is made whole."""
    rows, columns = matrix.shape
    at_once = max(1, AT_ONCE // max(1, columns))
    for start in range(0, rows if columns else 0, at_once):
        yield matrix[start : start + at_once]
