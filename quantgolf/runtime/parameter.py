"""A parameter whose matrices are packed: whole, a bank of several, transposed, or with rows that are no codes."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from quantgolf.runtime.blocks import Apply, KeptRows, PackedMatrix
from quantgolf.runtime.standin import StandIn, View
from quantgolf.runtime.strided import Strided
from quantgolf_kernels import Packed


class PackedParameter(StandIn, nn.Module):  # type: ignore[misc]  # casts are a tensor's, not a module's
    """A parameter of a module whose matrices are packed; it lies in the module under the parameter's name.

    Args:
        name: for messages.
        shape: of the parameter.
        lead: how many of its first dimensions are merged into the rows R of [R, C].
        blocks: all its rows, in order.
        dtype: what it says of itself, and what lookups give; follows `.to(dtype)` of the module.
    """

    def __init__(
        self, name: str, shape: Sequence[int], lead: int, blocks: Iterable[PackedMatrix | KeptRows], dtype: torch.dtype
    ) -> None:
        nn.Module.__init__(self)
        self.name, self.lead, self.whole, self.dtype = name, lead, Strided.contiguous(shape), dtype
        self.blocks = nn.ModuleList(blocks)
        self.width = Strided.contiguous(shape[lead:]).numel

    @classmethod
    def of(cls, packed: Packed, name: str, dtype: torch.dtype) -> "PackedParameter":
        """One that is a packed matrix [N, K]."""
        return cls(name, packed.shape, 1, [PackedMatrix(packed, 0, packed.shape[0])], dtype)

    def seen(self) -> View:
        return View(self, self.whole, self.dtype)

    @property
    def parts(self) -> list[PackedMatrix | KeptRows]:
        """Its blocks, in order."""
        return cast(list[PackedMatrix | KeptRows], list(self.blocks))

    @property
    def device(self) -> torch.device:
        first = self.parts[0]
        return (first.data if isinstance(first, PackedMatrix) else first.values).device

    @property
    def matrix(self) -> PackedMatrix | None:
        """The packed matrix [N, K] that is all of it, upright; None where it is not one."""
        first = self.blocks[0]
        alone = isinstance(first, PackedMatrix) and len(self.blocks) == 1 and not first.transposed
        return first if isinstance(first, PackedMatrix) and alone else None

    def values(self, place: Strided, dtype: torch.dtype) -> Tensor:
        """Some of its elements; only the blocks that hold them are unpacked."""
        if place.numel == 0:
            return torch.empty(place.sizes, dtype=dtype, device=self.device)
        first, last = place.offset // self.width, place.last // self.width
        some = [block for block in self.parts if block.start <= last and first < block.stop]
        rows = [block.rows(dtype) for block in some]
        whole = (rows[0] if len(rows) == 1 else torch.cat(rows)).contiguous()
        return whole.as_strided(place.sizes, place.strides, place.offset - some[0].start * self.width)

    def _apply(self, fn: Apply, recurse: bool = True) -> "PackedParameter":
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.device)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, {list(self.shape)}, {self.dtype}"
