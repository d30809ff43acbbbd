"""Calibration text is cut in two: statistics are learned from the first part, and what was chosen by them is judged on
the part behind it, which they have never seen."""

from dataclasses import dataclass

import numpy as np

from quantgolf.data import Context, Corpus, windows
from quantgolf.errors import QuantGolfError

HELD_OUT = 16_384  # tokens; with windows of 512 that is 32 of them
SHARE = 4  # of a text too short for both parts, one in so many tokens is held out


@dataclass(frozen=True)
class HeldOut:
    """Text that statistics have not seen, and how the model reads it.

    Attributes:
        text: the held-out part.
        length: tokens the model sees at once.
        context: as `windows` takes it.
    """

    text: Corpus
    length: int = 512
    context: Context = "dense"


def split_calibration(
    text: Corpus, tokens: int, held_out_tokens: int = HELD_OUT, *, length: int = 512, context: Context = "dense"
) -> tuple[Corpus, Corpus]:
    """What `calibrate` covers with `tokens` tokens of a text, and `held_out_tokens` of what lies behind it.

    The second part begins with a document where enough text is behind one, else inside one. Of a text too short for
    both parts, a quarter (or what is behind the first part, if that is more) is held out.

    Raises:
        QuantGolfError: fewer than four windows of text, or numbers that are not positive.
    """
    _refuse_too_few(tokens, held_out_tokens, length)
    count, begin = len(text.tokens), _covered(text, tokens, length, context)
    if count < SHARE * (length + 1):
        raise QuantGolfError(
            f"calibration text has {count:,} tokens, expected at least {SHARE * (length + 1):,} (four windows) to "
            "learn from most of them and hold out the rest; give more text, a smaller --length, or --no-guard"
        )
    held = min(held_out_tokens, max(count - begin, count // SHARE))
    begin = min(begin, count - held)
    return part_of(text, 0, begin), _from_document(text, begin, held)


def behind(
    text: Corpus, tokens: int, held_out_tokens: int = HELD_OUT, *, length: int = 512, context: Context = "dense"
) -> Corpus:
    """`held_out_tokens` of what is behind the first `tokens` tokens of a text, or as many of them as there are.

    Raises:
        QuantGolfError: less than one window of text is left, or numbers that are not positive.
    """
    _refuse_too_few(tokens, held_out_tokens, length)
    begin = _covered(text, tokens, length, context)
    left = len(text.tokens) - begin
    if left < length + 1:
        raise QuantGolfError(
            f"text has {max(0, left):,} tokens behind the {tokens:,} that statistics were learned from, expected at "
            f"least one window of {length + 1:,} to hold out; give more text, or --no-guard"
        )
    return _from_document(text, begin, min(left, held_out_tokens))


def part_of(text: Corpus, start: int, stop: int) -> Corpus:
    """Tokens `start` to `stop` of a text. A document that is cut has its bytes divided in proportion to its tokens;
    `unknown` stays that of the whole text, whose unknown piece is not known here."""
    lengths = text.lengths
    first = np.cumsum(lengths) - lengths
    before = [text.bytes * np.clip(at - first, 0, lengths) // np.maximum(1, lengths) for at in (start, stop)]
    document = text.document[start:stop]
    met = slice(int(document[0]), int(document[-1]) + 1) if stop > start else slice(0, 0)
    return Corpus(
        tokens=text.tokens[start:stop],
        document=document - (document[0] if stop > start else 0),
        bytes=(before[1] - before[0])[met],
        bos=text.bos,
        vocab_size=text.vocab_size,
        unknown=text.unknown,
        uncounted=text.uncounted,
        counted=text.counted,
    )


def _refuse_too_few(tokens: int, held_out_tokens: int, length: int) -> None:
    if tokens < 1:
        raise QuantGolfError(f"tokens is {tokens}, expected at least 1")
    if held_out_tokens < length + 1:
        raise QuantGolfError(
            f"{held_out_tokens} tokens are to be held out, expected at least one window of {length + 1:,}; give a "
            "larger --held-out or a smaller --length"
        )


def _covered(text: Corpus, tokens: int, length: int, context: Context) -> int:
    """Tokens that calibration on `tokens` inputs reads of the text, were it read no further than the end of the
    document that the last of so many tokens is in, as a text is that nothing is held out of."""
    ends = np.cumsum(text.lengths)
    last = min(int(np.searchsorted(ends, tokens)), len(ends) - 1)
    if context == "dense":
        return min(int(ends[last]), tokens + 1)
    reached = 0
    for window in windows(text.lengths[: last + 1].tolist(), length, context=context):
        reached += window.stop - window.start
        if reached >= tokens:
            return window.stop + 1
    return int(ends[last])


def _from_document(text: Corpus, begin: int, count: int) -> Corpus:
    """`count` tokens from the first document that begins at or behind `begin` and has enough text behind it."""
    later = np.flatnonzero(np.diff(text.document.numpy(), prepend=-1))
    fitting = later[(later >= begin) & (later + count <= len(text.tokens))]
    start = int(fitting[0]) if len(fitting) else begin
    return part_of(text, start, start + count)
