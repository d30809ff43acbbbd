"""Compress: the rooms put together, from a checkpoint and text to the bytes of a file under the budget."""

from quantgolf.compress.pipeline import Compressed, calibrate, compress
from quantgolf.compress.refuse import refuse_unreachable

__all__ = ["Compressed", "calibrate", "compress", "refuse_unreachable"]
