"""The parts of a packed parameter: matrices of codes, and rows that stay floating point."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantgolf_kernels.ops import matmul, weights
from quantgolf_kernels.packing import Packed

Apply = Callable[[Tensor], Tensor]


class PackedMatrix(nn.Module):
    """A `Packed` whose tensors are buffers, so that `.to(device)`, `state_dict` and torch.compile know them.

    It holds rows `start` to `stop` of its parameter seen as [R, C]: as [N, K] where it is upright, as their transpose
    where it is `transposed`. Steps stay fp32 and codes integers, whatever dtype a module is cast to.

    Args:
        packed: codes and steps.
        start, stop, transposed: as in `quantgolf.types.Block`.
        file_bytes: what the file spends on this matrix; None where it does not come from a file.
    """

    data: Tensor
    row: Tensor
    column: Tensor | None
    outliers: Tensor | None
    scale: Tensor | None
    zero: Tensor | None

    def __init__(
        self, packed: Packed, start: int, stop: int, transposed: bool = False, file_bytes: float | None = None
    ) -> None:
        super().__init__()
        for name in ("data", "row", "column", "outliers", "scale", "zero"):
            self.register_buffer(name, getattr(packed, name))
        self.bits, self.offset, self.columns = packed.bits, packed.offset, packed.columns
        self.group_size = packed.group_size
        self.start, self.stop, self.transposed, self.file_bytes = start, stop, transposed, file_bytes

    @property
    def packed(self) -> Packed:
        """Its codes and steps, [N, K]."""
        return Packed(
            self.data, self.row, self.bits, self.offset, self.columns, self.column, self.outliers, self.scale,
            self.zero, self.group_size,
        )  # fmt: skip

    def rows(self, dtype: torch.dtype) -> Tensor:
        """The values [stop - start, C], rounded to `dtype`."""
        exact = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
        found: Tensor = weights(self.packed, exact).to(dtype)
        return found.T if self.transposed else found

    def product(self, x: Tensor, turned: bool) -> Tensor | None:
        """x [..., C] times the transposed rows, [..., stop - start]; `turned`: x [..., stop - start] times the rows,
        [..., C]. None where the codes lie the other way around, which no kernel multiplies."""
        return matmul(x, self.packed) if turned == self.transposed else None

    def _apply(self, fn: Apply, recurse: bool = True) -> "PackedMatrix":
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            moved = self._buffers[name]
            if tensor is not None and moved is not None and moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self

    def extra_repr(self) -> str:
        return f"{list(self.packed.shape)}, bits={self.bits}, {self.packed.bpw:.3f} packed bits per weight"


class KeptRows(nn.Module):
    """Rows `start` to `stop` of a parameter seen as [R, C] in floating point, [stop - start, C].

    Args:
        values: them.
        start: the first of them.
        unpackable: where codes stood there in the file, why they are not packed.
    """

    values: Tensor

    def __init__(self, values: Tensor, start: int, unpackable: str = "") -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.start, self.stop, self.unpackable = start, start + len(values), unpackable

    def rows(self, dtype: torch.dtype) -> Tensor:
        """The values [stop - start, C], rounded to `dtype`."""
        return self.values.to(dtype)

    def product(self, x: Tensor, turned: bool) -> Tensor | None:
        """As that of `PackedMatrix`, either way around."""
        values = self.values.to(x.dtype)
        return torch.matmul(x, values if turned else values.T)

    def extra_repr(self) -> str:
        return f"{list(self.values.shape)}, {self.values.dtype}"
