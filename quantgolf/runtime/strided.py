"""Views as arithmetic: where the elements of a slice of a contiguous tensor lie, without the tensor.

A packed parameter has no memory that torch could take views of, and what a model does to a weight before it uses it
(slice, transpose, split, reshape) only changes an offset, sizes and strides. In plain Python numbers torch.compile
follows this as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Strided:
    """Element (i, j, …) is number offset + i · strides[0] + j · strides[1] + … of the tensor, in row-major order."""

    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def contiguous(sizes: Sequence[int]) -> "Strided":
        """All of a tensor of these sizes."""
        return Strided(0, tuple(sizes), tuple(math.prod(sizes[at + 1 :]) for at in range(len(sizes))))

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    @property
    def last(self) -> int:
        """The number of its last element."""
        return self.offset + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))

    def dim(self, dim: int) -> int:
        """A dimension counted from the front.

        Raises:
            IndexError: there is none.
        """
        found = dim + len(self.sizes) if dim < 0 else dim
        if not 0 <= found < len(self.sizes):
            raise IndexError(f"dimension is {dim}, expected one of {len(self.sizes)}")
        return found

    def index(self, key: tuple[Any, ...]) -> "Strided | None":
        """What integers, slices, None and `...` choose; None where something else is among them.

        Raises:
            IndexError: an integer out of range, or more indices than dimensions.
        """
        given = sum(1 for each in key if each is not None and each is not Ellipsis)
        if given > len(self.sizes):
            raise IndexError(f"{given} indices for {len(self.sizes)} dimensions")
        if Ellipsis not in key:
            key = (*key, Ellipsis)
        offset, at = self.offset, 0
        sizes: list[int] = []
        strides: list[int] = []
        for each in key:
            if each is None:
                sizes.append(1)
                strides.append(0)
            elif each is Ellipsis:
                stop = at + len(self.sizes) - given
                sizes += self.sizes[at:stop]
                strides += self.strides[at:stop]
                at = stop
            elif isinstance(each, slice):
                start, stop, step = each.indices(self.sizes[at])
                if step < 1:
                    return None
                offset += start * self.strides[at]
                sizes.append(max(0, -(-(stop - start) // step)))
                strides.append(step * self.strides[at])
                at += 1
            elif isinstance(each, int) and not isinstance(each, bool):
                if not -self.sizes[at] <= each < self.sizes[at]:
                    raise IndexError(f"index {each} is out of range for a dimension of {self.sizes[at]}")
                offset += each % self.sizes[at] * self.strides[at]
                at += 1
            else:
                return None
        return Strided(offset, tuple(sizes), tuple(strides))

    def narrow(self, dim: int, start: int, length: int) -> "Strided":
        """`length` places of a dimension, from `start` on.

        Raises:
            IndexError: they leave it.
        """
        dim = self.dim(dim)
        start = start + self.sizes[dim] if start < 0 else start
        if start < 0 or length < 0 or start + length > self.sizes[dim]:
            raise IndexError(f"{start} to {start + length} leaves a dimension of {self.sizes[dim]}")
        sizes = (*self.sizes[:dim], length, *self.sizes[dim + 1 :])
        return Strided(self.offset + start * self.strides[dim], sizes, self.strides)

    def select(self, dim: int, index: int) -> "Strided":
        """One place of a dimension, which goes."""
        dim = self.dim(dim)
        one = self.narrow(dim, index, 1)
        return Strided(one.offset, (*one.sizes[:dim], *one.sizes[dim + 1 :]), _without(one.strides, dim))

    def permute(self, dims: Sequence[int]) -> "Strided":
        """Dimensions in another order.

        Raises:
            IndexError: not each of them once.
        """
        order = [self.dim(dim) for dim in dims]
        if sorted(order) != list(range(len(self.sizes))):
            raise IndexError(f"order is {tuple(dims)}, expected each of {len(self.sizes)} dimensions once")
        return Strided(self.offset, tuple(self.sizes[dim] for dim in order), tuple(self.strides[dim] for dim in order))

    def reshape(self, sizes: Sequence[int]) -> "Strided | None":
        """Other sizes of as many elements; None where no strides give them, which torch copies for.

        Raises:
            ValueError: another number of elements.
        """
        known = math.prod(size for size in sizes if size != -1)
        found = tuple(self.numel // max(1, known) if size == -1 else size for size in sizes)
        if math.prod(found) != self.numel:
            raise ValueError(f"sizes are {list(sizes)}, expected those of {self.numel} elements")
        if not self.numel:
            return None
        strides = [0] * len(found)
        left, step = len(found), 1
        for size, stride in _runs(self):
            # The new sizes, from the last one on, have to fill this run exactly.
            count = 1
            while left and (count < size or found[left - 1] == 1):
                left -= 1
                strides[left] = count * stride
                count *= found[left]
            if count != size:
                return None
            step = count * stride
        for at in range(left):  # nothing but ones is left
            strides[at] = step
        return Strided(self.offset, found, tuple(strides))


def _without(values: tuple[int, ...], at: int) -> tuple[int, ...]:
    return (*values[:at], *values[at + 1 :])


def _runs(view: Strided) -> list[tuple[int, int]]:
    """(elements, stride) of neighbouring dimensions that are one, the last first; sizes of 1 belong to any."""
    runs: list[tuple[int, int]] = []
    for size, stride in zip(reversed(view.sizes), reversed(view.strides), strict=True):
        if size == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    return runs
