"""Scores every token of a text once and books its loss to the document it belongs to."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantgolf.checkpoint.call import device_of, logits_of, reading
from quantgolf.data import Context, Corpus, Window, refuse_misfit, windows
from quantgolf.data.batches import stack
from quantgolf.data.windows import by_length
from quantgolf.errors import QuantGolfError
from quantgolf.types import EvalResult

LOGITS_AT_ONCE = 1 << 23


def evaluate(
    model: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    context: Context = "dense",
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Loss of a model on text.

    Args:
        model: gives logits as `checkpoint.call` understands them, on any device.
        text: what to score. Each token but the first is a target once; the loss of a BOS belongs to the document
            it ends. A stream without BOS begins with a token nothing predicts: it is booked at ln V.
        length: tokens the model sees at once.
        stride: new targets a window; None for windows that do not overlap.
        context: "dense": the model reads on from one document into the next. "isolated": each document by itself. Then
            a BOS is only context, never a target, and without BOS every document's first token is booked at ln V.
        progress: called with (tokens scored, tokens to score).

    Raises:
        QuantGolfError: a tokenizer that does not fit the model, logits that are not finite, or too little text.
    """
    with reading(model):
        (result,) = _score([model], text, length, stride, context, progress)
    return result


def evaluate_against(
    model: nn.Module,
    reference: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    context: Context = "dense",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[EvalResult, EvalResult]:
    """Loss of a model with its KL(reference ‖ model), and the loss of the reference; arguments as `evaluate`.

    Raises:
        QuantGolfError: as `evaluate`, or logits of different sizes.
    """
    with reading(reference, model):
        base, result = _score([reference, model], text, length, stride, context, progress)
    return result, base


def _score(
    models: list[nn.Module],
    text: Corpus,
    length: int,
    stride: int | None,
    context: Context,
    progress: Callable[[int, int], None] | None,
) -> list[EvalResult]:
    """Results of several models in one pass; those after the first have their KL to the first."""
    found = windows(text.lengths.tolist(), length, stride, context)
    for model in models:
        refuse_misfit(model, text, length, context)
    nats = np.zeros((len(models), len(text.tokens)))
    kl = np.zeros_like(nats)
    scored, count = 0, sum(w.stop - w.start - w.seen for w in found)
    for batch in _batches(found, text.vocab_size):
        inputs, targets = stack(text.tokens, batch)
        base: Tensor | None = None
        for index, model in enumerate(models):
            log_p = _log_probabilities(model, inputs, targets)
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
            progress(scored, count)
    owner, unpredicted = _owners(text, context)
    booked = np.ones(len(owner), dtype=np.bool_)
    if text.bos is None:
        nats[:, unpredicted] = np.log(text.vocab_size)
    else:
        booked[unpredicted] = False
    documents = len(text.bytes)
    tokens = np.bincount(owner[booked], minlength=documents)
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


def _batches(found: list[Window], vocabulary: int) -> Iterator[list[Window]]:
    """Windows of equal length together, as many as `LOGITS_AT_ONCE` permits."""
    for group in by_length(found):
        most = max(1, LOGITS_AT_ONCE // ((group[0].stop - group[0].start) * vocabulary))
        yield from (group[i : i + most] for i in range(0, len(group), most))


def _log_probabilities(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """fp32 log-probabilities [B, L, V]."""
    device = device_of(model)
    logits = logits_of(model, inputs.to(device), targets.to(device))
    if not logits.isfinite().all():
        raise QuantGolfError(
            "the model's logits on this text are not all finite, expected finite values: check its weights, and "
            "that --length is no longer than it was trained for"
        )
    return logits.float().log_softmax(-1)


def _owners(text: Corpus, context: Context) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The document that answers for each token, and the tokens that nothing predicts.

    In dense context a BOS belongs to the document before it, and only the stream's first token is not predicted.
    """
    owner = text.document.numpy().copy()
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    if context == "isolated":
        return owner, first
    if text.bos is not None:
        owner[first] = np.maximum(0, owner[first] - 1)
    return owner, first[:1]
