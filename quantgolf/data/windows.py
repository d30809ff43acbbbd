"""Windows over a stream of tokens in which every token but the first is a target exactly once."""

from dataclasses import dataclass

from quantgolf.errors import QuantGolfError


@dataclass(frozen=True)
class Window:
    """Inputs are tokens[start:stop], targets tokens[start + 1 : stop + 1]; the first `seen` targets are not scored,
    because an earlier window did."""

    start: int
    stop: int
    seen: int


def windows(tokens: int, length: int, stride: int | None = None) -> list[Window]:
    """Windows of up to `length` inputs over `tokens` tokens, each `stride` after the one before.

    Without overlap (stride None, the same as `length`) the first targets of a window have little context; a
    smaller stride gives every target at least `length` - `stride` inputs, for as many times the work.

    Raises:
        QuantGolfError: fewer than two tokens, or a stride outside 1 to `length`.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise QuantGolfError(f"stride is {stride}, expected 1 to the window's length {length}")
    if tokens < 2:
        raise QuantGolfError(f"text has {tokens} tokens, expected at least 2: give more text")
    found, scored, start = [], 0, 0
    while scored < tokens - 1:
        stop = min(start + length, tokens - 1)
        found.append(Window(start, stop, scored - start))
        scored, start = stop, start + stride
    return found
