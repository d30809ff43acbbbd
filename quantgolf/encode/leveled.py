"""Matrices on the one-slope grid: their exponents in one stream, the levels of all of them in another."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode.exponents import check_exponents, check_levels, decode_exponents, encode_exponents
from quantgolf.encode.levels import Frame, Levels, decode_levels, decode_levels_on, encode_levels
from quantgolf.encode.stream import Codec
from quantgolf.errors import QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedModel, Exponents, QTensor, Steps


@dataclass(frozen=True)
class Leveled:
    """One matrix on the one-slope grid, solved; it is coded with all the others.

    Attributes:
        block: where it lies in its tensor.
        exponents: of its steps.
        levels: int32 [N, K], unclipped, such as the trellis of the model allows.
        diagonal: whether it allows them along diagonals (i + j) mod K, see `diagonals`, and not down columns.
    """

    block: Block
    exponents: Exponents
    levels: Tensor
    diagonal: bool = False


def encode_leveled(
    matrices: Sequence[tuple[str, Leveled]], trellis: Trellis, codec: Codec = "auto"
) -> tuple[bytes, bytes]:
    """The streams of exponents and of levels of matrices, each with its name for messages; levels know rANS alone.

    Raises:
        QuantGolfError: exponents too far apart, or levels that the trellis does not allow.
    """
    levels = [
        Levels(part.levels.cpu().numpy(), part.exponents.spread, *_arrays(part.exponents), part.diagonal)
        for _, part in matrices
    ]
    exponents = encode_exponents([(name, part.exponents) for name, part in matrices], codec)
    return exponents, encode_levels(levels, trellis)


def decode_leveled(
    coded: CodedModel,
    matrices: Sequence[tuple[str, tuple[int, int]]],
    diagonal: Sequence[bool],
    device: torch.device | None = None,
) -> Iterator[QTensor]:
    """The matrices of levels, given their names and shapes (N, K), and whether each is coded along its diagonals.

    All are decoded before the first comes: on the CPU, or on a `device` that `gpu.decodes_on`, where they stay, with
    their steps.

    Raises:
        FormatError: exponents that do not fit, at once; levels that do not, when the first is asked for.
    """
    exponents = decode_exponents(coded.exponents, matrices) if matrices else []
    return _decode(coded, matrices, exponents, diagonal, device)


def check_leveled(name: str, part: Leveled, shape: tuple[int, int]) -> None:
    """Refuses what does not fit a matrix [N, K].

    Raises:
        QuantGolfError: levels of another dtype or shape, exponents that do not fit, or weights that overflow fp32.
    """
    if part.levels.dtype != torch.int32 or tuple(part.levels.shape) != shape:
        raise QuantGolfError(
            f"{name} has {part.levels.dtype} levels {list(part.levels.shape)}, expected torch.int32 {list(shape)}"
        )
    check_exponents(name, part.exponents, shape)
    check_levels(name, part.exponents, _largest(part.levels))


def _decode(
    coded: CodedModel,
    matrices: Sequence[tuple[str, tuple[int, int]]],
    exponents: Sequence[Exponents],
    diagonal: Sequence[bool],
    device: torch.device | None,
) -> Iterator[QTensor]:
    if not matrices:
        return
    known = zip(matrices, exponents, diagonal, strict=True)
    frames = [Frame(shape, each.spread, *_arrays(each), along) for (_, shape), each, along in known]
    trellis = Trellis(coded.states, coded.restart)
    found: Iterable[Tensor]
    if device is None:
        found = map(torch.from_numpy, decode_levels(coded.levels, frames, trellis))
    else:
        found = decode_levels_on(device, coded.levels, frames, trellis)
    for (name, _), each, codes in zip(matrices, exponents, found, strict=True):
        check_levels(name, each, _largest(codes))
        steps = each.steps()
        assert steps.column is not None
        yield QTensor(codes, Steps(steps.row.to(codes.device), steps.column.to(codes.device)), None)


def _arrays(exponents: Exponents) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    return exponents.row.cpu().numpy(), exponents.column.cpu().numpy()


def _largest(levels: Tensor) -> int:
    if levels.device.type != "cpu" and levels.numel():
        low, high = torch.stack(levels.aminmax()).tolist()  # one wait for the GPU
        return max(int(high), -int(low))
    # 0.5M int32 take NumPy 0.05 ms and torch 3.5 ms, which was half of all encoding (EPYC, two shared cores).
    values = levels.cpu().numpy()
    return max(int(values.max()), -int(values.min())) if values.size else 0
