"""What a model holds in place of a weight: an object that is sliced, cast and transposed like one, without numbers.

`F.linear(x, self.bank[i].to(x.dtype))` asks no more of a weight than that, and `quantgolf.runtime.dispatch` makes a
product of it where it meets activations. Stand-ins are no `torch.Tensor`: `isinstance` says no, and functions that
torch does not dispatch refuse them.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from quantgolf.runtime.dispatch import (
    CHANGES,
    HANDLERS,
    OPERATORS,
    Dispatched,
    computed,
    computing_method,
    unchangeable,
)
from quantgolf.runtime.strided import Strided

if TYPE_CHECKING:
    from quantgolf.runtime.parameter import PackedParameter


class StandIn(Dispatched):
    """The methods of a tensor that only say how it is looked at; all others compute it."""

    def seen(self) -> "View":
        """This as a view of its parameter."""
        raise NotImplementedError

    layout = torch.strided
    is_sparse = is_meta = is_quantized = False

    def described(self) -> str:
        return self.seen().home.name

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.seen().place.sizes)

    @property
    def ndim(self) -> int:
        return len(self.seen().place.sizes)

    @property
    def device(self) -> torch.device:
        return self.seen().home.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def data(self) -> "StandIn":
        return self

    @property
    def grad(self) -> None:
        return None

    @property
    def requires_grad(self) -> bool:
        """False: codes are not trained. `materialize` makes parameters that are."""
        return False

    def requires_grad_(self, requires_grad: bool = True) -> "StandIn":
        if requires_grad:
            raise unchangeable(self, "requires_grad_")
        return self

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.seen().place.numel

    nelement = numel

    def stride(self, dim: int | None = None) -> Any:
        strides = self.seen().place.strides
        return strides if dim is None else strides[dim]

    def is_floating_point(self) -> bool:
        return True

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind())

    def __getitem__(self, key: Any) -> Any:
        view = self.seen()
        handler = HANDLERS[torch.Tensor.__getitem__]
        found = view.place.index(key if isinstance(key, tuple) else (key,))
        if found is not None:
            return view.at(found)
        chosen = handler(view, key)
        return chosen if chosen is not None else computed(operator.getitem, "__getitem__", (view, key), {})

    def dequantize(self) -> Tensor:
        """The values, in its shape and dtype; computed anew each time."""
        view = self.seen()
        return view.home.values(view.place, view.dtype)

    # Casts.

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Another dtype; a tensor where another device is asked for."""
        view, given = self.seen(), [*args, *kwargs.values()]
        dtypes = [each.dtype if isinstance(each, Tensor) else each for each in given]
        dtype = next((each for each in dtypes if isinstance(each, torch.dtype)), view.dtype)
        places = [each.device if isinstance(each, Tensor) else each for each in given]
        device = next((torch.device(each) for each in places if isinstance(each, torch.device | str | int)
                       and not isinstance(each, bool)), view.device)  # fmt: skip
        here = device.type == view.device.type and device.index in (None, view.device.index)
        if here and dtype.is_floating_point:
            return View(view.home, view.place, dtype)
        return computed(torch.Tensor.to, "to", (view, *args), kwargs)

    def type(self, dtype: Any = None, **kwargs: Any) -> Any:
        return self.to(dtype, **kwargs) if isinstance(dtype, torch.dtype) else self.dequantize().type(dtype)

    def float(self) -> Any:
        return self.to(torch.float32)

    def half(self) -> Any:
        return self.to(torch.float16)

    def bfloat16(self) -> Any:
        return self.to(torch.bfloat16)

    def double(self) -> Any:
        return self.to(torch.float64)

    def type_as(self, other: Any) -> Any:
        return self.to(other.dtype)

    def cpu(self) -> Any:
        return self.to(torch.device("cpu"))

    def cuda(self, device: Any = "cuda", **kwargs: Any) -> Any:
        return self.to(torch.device(device), **kwargs)

    def contiguous(self, **_: Any) -> "View":
        return self.seen()

    def clone(self, **_: Any) -> "View":
        return self.seen()

    def detach(self) -> "View":
        return self.seen()

    # Views.

    def select(self, dim: int, index: int) -> "View":
        return self.seen().at(self.seen().place.select(dim, index))

    def narrow(self, dim: int, start: int, length: int) -> "View":
        return self.seen().at(self.seen().place.narrow(dim, start, length))

    def unbind(self, dim: int = 0) -> tuple["View", ...]:
        return tuple(self.select(dim, at) for at in range(self.shape[dim]))

    def split(self, size: int | Sequence[int], dim: int = 0) -> tuple["View", ...]:
        count = int(self.shape[dim])
        each = [min(size, count - at) for at in range(0, count, size)] if isinstance(size, int) else list(size)
        return tuple(self.narrow(dim, sum(each[:at]), length) for at, length in enumerate(each))

    def chunk(self, chunks: int, dim: int = 0) -> tuple["View", ...]:
        return self.split(-(-int(self.shape[dim]) // chunks), dim)

    def permute(self, *dims: Any) -> "View":
        return self.seen().at(self.seen().place.permute(_numbers(dims)))

    def transpose(self, first: int, second: int) -> "View":
        place = self.seen().place
        order = list(range(len(place.sizes)))
        a, b = place.dim(first), place.dim(second)
        order[a], order[b] = b, a
        return self.permute(*order)

    swapaxes = swapdims = transpose

    def t(self) -> "View":
        return self.seen() if self.ndim < 2 else self.transpose(0, 1)

    @property
    def T(self) -> "View":  # noqa: N802
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self) -> "View":  # noqa: N802
        return self.transpose(-2, -1)

    def reshape(self, *sizes: Any) -> Any:
        view, wanted = self.seen(), _numbers(sizes)
        found = view.place.reshape(wanted)
        return view.at(found) if found is not None else computed(torch.reshape, "reshape", (view, wanted), {})

    def view(self, *sizes: Any) -> Any:
        if isinstance(sizes[0], torch.dtype):  # the same bits read as another dtype
            return computed(Tensor.view, "view", (self, *sizes), {})
        return self.reshape(*sizes)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        sizes, place = list(self.shape), self.seen().place
        start, stop = place.dim(start_dim), place.dim(end_dim)
        return self.reshape(*sizes[:start], -1, *sizes[stop + 1 :])

    def unsqueeze(self, dim: int) -> "View":
        at = dim + self.ndim + 1 if dim < 0 else dim
        return cast(View, self[(*[slice(None)] * at, None)])

    def squeeze(self, dim: int | None = None) -> "View":
        some = range(self.ndim) if dim is None else [self.seen().place.dim(dim)]
        key = tuple(0 if i in some and size == 1 else slice(None) for i, size in enumerate(self.shape))
        return cast(View, self[key])


class View(StandIn):
    """Some elements of a packed parameter, seen in some shape and dtype."""

    def __init__(self, home: "PackedParameter", place: Strided, dtype: torch.dtype) -> None:
        self.home, self.place, self.dtype = home, place, dtype

    def seen(self) -> "View":
        return self

    def at(self, place: Strided) -> "View":
        """Others of its parameter's elements."""
        return View(self.home, place, self.dtype)

    def __repr__(self) -> str:
        return f"View({self.home.name}, {list(self.place.sizes)}, {self.dtype})"


def _numbers(given: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes or dimensions however they were passed."""
    found = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
    return tuple(int(each) for each in found)


for _name in dir(Tensor):
    _special = _name in OPERATORS | CHANGES
    _public = not _name.startswith("_") and callable(getattr(Tensor, _name)) and not hasattr(nn.Module, _name)
    if (_special or _public) and _name not in vars(StandIn):
        setattr(StandIn, _name, computing_method(_name))
