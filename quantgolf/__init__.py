"""quantgolf: a trained model into a hard byte budget with the least loss.

The rooms, in the order the data flows, are checkpoint, data, calibrate, allocate, solve, encode, blob, runtime,
evaluate and compress. What most programs begin and end with is here too; it is imported when it is first asked for, so
that the command line is there before torch is and can be stopped from its first moment on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quantgolf.errors import BudgetError, FormatError, QuantGolfError

if TYPE_CHECKING:
    from quantgolf.checkpoint import open_checkpoint
    from quantgolf.data import read_corpus
    from quantgolf.runtime import QuantEmbedding, QuantLinear, load, materialize, memory

__all__ = [
    "BudgetError",
    "FormatError",
    "QuantEmbedding",
    "QuantGolfError",
    "QuantLinear",
    "load",
    "materialize",
    "memory",
    "open_checkpoint",
    "read_corpus",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = {"open_checkpoint": "checkpoint", "read_corpus": "data"}.get(name, "runtime")
    return getattr(import_module(f"{__name__}.{room}"), name)


def __dir__() -> list[str]:
    return __all__
