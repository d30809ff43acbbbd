"""What has to hold for the tensors of a file, whether about to be written or just read."""

import math
from collections.abc import Iterable

from quantgolf.encode.dtypes import DTYPES, NARROWER
from quantgolf.errors import FormatError
from quantgolf.types import CodedModel, CodedTensor

WIDTHS = range(2, 9)
MOST_DIMENSIONS = 16
MAX_DECODED_BYTES = 64 * 2**30


def check_model(coded: CodedModel, max_decoded_bytes: int = MAX_DECODED_BYTES) -> None:
    """Refuses descriptions that no encoder writes, and models above `max_decoded_bytes` in their own dtypes.

    Raises:
        FormatError: the first fault found, by the tensor's name.
    """
    seen: set[str] = set()
    decoded = 0
    for tensor in coded.tensors:
        for name in (tensor.name, *tensor.aliases):
            if not name or name in seen:
                raise FormatError(f"tensor name {name!r} is empty or used twice, expected names that differ")
            seen.add(name)
        _check_tensor(tensor)
        # Empty dimensions count as one: [2^60, 0] holds nothing, but no library can work with it.
        decoded += math.prod(max(1, size) for size in tensor.shape) * DTYPES[tensor.dtype].itemsize
        if decoded > max_decoded_bytes:
            raise FormatError(
                f"{tensor.name} of shape {list(tensor.shape)} brings the model to {decoded:,} decoded bytes, expected "
                f"at most {max_decoded_bytes:,}; raise max_decoded_bytes if you trust the file"
            )


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """[N, K] in which a quantized tensor is coded: the first dimension, and all others together."""
    return shape[0], math.prod(shape[1:])


def _check_tensor(tensor: CodedTensor) -> None:
    name = tensor.name
    if tensor.dtype not in DTYPES:
        raise FormatError(f"{name} has dtype {tensor.dtype!r}, expected one of {', '.join(DTYPES)}")
    if len(tensor.shape) > MOST_DIMENSIONS or any(size < 0 for size in tensor.shape):
        raise FormatError(f"{name} has shape {list(tensor.shape)}, expected up to {MOST_DIMENSIONS} sizes from 0")
    if tensor.bits is None:
        _expect(name, "stored dtype", tensor.stored, [tensor.dtype, *NARROWER.get(tensor.dtype, ())])
        if tensor.codes:
            raise FormatError(f"{name} is kept as it is and has {len(tensor.codes)} bytes of codes, expected none")
        return
    _expect(name, "bits", tensor.bits, WIDTHS)
    if tensor.stored is not None or not tensor.shape or not DTYPES[tensor.dtype].is_floating_point:
        raise FormatError(
            f"{name} has {tensor.bits}-bit codes, shape {list(tensor.shape)}, dtype {tensor.dtype} and stored dtype "
            f"{tensor.stored}, expected a floating point tensor of at least one dimension and no stored dtype"
        )


def _expect(name: str, what: str, value: object, choices: Iterable[object]) -> None:
    if value not in (choices := list(choices)):
        raise FormatError(f"{name} has {what} {value}, expected one of {', '.join(map(str, choices))}")
