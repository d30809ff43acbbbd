"""Widths by hand: `mlp.*=5,attn.*=6,emb=7`."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from quantgolf.errors import QuantGolfError

WIDTHS = range(2, 9)


def parse_bits(text: str) -> list[tuple[str, int]]:
    """Pairs (pattern, width) of `PATTERN=WIDTH,…`; a bare width stands for `*=WIDTH`.

    Raises:
        QuantGolfError: not of that form, or a width outside 2 to 8.
    """
    pairs = []
    for part in text.split(","):
        pattern, equals, width = part.strip().rpartition("=")
        if not re.fullmatch(r"\d+", width) or (equals and not pattern):
            raise QuantGolfError(f"bits: {part.strip()!r} is not PATTERN=WIDTH, expected for example 'mlp.*=5,emb=7'")
        if int(width) not in WIDTHS:
            raise QuantGolfError(f"bits: width {width} in {part.strip()!r}, expected {WIDTHS[0]} to {WIDTHS[-1]}")
        pairs.append((pattern or "*", int(width)))
    return pairs


def widths_by_hand(rules: Sequence[tuple[str, int]], names: Iterable[str]) -> dict[str, int]:
    """Width of every name: that of the first pattern that matches it.

    A pattern (shell wildcards) matches a name when it matches any run of the name's dotted parts, so that
    `attn.*` finds `blocks.0.attn.q.weight` and `emb` finds `emb.weight`.

    Raises:
        QuantGolfError: a name that no pattern matches, or a pattern that matches no name.
    """
    names = list(names)
    widths: dict[str, int] = {}
    used = set()
    for name in names:
        for pattern, width in rules:
            if any(fnmatchcase(run, pattern) for run in _runs(name)):
                widths[name] = width
                used.add(pattern)
                break
    missed = [name for name in names if name not in widths]
    if missed:
        raise QuantGolfError(f"bits: no pattern matches {', '.join(missed[:5])}; add '*=WIDTH' at the end for the rest")
    idle = [pattern for pattern, _ in rules if pattern not in used]
    if idle:
        raise QuantGolfError(
            f"bits: {', '.join(idle)} decides no weight, expected patterns of names such as {', '.join(names[:3])}; "
            "mend it or move it before the pattern that covers it"
        )
    return widths


def _runs(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]
