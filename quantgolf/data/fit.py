"""Whether a model can read a text at all, found out with one window before anything expensive runs."""

from typing import Any

import torch
from torch import Tensor, nn

from quantgolf.data.corpus import Corpus
from quantgolf.errors import QuantGolfError

# Vocabularies are padded to a multiple of up to so much for the sake of the hardware.
PADDING = 128


def refuse_misfit(model: nn.Module, text: Corpus, length: int) -> None:
    """Runs one token and then one window of `length` tokens of `text` through the model.

    Raises:
        QuantGolfError: `forward(tokens)` fails, returns something other than logits [B, L, V], or V is not the
            tokenizer's size, give or take padding.
    """
    logits = _forward(model, torch.zeros(1, 1, dtype=torch.int64), "one token", "mend the module")
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != (1, 1):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise QuantGolfError(
            f"the model's forward(tokens) returned {found} for tokens [1, 1], expected logits [1, 1, V]; "
            "name a factory whose module returns logits alone"
        )
    vocabulary = logits.shape[-1]
    if not 0 <= vocabulary - text.vocab_size < PADDING:
        raise QuantGolfError(
            f"the tokenizer has {text.vocab_size:,} pieces and the model {vocabulary:,} logits, expected as many: "
            "give the tokenizer the model was trained with"
        )
    window = text.tokens[None, :length]
    _forward(model, window, f"a window of {window.shape[1]} tokens", "give a smaller --length")


def _forward(model: nn.Module, tokens: Tensor, what: str, remedy: str) -> Any:
    try:
        with torch.no_grad():
            return model(tokens.to(next(model.parameters()).device))
    except Exception as error:  # whatever the user's own code raises
        raise QuantGolfError(
            f"the model's forward(tokens) failed on {what} ({type(error).__name__}: {error}), expected logits "
            f"[B, L, V] for int64 tokens [B, L]; {remedy}"
        ) from error
