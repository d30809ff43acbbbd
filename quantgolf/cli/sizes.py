"""Sizes as people write them; see `quantgolf.sizes`."""

from quantgolf.sizes import parse_size

__all__ = ["parse_size"]
