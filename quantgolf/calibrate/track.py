"""Where the elements of a tensor come from: parameters followed through views, casts, reshapes and concatenations.

Every element of every parameter has a number. A view lies in its parameter's memory, so that its address and
strides alone tell its numbers, whatever chain of slices, transposes and splits made it. Only operations that copy
have to be watched: they enter their new memory, with the numbers its elements had before.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Operations that only re-present their input: the output's elements are the input's, in the output's shape.
COPIES: set[Callable[..., Any]] = {
    torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as, torch.Tensor.float, torch.Tensor.double,
    torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.contiguous,
    torch.Tensor.clone, torch.clone, torch.Tensor.reshape, torch.reshape, torch.Tensor.flatten, torch.flatten,
    torch.Tensor.detach, torch.detach,
}  # fmt: skip
JOINS: set[Callable[..., Any]] = {torch.cat, torch.concat, torch.concatenate, torch.stack}


@dataclass(frozen=True)
class Home:
    """A parameter: its elements have the numbers `first` to `first` + numel - 1, in its own row-major order."""

    name: str
    first: int
    shape: tuple[int, ...]
    address: int
    itemsize: int

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Piece:
    """Rows of a matrix [N, K] that come from one parameter: element (i, j) has the number start + i·row + j·column."""

    rows: range
    columns: int
    home: Home
    start: int
    row: int
    column: int


@dataclass
class Origin:
    """A copy's memory: its element i has the number `first` + i, or `numbers[i]` where copying changed the order."""

    first: int
    numbers: Tensor | None = None


class Tracker:
    """Knows, during one forward pass, which tensors are made of which parameters' elements."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        self.homes: list[Home] = []
        first = 1
        for name, parameter in parameters:
            if not parameter.numel() or not parameter.is_contiguous():
                continue
            home = Home(name, first, tuple(parameter.shape), parameter.data_ptr(), parameter.element_size())
            self.homes.append(home)
            first += home.numel
        self._by_address = sorted(self.homes, key=lambda home: home.address)
        self._addresses = [home.address for home in self._by_address]
        self._firsts = [home.first for home in self.homes]
        self._copies: dict[int, Origin] = {}
        self._alive: list[torch.UntypedStorage] = []

    def forget(self) -> None:
        """Ends a forward pass: its copies are gone, their places in memory will be taken by others."""
        self._copies.clear()
        self._alive.clear()

    def knows(self, value: object) -> bool:
        """Whether a value is a tensor made of parameters' elements."""
        return (
            isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.numel() > 0
            and not wrapped(value)
            and (value.untyped_storage().data_ptr() in self._copies or self._home_at(value) is not None)
        )

    def names_of(self, tensor: Tensor) -> set[str]:
        """Names of the parameters a known tensor shows elements of."""
        home = self._home_at(tensor)
        if home is not None:
            return {home.name}
        numbers = self._numbers(tensor)
        low, high = int(numbers.min()), int(numbers.max())
        return {home.name for home in self.homes if home.first <= high and low < home.first + home.numel}

    def follow(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        """Enters the output of an operation that copies known elements; says whether the output is known now."""
        if not isinstance(output, Tensor):
            return any(map(self.knows, output))
        if self.knows(output) or not output.numel():
            return True
        if function in COPIES and self.knows(args[0]) and args[0].numel() == output.numel():
            source: Tensor = args[0]
            if source.shape == output.shape and source.stride() == output.stride():
                first = self._first(source)
                if first is not None:
                    self._enter(output, Origin(first - int(output.storage_offset())))
                    return True
            logical = self._numbers(source).reshape(output.shape)
        elif function in JOINS and all(map(self.knows, args[0] if args else kwargs["tensors"])):
            parts = args[0] if args else kwargs["tensors"]
            logical = function(
                [self._numbers(part) for part in parts],
                *args[1:], **{key: value for key, value in kwargs.items() if key in ("dim", "axis")},
            )  # fmt: skip
        else:
            return False
        numbers = torch.zeros(output.untyped_storage().nbytes() // output.element_size(), dtype=torch.int64)
        numbers.as_strided(output.shape, output.stride(), output.storage_offset()).copy_(logical)
        self._enter(output, Origin(0, numbers))
        return True

    def drop(self, tensor: Tensor) -> None:
        """Forgets a copy that is about to be changed in place: it is no parameter's any more."""
        self._copies.pop(tensor.untyped_storage().data_ptr(), None)

    def home_of(self, tensor: Tensor) -> str | None:
        """The parameter in whose memory a known tensor lies; None where it is a copy."""
        home = self._home_at(tensor)
        return None if home is None else home.name

    def pieces(self, view: Tensor, shape: tuple[int, int]) -> list[Piece]:
        """The parameters' parts that a known tensor, read as a matrix of this shape, is made of, from its first row
        to its last; what has no regular place in a parameter is left out."""
        first = self._first(view)
        spans: list[tuple[range, int, int, int]] = []
        if first is not None:
            try:
                row, column = view.view(shape).stride()
                spans = [(range(shape[0]), first, row, column)]
            except RuntimeError:  # its axes do not merge into two: no single step from row to row
                pass
        if not spans:
            spans = _regular_spans(self._numbers(view).reshape(shape), self._firsts)
        found = []
        for rows, start, row, column in spans:
            last = start + (len(rows) - 1) * row + (shape[1] - 1) * column
            home = self.homes[max(0, bisect_right(self._firsts, start) - 1)]
            if home.first <= start and last < home.first + home.numel:
                found.append(Piece(rows, shape[1], home, start - home.first, row, column))
        return found

    def _enter(self, output: Tensor, origin: Origin) -> None:
        storage = output.untyped_storage()
        self._copies[storage.data_ptr()] = origin
        self._alive.append(storage)

    def _home_at(self, tensor: Tensor) -> Home | None:
        """The parameter in whose memory a tensor begins."""
        address = tensor.data_ptr()
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        home = self._by_address[index]
        return home if address < home.address + home.numel * home.itemsize else None

    def _first(self, tensor: Tensor) -> int | None:
        """The number of a known tensor's first element, where all others follow from its strides."""
        home = self._home_at(tensor)
        if home is not None:
            return home.first + (tensor.data_ptr() - home.address) // home.itemsize
        origin = self._copies[tensor.untyped_storage().data_ptr()]
        return origin.first + int(tensor.storage_offset()) if origin.numbers is None else None

    def _numbers(self, tensor: Tensor) -> Tensor:
        """The numbers of a known tensor's elements, int64 in its shape."""
        first = self._first(tensor)
        if first is None:
            numbers = self._copies[tensor.untyped_storage().data_ptr()].numbers
            assert numbers is not None
            return numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        logical = torch.tensor(first)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            logical = logical[..., None] + torch.arange(size) * stride
        return logical


def wrapped(tensor: Tensor) -> bool:
    """Whether `torch.func` (vmap, grad, jvp) or a compiler stands between a tensor and its memory."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor)) or tensor.is_meta


def _regular_spans(numbers: Tensor, firsts: list[int]) -> list[tuple[range, int, int, int]]:
    """Runs of rows of numbers [N, K] that lie in one parameter, with one step along rows and one along columns: rows,
    first number, steps. `firsts` are the first numbers of parameters, rising."""
    columns = numbers.diff(dim=1)
    even = (columns == columns[:, :1]).all(1) if numbers.shape[1] > 1 else torch.ones(len(numbers), dtype=torch.bool)
    step = (columns[:, 0] if numbers.shape[1] > 1 else torch.ones(len(numbers), dtype=torch.int64)).tolist()
    first, regular = numbers[:, 0].tolist(), even.tolist()
    owner = torch.searchsorted(torch.tensor(firsts), numbers[:, 0].contiguous(), right=True).tolist()
    spans: list[tuple[range, int, int, int]] = []
    at = 0
    while at < len(first):
        stop = at + 1
        if regular[at] and first[at] > 0:
            row = first[stop] - first[at] if stop < len(first) else 0
            while (
                stop < len(first)
                and regular[stop]
                and step[stop] == step[at]
                and owner[stop] == owner[at]
                and first[stop] - first[stop - 1] == row
            ):  # fmt: skip
                stop += 1
            spans.append((range(at, stop), first[at], row, step[at]))
        at = stop
    return spans
