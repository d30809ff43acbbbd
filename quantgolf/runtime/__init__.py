"""Runtime: a compressed file becomes a working module again."""

from quantgolf.runtime.load import load, module_of, restore

__all__ = ["load", "module_of", "restore"]
