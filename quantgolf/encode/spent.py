"""What each tensor and each block of a model costs; of a stream that several share its part by number of values."""

from dataclasses import dataclass, fields

import numpy as np

from quantgolf.encode.dtypes import DTYPES
from quantgolf.encode.groups import group_count
from quantgolf.encode.place import matrix_shape, places
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor


@dataclass(frozen=True)
class Spent:
    """Bytes of a file that a tensor or a block answers for; of the shared streams its share by number of values.

    Attributes:
        codes: of fixed-width codes, or the share of the stream of levels.
        steps: the share of steps and scales, or of exponents.
        small: the share of small tensors.
        zeros: the share of zeros of groups.
    """

    codes: float
    steps: float
    small: float
    zeros: float

    @property
    def matrix(self) -> float:
        """Of codes or levels and all that makes weights of them."""
        return self.codes + self.steps + self.zeros

    @property
    def total(self) -> float:
        """Of everything."""
        return self.matrix + self.small


def block_bytes(coded: CodedModel) -> tuple[tuple[Spent, ...], ...]:
    """What each block of each tensor of a coded model costs, in its order; together the bytes of all streams.

    Shares go by rows of steps and scales, by rows and columns of exponents, by weights of levels, by bytes of small
    values, and by zeros.
    """
    counts = [[_counts(t, block, place) for block, place in zip(t.blocks, places(t), strict=True)]
              for t in coded.tensors]  # fmt: skip
    streams = [coded.steps, coded.exponents, coded.levels, coded.small, coded.zeros]
    totals = np.array([each for blocks in counts for each in blocks], dtype=np.float64).reshape(-1, 5).sum(axis=0)
    rates = np.array([len(stream) for stream in streams]) / np.maximum(totals, 1)
    found = []
    for tensor, blocks in zip(coded.tensors, counts, strict=True):
        shares = (np.array(blocks, dtype=np.float64).reshape(-1, 5) * rates).tolist()
        pairs = zip(tensor.blocks, shares, strict=True)
        found.append(tuple(Spent(v if b.levels else len(b.codes), r + e, s, z) for b, (r, e, v, s, z) in pairs))
    return tuple(found)


def tensor_bytes(coded: CodedModel) -> tuple[Spent, ...]:
    """What each tensor of a coded model costs, in its order; together the bytes of all streams."""
    kinds = [field.name for field in fields(Spent)]
    return tuple(
        Spent(**{kind: sum(getattr(each, kind) for each in blocks) for kind in kinds}) for blocks in block_bytes(coded)
    )


def scale_bytes(coded: CodedModel) -> float:
    """The share that scales of groups have in the stream of steps."""
    pairs = zip(coded.tensors, block_bytes(coded), strict=True)
    return sum(s.steps for t, each in pairs for b, s in zip(t.blocks, each, strict=True) if b.groups is not None)


def _counts(tensor: CodedTensor, block: CodedBlock, place: Block) -> tuple[int, int, int, int, int]:
    """Numbers of steps and scales, of rows and columns of exponents, of levels, of small bytes, and of zeros."""
    rows, columns = matrix_shape(tensor.shape, place)
    if block.stored is not None:
        return 0, 0, 0, rows * columns * DTYPES[block.stored].itemsize, 0
    if block.levels:
        return 0, rows + columns, rows * columns, 0, 0
    scales = rows if block.groups is None else rows * group_count(block.groups.size, columns)
    return scales, 0, 0, 0, scales if block.groups is not None and block.groups.zeros else 0
