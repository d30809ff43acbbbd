"""Windows over a stream of tokens in which every token that can be a target is one exactly once.

Dense windows run over the documents as if they were one text, as Parameter Golf trains; isolated windows keep inside
their document, as a reader meets it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantgolf.errors import QuantGolfError

Context = Literal["dense", "isolated"]


@dataclass(frozen=True, slots=True)
class Window:
    """Inputs are tokens[start:stop], targets tokens[start + 1 : stop + 1]; the first `seen` targets are not scored,
    because an earlier window did."""

    start: int
    stop: int
    seen: int


def windows(
    documents: Sequence[int], length: int, stride: int | None = None, context: Context = "dense"
) -> list[Window]:
    """Windows of up to `length` inputs over documents of so many tokens each, in the order of the text.

    Without overlap (stride None, the same as `length`) the first targets of a window have little context; a
    smaller stride gives every target at least `length` - `stride` inputs, for as many times the work.

    Args:
        documents: tokens of each document, one behind the other in the stream.
        length: tokens the model sees at once.
        stride: how far each window is from the one before.
        context: "dense": all tokens but the stream's first are targets. "isolated": no window reaches into another
            document, and all tokens but the first of each document are targets.

    Raises:
        QuantGolfError: nothing that can be a target, a stride outside 1 to `length`, or another context.
    """
    return list(each_window(documents, length, stride, context))


def each_window(
    documents: Sequence[int], length: int, stride: int | None = None, context: Context = "dense"
) -> Iterator[Window]:
    """As `windows`, made one by one: a text of 62M tokens in strides of 64 has a million.

    Raises:
        QuantGolfError: as `windows`, at once.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise QuantGolfError(f"stride is {stride}, expected 1 to the window's length {length}")
    if context not in ("dense", "isolated"):
        raise QuantGolfError(f"context is {context!r}, expected 'dense' or 'isolated'")
    if not count_targets(documents, context):
        raise QuantGolfError(
            f"text has {sum(documents)} tokens in {len(documents)} documents, expected at least 2 in "
            f"{'all' if context == 'dense' else 'one of them'}: give more text"
        )
    return _made([sum(documents)] if context == "dense" else documents, length, stride)


def count_targets(documents: Sequence[int] | NDArray[np.int64], context: Context) -> int:
    """Tokens that are a target in windows over documents of so many tokens each."""
    lengths = np.asarray(documents, dtype=np.int64)
    found = max(0, lengths.sum() - 1) if context == "dense" else np.maximum(0, lengths - 1).sum()
    return int(found)


def _made(texts: Sequence[int], length: int, stride: int) -> Iterator[Window]:
    first = 0
    for tokens in texts:
        scored, start = 0, 0
        while scored < tokens - 1:
            stop = min(start + length, tokens - 1)
            yield Window(first + start, first + stop, scored - start)
            scored, start = stop, start + stride
        first += tokens


def by_length(found: Sequence[Window]) -> list[list[Window]]:
    """Windows of equal length together, the longest first, so that memory is short at the start or never."""
    groups: dict[int, list[Window]] = {}
    for window in found:
        groups.setdefault(window.stop - window.start, []).append(window)
    return [groups[length] for length in sorted(groups, reverse=True)]
