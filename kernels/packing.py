"""Codes of 2 to 8 bits in planes that kernels can read: the layout, and what turns codes into it and back.

A width is a sum of powers of two, and each is a plane of its own: 6 bits are a plane of 4 and one of 2, so that no
field straddles a word and no width wastes bits. A word of 32 bits of the plane of b bits holds 32 / b columns. They are
not neighbours: the columns are cut into P equal parts, P = 32 / (the narrowest plane's bits), and a word holds the same
place of several parts, so that one shift and one mask turn neighbouring words into neighbouring columns, whose
activations lie side by side. This spares the inner loop the shuffles that interleaved neighbours would need, and what
it does need, a change of registers between threads, is done on words and not on weights.

With unclipped levels the width is that which makes the whole smallest, and levels beyond it are kept in a sorted list
beside the planes. A width for every column instead of one for the matrix would save another 7% (golf model at 3.5 bits
a weight: 5.64 packed bits against 6.06, planes and lists alone) and 8% (at 2.5: 4.50 against 4.87; demo 3 and 4%), for
a permutation of activations.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

WIDTHS = range(2, 9)
PLANES = (8, 4, 2, 1)
ALIGNED = 4  # words of a part are a multiple of this: a thread loads 16 bytes
# What one level in the list is taken to cost, in bits: 64 that it takes, and as much again for being read out of turn.
OUTLIER = 128
GROUPED = 16  # columns: the least that the tensor cores take at once
LARGEST_CODE = 1 << 24  # integers up to here are exact in fp32


def parts(bits: int) -> int:
    """P, the parts that columns are cut into: the columns in a word of the narrowest plane."""
    return 32 // (bits & -bits)


def part_columns(bits: int, columns: int) -> int:
    """Columns of one part, padded; P times as many are the columns that are stored."""
    each = -(-columns // parts(bits))
    return -(-each // ALIGNED) * ALIGNED


def row_words(bits: int, columns: int) -> int:
    """Words of one row with its padding, all planes side by side, the widest first."""
    return parts(bits) * part_columns(bits, columns) * bits // 32


@dataclass(frozen=True)
class Packed:
    """A matrix [N, K] of codes in planes, and the steps that make weights of them.

    Weight (n, k) is (code - zero) · scale · (row[n] · column[k]), zero and scale those of its group of columns; what
    is None is left out. All products are rounded to fp32, in that order.

    Attributes:
        data: int32 [N, row_words(bits, K)].
        row: fp32 [N].
        bits: of a field.
        offset: a field holds code + offset.
        columns: K.
        column: fp32 [K] or None.
        outliers: int32 [N + 1 + 2 E] or None: where each row's entries begin, their E columns, and what is to be added
            to the code that the planes hold.
        scale: fp32 or fp16 [N, ⌈K / group_size⌉] or None.
        zero: fp32 or int8, as many, or None.
        group_size: neighbouring columns with a scale and a zero in common, a multiple of 16; 0 where there are none.
    """

    data: Tensor
    row: Tensor
    bits: int
    offset: int
    columns: int
    column: Tensor | None = None
    outliers: Tensor | None = None
    scale: Tensor | None = None
    zero: Tensor | None = None
    group_size: int = 0

    def __post_init__(self) -> None:
        """Kernels read what this says is there: refuses what is not.

        Raises:
            ValueError: a tensor of another dtype, shape or device, or that is not contiguous.
        """
        rows, bits = self.data.shape[0], self.bits
        groups = (rows, -(-self.columns // self.group_size)) if self.group_size else (0, 0)
        wanted = {
            "data": (torch.int32, (rows, row_words(bits, self.columns))), "row": (torch.float32, (rows,)),
            "column": (torch.float32, (self.columns,)),
            "scale": (_narrow(self.scale, torch.float16), groups), "zero": (_narrow(self.zero, torch.int8), groups),
        }  # fmt: skip
        for name, tensor in self.tensors.items():
            dtype, shape = wanted.get(name, (torch.int32, tuple(tensor.shape)))
            there = tensor.dtype, tuple(tensor.shape), tensor.device
            if there != (dtype, shape, self.data.device) or not tensor.is_contiguous():
                raise ValueError(
                    f"packed {name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, expected {dtype} "
                    f"{list(shape)} on {self.data.device}, contiguous; make it with pack()"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.columns

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by attribute."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bpw(self) -> float:
        """Packed bits per weight, steps and outliers counted."""
        return 8 * self.nbytes / max(1, self.data.shape[0] * self.columns)

    def to(self, device: torch.device | str) -> "Packed":
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, **moved)  # type: ignore[arg-type]  # these attributes are tensors


def pack(
    codes: Tensor,
    row: Tensor,
    column: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    group_size: int = 0,
    bits: int | None = None,
) -> Packed:
    """Packs codes on the device they are on.

    Args:
        codes: int8, uint8, int16 or int32 [N, K]; with outliers up to ±2^24.
        row: steps of the rows, floating point [N].
        column: factors of the columns, floating point [K].
        scale, zero: of groups of columns, floating point [N, ⌈K / group_size⌉], a zero int8 as well; a zero needs a
            scale. Scales of fp16 and zeros of int8 are kept as they are, others become fp32.
        group_size: columns of a group, a multiple of 16.
        bits: 2 to 8; None chooses the width that makes the whole smallest.

    Raises:
        ValueError: tensors of other shapes, dtypes or devices, an impossible width or group, codes too large.
    """
    _check(codes, row, column, scale, zero, group_size, bits)
    wide = codes.to(torch.int32)
    columns = wide.shape[1]
    largest = max(-int(wide.min()), int(wide.max())) if wide.numel() else 0
    if largest > LARGEST_CODE:
        raise ValueError(
            f"codes reach {largest}, expected at most {LARGEST_CODE}: keep such a matrix in floating point"
        )
    bits, offset = _window(wide, bits)
    fields = (wide + offset).clamp_(0, (1 << bits) - 1)
    rest = wide - (fields - offset)
    row, column = _balanced(row.float(), None if column is None else column.float())
    return Packed(
        _planes(fields, bits), row, bits, offset, columns, column, _listed(rest),
        None if scale is None else scale.to(_narrow(scale, torch.float16)).contiguous(),
        None if zero is None else zero.to(_narrow(zero, torch.int8)).contiguous(), group_size,
    )  # fmt: skip


def unpack(packed: Packed) -> Tensor:
    """The codes int32 [N, K] that were packed."""
    bits, columns = packed.bits, packed.columns
    each, count = part_columns(bits, columns), parts(bits)
    rows = packed.data.shape[0]
    found = torch.zeros(rows, count, each, dtype=torch.int32, device=packed.data.device)
    at, low = 0, 0
    for plane in PLANES:
        if not bits & plane:
            continue
        pieces = count * plane // 32
        stored = packed.data[:, at : at + pieces * each].reshape(rows, 1, pieces, each)
        shifts = torch.arange(0, 32, plane, device=stored.device, dtype=torch.int32)[None, :, None, None]
        found += (((stored >> shifts) & ((1 << plane) - 1)) << low).reshape(found.shape)
        at, low = at + pieces * each, low + plane
    codes = found.view(rows, count * each)[:, :columns] - packed.offset
    if packed.outliers is not None:
        where, places, rest = listed(packed.outliers, rows)
        codes[where, places] += rest
    return codes


def listed(outliers: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows int64 [E], columns int64 [E] and the additions int32 [E] of outliers."""
    first, (places, rest) = outliers[: rows + 1], outliers[rows + 1 :].view(2, -1)
    where = torch.repeat_interleave(
        torch.arange(rows, device=first.device), first.diff().long(), output_size=places.shape[0]
    )
    return where, places.long(), rest


def _planes(fields: Tensor, bits: int) -> Tensor:
    """int32 [N, row_words] of fields int32 [N, K]."""
    rows, columns = fields.shape
    each, count = part_columns(bits, columns), parts(bits)
    padded = torch.nn.functional.pad(fields, (0, count * each - columns))
    planes, low = [], 0
    for plane in PLANES:
        if not bits & plane:
            continue
        held = ((padded >> low) & ((1 << plane) - 1)).view(rows, 32 // plane, count * plane // 32, each)
        shifts = torch.arange(0, 32, plane, device=fields.device, dtype=torch.int32)[None, :, None, None]
        planes.append((held << shifts).sum(1, dtype=torch.int32).view(rows, count * plane // 32 * each))
        low += plane
    return torch.cat(planes, dim=1)


def _window(codes: Tensor, bits: int | None) -> tuple[int, int]:
    """Width and offset. Codes without negative ones start at zero, others are split evenly."""
    if codes.numel() == 0:
        return bits or WIDTHS[0], 0
    signed = bool(codes.min() < 0)
    best = None
    for width in WIDTHS if bits is None else (bits,):
        offset = 1 << (width - 1) if signed else 0
        beyond = int(((codes < -offset) | (codes >= (1 << width) - offset)).sum())
        cost = 32 * row_words(width, codes.shape[1]) * codes.shape[0] + OUTLIER * beyond
        if best is None or cost < best[0]:
            best = cost, width, offset
    assert best is not None
    return best[1], best[2]


def _listed(rest: Tensor) -> Tensor | None:
    where, places = rest.nonzero(as_tuple=True)
    if not len(where):
        return None
    counts = torch.bincount(where, minlength=rest.shape[0])
    first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return torch.cat([first.to(torch.int32), places.to(torch.int32), rest[where, places]])


def _narrow(tensor: Tensor | None, narrow: torch.dtype) -> torch.dtype:
    return narrow if tensor is not None and tensor.dtype == narrow else torch.float32


def _balanced(row: Tensor, column: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Steps with the same products, to the bit, and columns about 1, so that activations times columns fit fp16."""
    if column is None or not column.numel() or not row.numel():
        return row.contiguous(), None if column is None else column.contiguous()
    power = torch.frexp(column.median()).exponent
    moved, scaled = torch.ldexp(column, -power), torch.ldexp(row, power)
    same = torch.equal(torch.ldexp(moved, power), column) and torch.equal(torch.ldexp(scaled, -power), row)
    return (scaled.contiguous(), moved.contiguous()) if same else (row.contiguous(), column.contiguous())


def _check(
    codes: Tensor, row: Tensor, column: Tensor | None, scale: Tensor | None, zero: Tensor | None, group_size: int,
    bits: int | None,
) -> None:  # fmt: skip
    if codes.ndim != 2 or codes.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32):
        raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}, expected int8, uint8, int16 or int32 [N, K]")
    if bits is not None and (not isinstance(bits, int) or bits not in WIDTHS):
        raise ValueError(f"bits is {bits}, expected {WIDTHS[0]} to {WIDTHS[-1]}")
    rows, columns = codes.shape
    if (group_size > 0) != (scale is not None) or group_size < 0 or group_size % GROUPED:
        raise ValueError(
            f"group_size is {group_size} {'with' if scale is not None else 'without'} a scale, expected a multiple of "
            f"{GROUPED} with one, or 0 without"
        )
    if zero is not None and scale is None:
        raise ValueError("zero is given without a scale, expected both; a scale of ones changes nothing")
    groups = (rows, -(-columns // group_size)) if group_size else (0, 0)
    for name, tensor, shape in (
        ("row", row, (rows,)), ("column", column, (columns,)), ("scale", scale, groups), ("zero", zero, groups)
    ):  # fmt: skip
        if tensor is None:
            continue
        whole = name == "zero" and tensor.dtype == torch.int8
        if tuple(tensor.shape) != shape or not (tensor.is_floating_point() or whole) or tensor.device != codes.device:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, expected floating point "
                f"{list(shape)} on {codes.device}, where the codes are"
            )
