"""What calibration will see of a model, before anything expensive runs."""

import torch

from quantgolf.calibrate import survey
from quantgolf.checkpoint import Checkpoint
from quantgolf.data import Corpus, refuse_misfit
from quantgolf.types import Calibration

FEW = 64  # tokens, where there is no text yet; models that unfold need some context


def look(checkpoint: Checkpoint, text: Corpus | None = None, *, length: int = 512) -> Calibration:
    """Which matrices meet activations in one forward pass over the beginning of `text`; it has no statistics.

    Args:
        checkpoint: from `open_checkpoint`; its module may be on any device.
        text: None for token 0 some times over.
        length: tokens the model sees at once.

    Raises:
        QuantGolfError: a model whose forward fails, or that gives neither logits nor a loss.
    """
    if text is not None:
        refuse_misfit(checkpoint.module, text, length, losses=True)
        return survey(checkpoint.module, text.tokens[None, :length].long())
    tokens = torch.zeros(1, min(FEW, length), dtype=torch.int64)
    return survey(checkpoint.module, tokens)
