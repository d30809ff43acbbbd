"""Whether a model can read a text at all, found out with one window before anything expensive runs."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from quantgolf.checkpoint.call import device_of, gives_logits, logits_of, loss_of, reading
from quantgolf.data.corpus import Corpus
from quantgolf.data.windows import Context
from quantgolf.errors import QuantGolfError

# Vocabularies are padded for the sake of the hardware: to a multiple of up to 128, and large ones by up to 1.8%
# (Phi-2: 51,200 logits for 50,295 pieces; Qwen2.5: 152,064 for 151,665).
PADDING, PADDING_SHARE = 128, 50
Found = TypeVar("Found")


def refuse_misfit(
    model: nn.Module, text: Corpus, length: int, context: Context = "dense", *, losses: bool = False
) -> None:
    """Runs one token, where it can, and then the longest window of `text` through the model.

    Args:
        model: anything `checkpoint.call` understands.
        text: what it is to read.
        length: tokens it sees at once; no more than the longest document has in isolated context.
        context: as `windows` takes it.
        losses: whether a model that gives nothing but a loss will do; its vocabulary is not known then.

    Raises:
        QuantGolfError: the model fails, returns something other than logits [B, L, V], or V is not the tokenizer's
            size, give or take padding.
    """
    start, longest = 0, len(text.tokens)
    if context == "isolated":
        lengths = text.lengths
        start, longest = int(lengths[: lengths.argmax()].sum()), int(lengths.max())
    whole = text.tokens[None, start : start + min(length + 1, longest)].long().to(device_of(model))
    inputs, targets = (whole[:, :-1], whole[:, 1:]) if whole.shape[1] > 1 else (whole, whole)
    first = ("one token", "mend the module")
    window = (f"a window of {inputs.shape[1]} tokens", "give a smaller --length")
    with reading(model):
        one = _fewest(model, torch.zeros_like(inputs))
        if losses and not _tried(lambda: gives_logits(model, one), *first):
            _tried(lambda: loss_of(model, inputs, targets), *window)
            return
        vocabulary = _tried(lambda: logits_of(model, one), *first).shape[-1]
        if not 0 <= vocabulary - text.vocab_size < max(PADDING, text.vocab_size // PADDING_SHARE):
            raise QuantGolfError(
                f"the tokenizer has {text.vocab_size:,} pieces and the model {vocabulary:,} logits, expected as many: "
                "give the tokenizer the model was trained with"
            )
        _tried(lambda: logits_of(model, inputs, targets), *window)


def _fewest(model: nn.Module, zeros: Tensor) -> Tensor:
    """One token of `zeros` [1, L]; all where the model cannot do with one (a convolution needs its kernel's width)."""
    one = zeros[:, :1]
    try:
        gives_logits(model, one)
    except QuantGolfError:
        return one
    except Exception:  # whatever the user's own code raises
        with suppress(Exception):
            gives_logits(model, zeros)
            return zeros
    return one


def _tried(call: Callable[[], Found], what: str, remedy: str) -> Found:
    try:
        return call()
    except QuantGolfError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise QuantGolfError(
            f"the model's forward(tokens) failed on {what} ({type(error).__name__}: {error}), expected logits "
            f"[B, L, V] for int64 tokens [B, L]; {remedy}"
        ) from error
