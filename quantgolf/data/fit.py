"""Whether a text's tokenizer fits a model, found out with one token before anything expensive runs."""

import torch
from torch import nn

from quantgolf.data.corpus import Corpus
from quantgolf.errors import QuantGolfError

# Vocabularies are padded to a multiple of up to so much for the sake of the hardware.
PADDING = 128


def refuse_misfit(model: nn.Module, text: Corpus) -> None:
    """Runs one token through the model and compares its logits with the tokenizer's pieces.

    Raises:
        QuantGolfError: `forward(tokens)` fails, returns something other than logits [B, L, V], or V is not the
            tokenizer's size, give or take padding.
    """
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 1, dtype=torch.int64, device=device))
    except Exception as error:  # whatever the user's own code raises
        raise QuantGolfError(
            f"the model's forward(tokens) failed on one token ({type(error).__name__}: {error}), expected logits "
            "[B, L, V] for int64 tokens [B, L]"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[:2] != (1, 1):
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
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
