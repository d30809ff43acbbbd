"""What makes weights of fixed-width codes, of all matrices together: steps and scales in one stream, and zeros."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.encode.dtypes import from_bytes, to_bytes
from quantgolf.encode.groups import check_groups, decode_zeros, encode_zeros, group_count
from quantgolf.encode.planes import decode_planes, encode_planes
from quantgolf.encode.stream import Codec
from quantgolf.encode.varint import Cursor
from quantgolf.errors import FormatError
from quantgolf.steps import LARGEST_SIXTEENTHS
from quantgolf.types import CodedGroups, CodedModel, Groups

Part = tuple[int, Tensor | Groups, CodedGroups | None]


@dataclass(frozen=True)
class Wanted:
    """What is known of a matrix of codes before its steps are read.

    Attributes:
        shape: (N, K).
        bits: width of the codes.
        groups: how its scales lie; None for a step a row.
    """

    shape: tuple[int, int]
    bits: int
    groups: CodedGroups | None

    @property
    def scales(self) -> tuple[int, int]:
        """(N, G), G = 1 where there is a step a row."""
        return self.shape[0], 1 if self.groups is None else group_count(self.groups.size, self.shape[1])


def encode_steps(parts: Sequence[Part], codec: Codec = "auto") -> tuple[bytes, bytes]:
    """The streams of steps and scales, and of zeros.

    Args:
        parts: of each matrix of codes its width, what `check_steps` lets pass, and how that lies in the file.
        codec: of all streams, as `encode_stream` has it.
    """
    values: list[NDArray[np.uint8]] = []
    zeros: list[tuple[int, Tensor]] = []
    for bits, steps, groups in parts:
        if not isinstance(steps, Groups):
            values.append(to_bytes(steps))
            continue
        base = None if groups is None else groups.base
        values.append(to_bytes(steps.scale if base is None else steps.scale - base))
        if steps.zero is not None:
            zeros.append((bits, steps.zero))
    return encode_planes(values, codec), encode_zeros(zeros, codec)


def decode_steps(coded: CodedModel, wanted: Sequence[Wanted]) -> list[Tensor | Groups]:
    """What `encode_steps` was given; what they are is left to `check_steps`.

    Raises:
        FormatError: streams that do not fit these matrices.
    """
    cursor = Cursor(coded.steps, "the stream of steps")
    planes = decode_planes(cursor, [each.scales[0] * each.scales[1] for each in wanted], 2)
    cursor.finish()
    zeros = iter(
        decode_zeros(coded.zeros, [(each.bits, each.scales) for each in wanted if each.groups and each.groups.zeros])
    )
    found: list[Tensor | Groups] = []
    for each, values in zip(wanted, planes, strict=True):
        if each.groups is None:
            found.append(from_bytes(values, "F16"))
            continue
        if each.groups.base is None:
            scale = from_bytes(values, "F16")
        else:
            scale = from_bytes(values, "I16").int() + each.groups.base
            # What does not fit int16 is beyond what `check_groups` lets pass, and must not come back in by wrapping.
            scale = scale.clamp(-LARGEST_SIXTEENTHS - 1, LARGEST_SIXTEENTHS + 1).to(torch.int16)
        found.append(Groups(scale.reshape(each.scales), next(zeros) if each.groups.zeros else None, each.groups.size))
    return found


def check_steps(name: str, steps: Tensor | Groups, shape: tuple[int, int], bits: int) -> None:
    """Refuses steps that do not fit a matrix [N, K] of codes of so many bits, or the format.

    Raises:
        FormatError: they are not finite fp16 [N], nor what `check_groups` lets pass.
    """
    if isinstance(steps, Groups):
        check_groups(name, steps, shape, bits)
    elif steps.dtype != torch.float16 or steps.shape != shape[:1] or not steps.isfinite().all():
        raise FormatError(
            f"{name} has {steps.dtype} steps {list(steps.shape)}, expected finite torch.float16 [{shape[0]}]"
        )
