"""Allocation: which weight gets how many bits, and how many columns to a scale."""

from quantgolf.allocate.by_hand import parse_bits, widths_by_hand
from quantgolf.allocate.knapsack import Cost, allocate, plan_of

__all__ = ["Cost", "allocate", "parse_bits", "plan_of", "widths_by_hand"]
