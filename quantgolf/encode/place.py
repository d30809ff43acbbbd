"""Where the blocks of a coded tensor lie, and the shapes of the matrices they stand for."""

import math
from collections.abc import Sequence

from quantgolf.types import Block, CodedTensor


def places(tensor: CodedTensor) -> tuple[Block, ...]:
    """The place of each block of a tensor, in order; the rows kept as they are have one too."""
    found, start = [], 0
    for block in tensor.blocks:
        found.append(Block(tensor.name, tensor.lead, start, start + block.rows, block.transposed))
        start += block.rows
    return tuple(found)


def rows_and_columns(shape: Sequence[int], lead: int) -> tuple[int, int]:
    """[R, C] of a tensor whose first `lead` dimensions are merged."""
    return math.prod(shape[:lead]), math.prod(shape[lead:])


def matrix_shape(shape: Sequence[int], place: Block) -> tuple[int, int]:
    """[N, K] of the matrix that a block of a tensor of this shape holds."""
    rows, columns = place.stop - place.start, rows_and_columns(shape, place.lead)[1]
    return (columns, rows) if place.transposed else (rows, columns)
