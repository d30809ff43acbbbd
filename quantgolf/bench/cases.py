"""What is measured of the kernels: products, lookups and unpacking of a packed matrix, and what they have to equal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf_kernels.packing import Packed, pack

OPS = ("product", "materialised", "unpack", "lookup")
KINDS = ("steps", "rows", "outliers", "groups")
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
ROWS = (1, 4, 16, 64, 256, 1024, 4096, 8192)
SQUARES = (512, 1024, 2048, 4096, 8192, 16384)
# The contest's shapes: attention, queries with keys and values, MLP up and down, and the head of 1,024 tokens.
CONTEST = ((512, 512), (1536, 512), (512, 1536), (2048, 512), (512, 2048), (1024, 512))
SHAPES = tuple(dict.fromkeys([(size, size) for size in SQUARES] + list(CONTEST)))
GROUP = 128
OUTLIERS = 0.005  # of all levels
FULL = (8192, 8192), (2048, 512)  # shapes at which every kind and every op is measured


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        op: "product" of activations [m, k] with the packed matrix [n, k]; "materialised", with the weights unpacked
            before; "unpack" of all weights; "lookup" of m rows.
        kind: "steps": of rows and columns, as one slope has them. "rows": of rows alone. "outliers": steps, and 0.5% of
            the levels beyond the width. "groups": a scale and a zero for each 128 columns of a row.
        bits: of the planes.
        m: rows of activations, or tokens; 0 for unpack.
    """

    op: str
    kind: str
    bits: int
    m: int
    n: int
    k: int

    @property
    def name(self) -> str:
        rows = f" m={self.m}" if self.m else ""
        return f"{self.op} {self.kind} W{self.bits} {self.n}x{self.k}{rows}"


def plan(
    widths: Sequence[int], shapes: Sequence[tuple[int, int]], rows: Sequence[int], kinds: Sequence[str] = KINDS,
    ops: Sequence[str] = OPS,
) -> Iterator[tuple[tuple[int, int], list[list[Case]]]]:  # fmt: skip
    """Cases by shape, those of one packed matrix together. Kinds beside steps, and ops beside products and materialised
    weights, only at the shapes of `FULL`, or where no other shape is asked for."""
    for name, asked, known in (("width", widths, WIDTHS), ("kind", kinds, KINDS), ("op", ops, OPS)):
        for value in asked:
            if value not in known:
                raise QuantGolfError(f"{name} {value} is not known, expected one of {', '.join(map(str, known))}")
    everywhere = not set(shapes) & set(FULL)
    for n, k in shapes:
        matrices = []
        for bits in widths:
            for kind in kinds:
                full = everywhere or (n, k) in FULL
                if kind != "steps" and not full:
                    continue
                cases = [Case("product", kind, bits, m, n, k) for m in rows if "product" in ops]
                if kind == "steps" and "materialised" in ops:
                    cases += [Case("materialised", kind, bits, m, n, k) for m in rows]
                if full and "unpack" in ops:
                    cases.append(Case("unpack", kind, bits, 0, n, k))
                if full and kind in ("steps", "outliers") and "lookup" in ops:
                    cases += [Case("lookup", kind, bits, m, n, k) for m in rows]
                if cases:
                    matrices.append(cases)
        yield (n, k), matrices


def parse_shape(text: str) -> tuple[int, int]:
    """`8192x4096` (rows, then columns) or `8192` for a square.

    Raises:
        QuantGolfError: it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() and 0 < int(part) < 1 << 20 for part in parts):
        return int(parts[0]), int(parts[-1])
    raise QuantGolfError(f"shape {text!r} is not understood, expected ROWSxCOLUMNS, such as 8192x4096, or one number")


@dataclass(frozen=True)
class Made:
    """A packed matrix and the same weights from the same codes, fp64 [N, K], nothing rounded."""

    packed: Packed
    weights: Tensor


def make(case: Case, device: torch.device, generator: torch.Generator) -> Made:
    """A matrix of random codes, each as often as any other; all of its tensors are drawn anew at each call."""
    n, k, bits = case.n, case.k, case.bits
    offset = 1 << (bits - 1)
    codes = torch.randint(-offset, offset, (n, k), device=device, generator=generator, dtype=torch.int16)
    codes[0, 0] = -offset  # so that the width is that of the case however small the matrix is
    if case.kind == "outliers":
        beyond = torch.rand(n, k, device=device, generator=generator) < OUTLIERS
        far = torch.randint(1, 40, (n, k), device=device, generator=generator, dtype=torch.int16)
        codes = torch.where(beyond, torch.where(codes < 0, -offset - far, offset - 1 + far), codes)
    row = _factors(n, device, generator) * k**-0.5 / offset
    column = None if case.kind in ("rows", "groups") else _factors(k, device, generator)
    wide, scale, zero = codes.double(), None, None
    if case.kind == "groups":
        groups = -(-k // GROUP)
        scale = _factors(n * groups, device, generator).view(n, groups)
        zero = torch.randint(-2, 3, (n, groups), device=device, generator=generator).float()
        spread = torch.arange(k, device=device) // GROUP
        wide = (wide - zero.double()[:, spread]) * scale.double()[:, spread]
    packed = pack(codes, row, column, scale=scale, zero=zero, group_size=GROUP if scale is not None else 0, bits=bits)
    wide *= row.double()[:, None]
    if column is not None:
        wide *= column.double()
    return Made(packed, wide)


def clones(packed: Packed, count: int) -> list[Packed]:
    """The matrix and copies of it in memory of their own, `count` in all."""

    def copied() -> Packed:
        tensors: dict[str, Any] = {name: tensor.clone() for name, tensor in packed.tensors.items()}
        return replace(packed, **tensors)

    return [packed, *(copied() for _ in range(count - 1))]


def _factors(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """fp32 [count], spread about 1 by a third either way."""
    return torch.randn(count, device=device, generator=generator).mul(0.3).exp()
