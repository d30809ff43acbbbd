"""Scores every token of a text once and books its loss to the document it belongs to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantgolf.data import Corpus, Window, refuse_misfit, windows
from quantgolf.errors import QuantGolfError
from quantgolf.types import EvalResult

LOGITS_AT_ONCE = 1 << 23


def evaluate(
    model: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Loss of a model on text.

    Args:
        model: `forward(tokens)` → logits [B, L, V], on any device.
        text: what to score. Each token but the first is a target once; the loss of a BOS belongs to the document
            it ends. A stream without BOS begins with a token nothing predicts: it is booked at ln V.
        length: tokens the model sees at once.
        stride: new targets a window; None for windows that do not overlap.
        progress: called with (tokens scored, tokens to score).

    Raises:
        QuantGolfError: a tokenizer that does not fit the model, logits that are not finite, or too little text.
    """
    with _evaluating(model):
        (result,) = _score([model], text, length, stride, progress)
    return result


def evaluate_against(
    model: nn.Module,
    reference: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[EvalResult, EvalResult]:
    """Loss of a model with its KL(reference ‖ model), and the loss of the reference; arguments as `evaluate`.

    Raises:
        QuantGolfError: as `evaluate`, or logits of different sizes.
    """
    with _evaluating(reference, model):
        base, result = _score([reference, model], text, length, stride, progress)
    return result, base


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Without gradients, and models in evaluation mode; they leave in the mode they came in."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _score(
    models: list[nn.Module],
    text: Corpus,
    length: int,
    stride: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[EvalResult]:
    """Results of several models in one pass; those after the first have their KL to the first."""
    for model in models:
        refuse_misfit(model, text, length)
    count = len(text.tokens)
    nats = np.zeros((len(models), count))
    kl = np.zeros((len(models), count))
    scored = 0
    for batch in _batches(windows(count, length, stride), max(1, LOGITS_AT_ONCE // (length * text.vocab_size))):
        inputs = torch.stack([text.tokens[w.start : w.stop] for w in batch])
        targets = torch.stack([text.tokens[w.start + 1 : w.stop + 1] for w in batch])
        base: Tensor | None = None
        for index, model in enumerate(models):
            log_p = _log_probabilities(model, inputs)
            loss = -log_p.gather(-1, targets.to(log_p.device)[..., None])[..., 0]
            if base is None:
                base = log_p
            elif base.shape != log_p.shape:
                raise QuantGolfError(
                    f"the model has {log_p.shape[-1]} logits and the reference {base.shape[-1]}, expected as many: "
                    "compare a model with what it was compressed from"
                )
            base = base.to(log_p.device)
            apart = (base.exp() * (base - log_p)).sum(-1) if index else torch.zeros_like(loss)
            for w, row, distance in zip(batch, loss.double().cpu().numpy(), apart.double().cpu().numpy(), strict=True):
                nats[index, w.start + 1 + w.seen : w.stop + 1] = row[w.seen :]
                kl[index, w.start + 1 + w.seen : w.stop + 1] = distance[w.seen :]
        scored += sum(w.stop - w.start - w.seen for w in batch)
        if progress is not None:
            progress(scored, count - 1)
    if text.bos is None:
        nats[:, 0] = np.log(text.vocab_size)
    owner = _owners(text)
    documents = len(text.bytes)
    tokens = np.bincount(owner[1 if text.bos is not None else 0 :], minlength=documents)
    return [
        EvalResult(
            nats=np.bincount(owner, nats[index], minlength=documents).astype(np.float64),
            bytes=text.bytes,
            tokens=tokens,
            kl=np.bincount(owner, kl[index], minlength=documents).astype(np.float64) if index else None,
            unknown=text.unknown,
        )
        for index in range(len(models))
    ]


def _batches(found: list[Window], most: int) -> Iterator[list[Window]]:
    """Windows of the same length together, at most so many at once."""
    for _, same in groupby(found, key=lambda w: w.stop - w.start):
        group = list(same)
        yield from (group[i : i + most] for i in range(0, len(group), most))


def _log_probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """fp32 log-probabilities [B, L, V]."""
    logits: Tensor = model(inputs.to(next(model.parameters()).device))
    if not logits.isfinite().all():
        raise QuantGolfError(
            "the model's logits on this text are not all finite, expected finite values: check its weights, and "
            "that --length is no longer than it was trained for"
        )
    return logits.float().log_softmax(-1)


def _owners(text: Corpus) -> NDArray[np.int64]:
    """The document that answers for each token: its own, and for a BOS the one before."""
    owner = text.document.numpy().copy()
    if text.bos is not None:
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        owner[first] = np.maximum(0, owner[first] - 1)
    return owner
