"""Where the bytes of a file go, matrix by matrix and by kind of stream."""

import math

from quantgolf.blob.container import DIGEST_BYTES
from quantgolf.compress import Compressed
from quantgolf.encode import block_bytes, matrix_shape, places, scale_bytes
from quantgolf.sweep.point import Tensor
from quantgolf.sweep.roles import depth_of, role_of
from quantgolf.types import CodedModel


def tensors_of(result: Compressed) -> tuple[Tensor, ...]:
    """What every matrix of a file takes, in the file's order: its codes or its share of the levels, and its steps.

    The stream of levels is shared out by what their entropies ask for. Together with the small tensors that are no
    matrices, header, checksum and code (see `kinds_of`) this is all of `result.data` and the code.
    """
    found = []
    coded = result.coded
    asked: dict[str, float] = {}
    rows = []
    for tensor, costs in zip(coded.tensors, block_bytes(coded), strict=True):
        for place, block, cost in zip(places(tensor), tensor.blocks, costs, strict=True):
            name, numbers = place.name(tensor.shape), math.prod(matrix_shape(tensor.shape, place))
            if block.levels:
                asked[name] = numbers * result.reports[name].bits
            if block.stored is None or (len(tensor.shape) > 1 and min(tensor.shape) > 1):
                rows.append((name, numbers, cost))
    rate = len(coded.levels) / (sum(asked.values()) or 1.0)
    for name, numbers, cost in rows:
        size = cost.total if name not in asked else cost.total - cost.codes + rate * asked[name]
        report = result.reports.get(name)
        bits = 8 * size / numbers if report is None else report.bits
        found.append(
            Tensor(name, role_of(name), depth_of(name), numbers, bits, size, None if report is None else report.loss)
        )
    return tuple(found)


def kinds_of(coded: CodedModel, file_bytes: int, code_bytes: int = 0) -> dict[str, int]:
    """Bytes of a file by kind of stream, in its order, and those of the code that counts with it; together all that
    counts.

    Tables of frequencies count with what they code, magic and version with the header. Scales of groups share a stream
    with steps of rows, and are told from them by how many there are.
    """
    scales = round(scale_bytes(coded))
    found = {
        "levels": len(coded.levels),
        "codes": sum(len(block.codes) for tensor in coded.tensors for block in tensor.blocks),
        "exponents": len(coded.exponents),
        "steps": len(coded.steps) - scales,
        "scales": scales,
        "zeros": len(coded.zeros),
        "small tensors": len(coded.small),
        "header": file_bytes - len(coded.streams()) - DIGEST_BYTES,
        "checksum": DIGEST_BYTES,
        "code": code_bytes,
    }
    return {kind: count for kind, count in found.items() if count}
