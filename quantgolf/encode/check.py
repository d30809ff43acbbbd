"""What has to hold for the tensors of a file, whether about to be written or just read."""

import math
import re
from collections.abc import Iterable

from quantgolf.encode.dtypes import DTYPES, NARROWER
from quantgolf.encode.groups import LARGEST_BASE, WIDTHS, check_size, group_count
from quantgolf.encode.place import matrix_shape, places, rows_and_columns
from quantgolf.encode.varint import DAMAGED, UNKNOWN
from quantgolf.errors import FormatError
from quantgolf.solve.trellis import CODES
from quantgolf.types import CodedBlock, CodedModel, CodedTensor

STATES = (1, *CODES)
LARGEST_RESTART = 1 << 20
MOST_DIMENSIONS = 16
MAX_DECODED_BYTES = 64 * 2**30
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_model(coded: CodedModel, max_decoded_bytes: int | None = None) -> None:
    """Refuses descriptions that no encoder writes, and models above `max_decoded_bytes`, if given: tensors in their own
    dtypes, or fp32 if that is wider and they have quantized rows; scales of groups as fp32, and their zeros.

    Raises:
        FormatError: the first fault found, by the tensor's name.
    """
    _check_trellis(coded)
    if coded.zeros and not coded.has_groups:
        raise FormatError(f"the model has {len(coded.zeros)} bytes of zeros, but no groups; expected none of them")
    seen: set[str] = set()
    decoded = 0
    for tensor in coded.tensors:
        for name in (tensor.name, *tensor.aliases):
            if not name or name in seen:
                raise FormatError(f"tensor name {name!r} is empty or used twice, expected names that differ")
            # They reach terminals, which do as they are told.
            if CONTROL.search(name):
                raise FormatError(f"tensor name {name!r} has control characters, expected none; rename it")
            seen.add(name)
        _check_tensor(tensor)
        # Empty dimensions count as one: [2^60, 0] holds nothing, but no library can work with it.
        decoded += math.prod(max(1, size) for size in tensor.shape) * _item_bytes(tensor) + _group_bytes(tensor)
        if max_decoded_bytes is not None and decoded > max_decoded_bytes:
            raise FormatError(
                f"{tensor.name} of shape {list(tensor.shape)} brings the model to {decoded:,} decoded bytes, expected "
                f"at most {max_decoded_bytes:,}; raise max_decoded_bytes if you trust the file"
            )


def _check_trellis(coded: CodedModel) -> None:
    if coded.has_levels:
        _expect("the model", "a trellis with states", coded.states, STATES)
        if not 1 <= coded.restart <= LARGEST_RESTART:
            raise FormatError(f"the trellis restarts after {coded.restart} rows, expected 1 to {LARGEST_RESTART}")
    elif coded.levels or coded.exponents or coded.states or coded.restart:
        raise FormatError(
            f"the model has {len(coded.levels)} bytes of levels, {len(coded.exponents)} of exponents and a trellis of "
            f"{coded.states} states and restart {coded.restart}, but no matrix of levels; expected none of them"
        )


def _check_tensor(tensor: CodedTensor) -> None:
    name = tensor.name
    if tensor.dtype not in DTYPES:
        raise FormatError(f"{name} has dtype {tensor.dtype!r}, expected one of {', '.join(DTYPES)}")
    if len(tensor.shape) > MOST_DIMENSIONS or any(size < 0 for size in tensor.shape):
        raise FormatError(f"{name} has shape {list(tensor.shape)}, expected up to {MOST_DIMENSIONS} sizes from 0")
    if not 0 <= tensor.lead <= len(tensor.shape):
        raise FormatError(
            f"{name} of shape {list(tensor.shape)} merges {tensor.lead} dimensions, expected 0 to {len(tensor.shape)}"
        )
    rows, _ = rows_and_columns(tensor.shape, tensor.lead)
    each = [block.rows for block in tensor.blocks]
    if min(each, default=0) < 1 or sum(each) != rows:
        raise FormatError(
            f"{name} has {len(each)} blocks of {min(each, default=0)} rows or more, {sum(each)} together, "
            f"expected 1 or more, {rows} together"
        )
    for block, place in zip(tensor.blocks, places(tensor), strict=True):
        _check_block(tensor, block, matrix_shape(tensor.shape, place))


def _item_bytes(tensor: CodedTensor) -> int:
    """Bytes of a value, which with quantized rows is decoded to fp32."""
    itemsize = DTYPES[tensor.dtype].itemsize
    return itemsize if all(block.stored is not None for block in tensor.blocks) else max(4, itemsize)


def _group_bytes(tensor: CodedTensor) -> int:
    """Bytes of the scales, as fp32, and the zeros of a tensor's groups: of a column each they outweigh the weights."""
    total = 0
    for block, place in zip(tensor.blocks, places(tensor), strict=True):
        if block.groups is not None:
            rows, columns = matrix_shape(tensor.shape, place)
            total += rows * group_count(block.groups.size, columns) * (4 + block.groups.zeros)
    return total


def _check_block(tensor: CodedTensor, block: CodedBlock, shape: tuple[int, int]) -> None:
    name = tensor.name
    if block.groups is not None:
        if block.bits is None:
            raise FormatError(f"{name} has groups of rows that are no fixed-width codes, expected codes or groups=None")
        check_size(name, block.groups.size, shape)
        if block.groups.base is not None and abs(block.groups.base) > LARGEST_BASE:
            raise FormatError(
                f"{name} has scales with a base of {block.groups.base}, expected one within ±{LARGEST_BASE}; {DAMAGED}"
            )
    if block.diagonal and not block.levels:
        raise FormatError(
            f"{name} has rows coded along diagonals that are no levels, expected levels or diagonal=False"
        )
    if block.levels:
        if block.bits is not None or block.stored is not None or block.codes:
            raise FormatError(
                f"{name} has rows of levels, {block.bits} bits, stored dtype {block.stored} and {len(block.codes)} "
                "bytes of codes, expected no bits, no stored dtype and no codes"
            )
        if not DTYPES[tensor.dtype].is_floating_point:
            raise FormatError(f"{name} has rows of levels and dtype {tensor.dtype}, expected a floating point tensor")
        return
    if block.bits is None:
        _expect(name, "stored dtype", block.stored, [tensor.dtype, *NARROWER.get(tensor.dtype, ())])
        if block.codes or block.transposed:
            raise FormatError(
                f"{name} has {block.rows} rows that are kept as they are, {len(block.codes)} bytes of codes and "
                f"transposed={block.transposed}, expected no codes and rows that stand upright"
            )
        return
    _expect(name, "bits", block.bits, WIDTHS)
    if block.stored is not None or not DTYPES[tensor.dtype].is_floating_point:
        raise FormatError(
            f"{name} has {block.bits}-bit codes, dtype {tensor.dtype} and stored dtype {block.stored}, expected a "
            "floating point tensor and no stored dtype"
        )


def _expect(name: str, what: str, value: object, choices: Iterable[object]) -> None:
    if value not in (choices := list(choices)):
        raise FormatError(f"{name} has {what} {value}, expected one of {', '.join(map(str, choices))}; {UNKNOWN}")
