"""Decoding on a GPU: what the kernels of `quantgolf_kernels.rans_op` need, and what they find.

The same streams, decoded to the same bits. A stream is one program there, which takes 32,768 steps or a few more for
any size of file, so that large files gain and small ones do not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode import rans
from quantgolf_kernels.gpu import runs_on
from quantgolf_kernels.rans_op import level_entries, place_levels, rans_levels, rans_streams

MOST_STEPS = 1 << 17  # of a stream of codes; `rans.encode` has less than 2^16
ALIGNED = 16  # lanes side by side are padded to a multiple, so that a thread reads those of several at once
SPARSEST = 2  # places for a level, at most


def decodes_on(device: torch.device) -> bool:
    """Whether kernels decode there. Of a GPU where they cannot run a warning says why."""
    return runs_on(device, "the file is decoded on the CPU")


@dataclass(frozen=True)
class Matrices:
    """Matrices of levels, none empty, in the order they are coded in.

    Attributes:
        shapes: (N, K) of each.
        diagonal: whether each is coded along its diagonals.
        row: int32, N of each matrix in turn.
        column: int32, K of each; weight (i, j) has class `class_at[column[j] - row[i]]`.
        class_at: uint8.
    """

    shapes: tuple[tuple[int, int], ...]
    diagonal: tuple[bool, ...]
    row: NDArray[np.int32]
    column: NDArray[np.int32]
    class_at: NDArray[np.uint8]

    def table(self) -> NDArray[np.int64]:
        """What `level_entries` wants to know of each, int64 [6, M]."""
        n, k = np.array(self.shapes, dtype=np.int64).T
        firsts = [np.cumsum(each) - each for each in (n * k, n, k)]
        return np.stack([firsts[0], n, k, firsts[1], firsts[2], np.array(self.diagonal, dtype=np.int64)])


@dataclass(frozen=True)
class DecodedLevels:
    """All levels on the GPU, in the order that decoding left them in: `starts` and `stride` are of `rans_levels`."""

    levels: Tensor
    starts: Tensor
    stride: int
    shapes: tuple[tuple[int, int], ...]
    diagonal: tuple[bool, ...]

    def matrices(self) -> Iterator[Tensor]:
        """The levels int32 [N, K] of a matrix after the other, contiguous."""
        base = 0
        for (rows, columns), diagonal in zip(self.shapes, self.diagonal, strict=True):
            yield place_levels(self.levels, self.starts, self.stride, base, rows, columns, diagonal)
            base += rows * columns


def decode_levels(
    matrices: Matrices,
    words: NDArray[np.uint16],
    excess: NDArray[np.int64],
    starts: NDArray[np.int64],
    shares: NDArray[np.uint32],
    slots: NDArray[np.uint8],
    after: NDArray[np.int64],
    restart: int,
    states: NDArray[np.uint32],
    device: torch.device,
) -> tuple[DecodedLevels, bool]:
    """As `lanes.decode_lanes`, whose arguments these are, with the classes; and whether the stream is whole.

    For each level 5 bytes of the GPU are taken, or where a few lanes are longer than the others at most twice that, and
    4 more for those of the matrix that is asked for.
    """
    count = sum(rows * columns for rows, columns in matrices.shapes)
    bounds = np.append(starts, count)
    steps = int(np.diff(bounds).max())
    stride = -(-len(starts) // ALIGNED) * ALIGNED
    if stride * steps > SPARSEST * count:
        stride = 0
    size, at = stride * steps if stride else count, _on(device, bounds)
    entries = level_entries(
        at, _on(device, matrices.table()), _on(device, matrices.row), _on(device, matrices.column),
        _on(device, matrices.class_at), restart, stride, size, steps,
    )  # fmt: skip
    feedback, forward = (int(after[1, 0]), int(after[0, 1])) if len(after) > 1 else (0, 0)
    levels, ends = rans_levels(
        _on(device, words.view(np.int16)), _on(device, excess.astype(np.int32)), entries, at, stride,
        _on(device, shares.view(np.int32)), _on(device, slots.ravel()), feedback, forward,
        _on(device, states.view(np.int32)),
    )  # fmt: skip
    is_whole = ends.tolist() == [[len(words), len(excess), 0, 0]]
    return DecodedLevels(levels, at, stride, matrices.shapes, matrices.diagonal), is_whole


def decode_streams(streams: Sequence[rans.Stream], device: torch.device) -> list[tuple[Tensor, bool]]:
    """The symbols uint8 [n] of each stream, of all in one launch, and whether it is whole."""
    parts, counts = [each.words for each in streams], [each.count for each in streams]
    words, lanes = np.array([len(each) for each in parts]), np.array([len(each.states) for each in streams])
    firsts = [np.cumsum(each) - each for each in (words, lanes, np.array(counts))]
    table = np.stack([firsts[0], firsts[0] + words, firsts[1], lanes, firsts[2], np.array(counts)], axis=1)
    symbols, ends = rans_streams(
        _on(device, np.concatenate(parts).view(np.int16)), _on(device, table.astype(np.int64)),
        _on(device, np.concatenate([each.shares() for each in streams]).view(np.int32)),
        _on(device, np.concatenate([each.slots() for each in streams])),
        _on(device, np.concatenate([each.states for each in streams]).view(np.int32)), sum(counts), int(lanes.max()),
    )  # fmt: skip
    is_whole = [end == [int(last), 0, 0, 0] for end, last in zip(ends.tolist(), table[:, 1], strict=True)]
    return list(zip(symbols.split(counts), is_whole, strict=True))


def _on(device: torch.device, array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
