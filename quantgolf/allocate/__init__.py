"""Allocation: which weight gets how many bits."""

from quantgolf.allocate.by_hand import parse_bits, widths_by_hand
from quantgolf.allocate.knapsack import Cost, allocate

__all__ = ["Cost", "allocate", "parse_bits", "widths_by_hand"]
