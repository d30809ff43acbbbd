"""quantgolf: a trained model into a hard byte budget with the least loss.

The rooms, in the order the data flows, are checkpoint, data, calibrate, allocate, solve, encode, blob, runtime,
evaluate and compress. What most programs begin and end with is here too.
"""

from quantgolf.checkpoint import open_checkpoint
from quantgolf.data import read_corpus
from quantgolf.errors import BudgetError, FormatError, QuantGolfError
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
