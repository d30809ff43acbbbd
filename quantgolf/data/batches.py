"""Batches of text to calibrate on: a list that depends on text and settings alone, so that processes can divide it."""

import torch
from torch import Tensor

from quantgolf.data.corpus import Corpus
from quantgolf.data.windows import Context, Window, by_length, windows
from quantgolf.errors import QuantGolfError

TOKENS_AT_ONCE = 4096


def calibration_batches(
    text: Corpus, tokens: int, length: int, context: Context = "dense", at_once: int = TOKENS_AT_ONCE
) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets, int64 [B, L] each, over about the first `tokens` tokens of a text.

    Args:
        text: to calibrate on.
        tokens: inputs to cover: the most whole windows below it in dense context; until a window reaches it in
            isolated context.
        length: tokens the model sees at once.
        context: "dense": every window has `length` inputs and runs over documents. "isolated": every window keeps
            inside one document, so that many are shorter; equal ones are batched, the longest first. Documents of one
            token are left out.
        at_once: most inputs of a batch, which has one window at least.

    Raises:
        QuantGolfError: text, or `tokens`, too little for one window.
    """
    chosen = _dense(text, tokens, length) if context == "dense" else _isolated(text, tokens, length)
    batches = []
    for group in by_length(chosen):
        most = max(1, at_once // (group[0].stop - group[0].start))
        for first in range(0, len(group), most):
            batches.append(stack(text.tokens, group[first : first + most]))
    return batches


def stack(tokens: Tensor, group: list[Window]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [B, L] each, of windows of equal length over tokens [T]."""
    both = torch.stack([tokens[w.start : w.stop + 1].long() for w in group])
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def _dense(text: Corpus, tokens: int, length: int) -> list[Window]:
    available = len(text.tokens) - 1
    if available < length:
        raise QuantGolfError(
            f"calibration text has {available + 1:,} tokens, expected at least one window of {length + 1:,}: "
            "give more text or a smaller --length"
        )
    count = min(tokens, available) // length
    if count == 0:
        raise QuantGolfError(f"calibration of {tokens} tokens is shorter than one window, expected at least {length}")
    return [Window(index * length, (index + 1) * length, 0) for index in range(count)]


def _isolated(text: Corpus, tokens: int, length: int) -> list[Window]:
    if tokens < 1:
        raise QuantGolfError(f"calibration of {tokens} tokens, expected at least 1")
    found = windows(text.lengths.tolist(), length, context="isolated")
    available = sum(w.stop - w.start for w in found)
    if available < length:
        raise QuantGolfError(
            f"calibration text has {available:,} tokens that another follows in its document, expected at least one "
            f"window of {length:,}: give more text or a smaller --length"
        )
    reached = 0
    for count, window in enumerate(found, 1):
        reached += window.stop - window.start
        if reached >= tokens:
            return found[:count]
    return found
