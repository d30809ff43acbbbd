"""Runtime: a compressed file becomes a working module again, run straight from its packed weights or from floats."""

from quantgolf.runtime.digest import digest
from quantgolf.runtime.linear import QuantEmbedding, QuantLinear, materialize
from quantgolf.runtime.load import load, module_of
from quantgolf.runtime.memory import Memory, TensorMemory, memory
from quantgolf.runtime.parameter import PackedParameter
from quantgolf.runtime.restore import restore, restored
from quantgolf.runtime.write import write_on

__all__ = [
    "Memory",
    "PackedParameter",
    "QuantEmbedding",
    "QuantLinear",
    "TensorMemory",
    "digest",
    "load",
    "materialize",
    "memory",
    "module_of",
    "restore",
    "restored",
    "write_on",
]
