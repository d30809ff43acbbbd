"""What becomes of a function of torch that is given a stand-in: a product with codes, or, said aloud, floating point.

`quantgolf.runtime.functions` enters the products. A stand-in of any kind that reaches another function is computed for
that call, and a warning names both.
"""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from quantgolf.errors import QuantGolfError

# What a function does that meets a stand-in; it gives None for a call that it has no product for.
Handler = Callable[..., Any]
HANDLERS: dict[Callable[..., Any], Handler] = {}
CHANGES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"}
OPERATORS = {f"__{side}{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "matmul") for side in ("", "r")}
OPERATORS |= {"__neg__", "__abs__", "__lt__", "__le__", "__gt__", "__ge__"}
# Functions that only look at a tensor in another way, by the name of the method that does the same.
VIEWS = {"select", "narrow", "unbind", "split", "chunk", "transpose", "swapaxes", "swapdims", "permute", "t", "reshape",
         "flatten", "unsqueeze", "squeeze", "detach", "clone"}  # fmt: skip


class Dispatched:
    """Something that torch's functions take for a tensor, and hand to `HANDLERS`."""

    def described(self) -> str:
        """The name of its parameter."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """Its values."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if handler is not None:
            found = handler(*args, **kwargs)
            if found is not None:
                return found
        name = _name_of(func)
        if name in VIEWS and args and isinstance(args[0], Dispatched):
            return getattr(args[0], name)(*args[1:], **kwargs)
        return computed(func, name, args, kwargs)


def _name_of(function: Callable[..., Any]) -> str:
    """A function's name, which torch.compile does not take for a constant by itself."""
    return str(getattr(function, "__name__", function))


def computed(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a function with the values of the stand-ins it was given, and warns.

    Raises:
        QuantGolfError: the function would change one of them.
    """
    changes = name in CHANGES or (name.endswith("_") and not name.endswith("__"))
    changed = next(iter((*args, *kwargs.values())), None) if changes else kwargs.get("out")
    if isinstance(changed, Dispatched):
        raise unchangeable(changed, name)
    return func(*[_value(each, name) for each in args], **{key: _value(each, name) for key, each in kwargs.items()})


def _value(value: Any, function: str) -> Any:
    if isinstance(value, Dispatched):
        _warn(value.described(), function)
        return value.dequantize()
    if isinstance(value, tuple | list) and any(isinstance(each, Dispatched) for each in value):
        return type(value)([_value(each, function) for each in value])
    return value


def _warn(name: str, function: str) -> int:
    """Says at each call what Python shows once; torch.compile, which traces no warnings, says it as it compiles."""
    warnings.warn(
        f"packed weight {name} is unpacked to floating point at each call of {function.strip('_')}, for which there is "
        "no packed form",
        stacklevel=2,
    )
    return 0


# What torch.compiler.assume_constant_result sets, without importing Dynamo, which takes two seconds and triton.
_name_of._dynamo_marked_constant = True  # type: ignore[attr-defined]
_warn._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unchangeable(value: Dispatched, function: str) -> QuantGolfError:
    return QuantGolfError(
        f"packed weight {value.described()} was to be changed by {function}, expected a weight that is only read; "
        "call quantgolf.materialize(module) first, or load with materialize=True"
    )


def computing_method(name: str) -> Callable[..., Any]:
    """A method of tensors for stand-ins, through `__torch_function__`."""
    function = getattr(Tensor, name)

    def method(self: Dispatched, *args: Any, **kwargs: Any) -> Any:
        return Dispatched.__torch_function__(function, (), (self, *args), kwargs)

    method.__name__ = name
    return method
