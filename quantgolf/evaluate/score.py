"""Scores every token of a text once and books its loss to the document it belongs to.

Only sums of documents are kept, and windows are made as they are read, so that a contest's validation set of 62M
tokens takes no more memory than its tokens and one batch of logits.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantgolf.checkpoint.call import device_of, logits_of, reading
from quantgolf.data import Context, Corpus, Window, refuse_misfit
from quantgolf.data.batches import stack
from quantgolf.data.windows import by_length, count_targets, each_window
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate.tally import Tally
from quantgolf.types import EvalResult

LOGITS_AT_ONCE = 1 << 23
WINDOWS_AT_ONCE = 1 << 16  # of a long text, those of equal length are batched among so many
DTYPES = (torch.float32, torch.bfloat16)
Progress = Callable[[int, int], None]


def evaluate(
    model: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    context: Context = "dense",
    dtype: torch.dtype = torch.float32,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
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
        dtype: fp32: the model runs as it is. bf16: under torch's autocast, which makes matrix products bf16 and leaves
            what needs it in fp32, as contest scripts evaluate. Log-probabilities are fp32 and sums fp64 in either.
        batch_tokens: most tokens the model reads at once, in whole windows and one at least; None for as many as have
            `LOGITS_AT_ONCE` logits.
        progress: called with (tokens scored, tokens to score).

    Raises:
        QuantGolfError: a tokenizer that does not fit the model, logits that are not finite, too little text, or
            arguments out of range.
    """
    (result,) = _score([model], text, length, stride, context, dtype, batch_tokens, progress)
    return result


def evaluate_against(
    model: nn.Module,
    reference: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    context: Context = "dense",
    dtype: torch.dtype = torch.float32,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> tuple[EvalResult, EvalResult]:
    """Loss of a model with its KL(reference ‖ model) and its agreement with the reference, and the loss of the
    reference; arguments as `evaluate`.

    Raises:
        QuantGolfError: as `evaluate`, or logits of different sizes.
    """
    base, result = _score([reference, model], text, length, stride, context, dtype, batch_tokens, progress)
    return result, base


def evaluate_together(
    models: Sequence[nn.Module],
    reference: nn.Module,
    text: Corpus,
    *,
    length: int = 512,
    stride: int | None = None,
    context: Context = "dense",
    dtype: torch.dtype = torch.float32,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[EvalResult], EvalResult]:
    """As `evaluate_against` for several models in one pass, in which the reference runs once.

    Raises:
        QuantGolfError: as `evaluate_against`.
    """
    base, *results = _score([reference, *models], text, length, stride, context, dtype, batch_tokens, progress)
    return results, base


def _score(
    models: list[nn.Module],
    text: Corpus,
    length: int,
    stride: int | None,
    context: Context,
    dtype: torch.dtype,
    batch_tokens: int | None,
    progress: Progress | None,
) -> list[EvalResult]:
    """Results of several models in one pass; those after the first are compared with the first."""
    if dtype not in DTYPES:
        raise QuantGolfError(f"dtype is {dtype}, expected torch.float32 or torch.bfloat16")
    if batch_tokens is not None and batch_tokens < 1:
        raise QuantGolfError(f"batch_tokens is {batch_tokens}, expected at least 1")
    if not text.bytes.any():
        raise QuantGolfError(
            f"the text has {len(text.tokens):,} tokens and 0 bytes ({text.counted}), expected bytes to divide by: "
            "give the tokenizer or the byte counts that belong to it"
        )
    lengths = text.lengths
    found = each_window(lengths.tolist(), length, stride, context)
    scored, count = 0, count_targets(lengths, context)
    tallies = [Tally(text, context, compared=index > 0) for index in range(len(models))]
    with reading(*models):
        for model in models:
            with _computing(model, dtype):
                refuse_misfit(model, text, length, context)
        for batch in _batches(found, batch_tokens, text.vocab_size):
            inputs, targets = stack(text.tokens, batch)
            logits = [_logits(model, inputs, targets, dtype) for model in models]
            where, kept = _scored(batch)
            for tally, (loss, apart, same) in zip(tallies, _compare(logits, targets.flatten()), strict=True):
                tally.add(where, loss[kept], apart[kept], same[kept])
            scored += len(where)
            if progress is not None:
                progress(scored, count)
    return [tally.result() for tally in tallies]


def _batches(found: Iterator[Window], batch_tokens: int | None, vocabulary: int) -> Iterator[list[Window]]:
    """Windows of equal length together, as many as are permitted."""
    while some := list(islice(found, WINDOWS_AT_ONCE)):
        for group in by_length(some):
            each = group[0].stop - group[0].start
            most = max(1, (LOGITS_AT_ONCE // vocabulary if batch_tokens is None else batch_tokens) // each)
            yield from (group[i : i + most] for i in range(0, len(group), most))


def _scored(batch: list[Window]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions in the stream of the targets that a batch of B windows scores, int64, in order; and where they are
    among its B·L targets, bool."""
    size = batch[0].stop - batch[0].start
    start = np.array([w.start for w in batch])[:, None]
    kept = np.arange(size)[None] >= np.array([w.seen for w in batch])[:, None]
    where: NDArray[np.int64] = (start + 1 + np.arange(size)[None])[kept]
    return where, kept.ravel()


def _computing(model: nn.Module, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device_of(model).type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _logits(model: nn.Module, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits [B·L, V] in the dtype the model gives."""
    device = device_of(model)
    with _computing(model, dtype):
        logits = logits_of(model, inputs.to(device), targets.to(device))
    # The ends are not finite where any number is not, and take a tenth of the time of asking each.
    if not torch.stack(logits.aminmax()).isfinite().all():
        raise QuantGolfError(
            "the model's logits on this text are not all finite, expected finite values: check its weights, and "
            "that --length is no longer than it was trained for"
        )
    return logits.flatten(0, 1)


Compared = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


def _compare(logits: list[Tensor], targets: Tensor) -> list[Compared]:
    """Loss, KL of the first model to this one (nats), and whether both have the same likeliest token, each [T], for
    every model's logits [T, V]; a part of T at a time, so that log-probabilities take little."""
    base_size = logits[0].shape[-1]
    for other in logits[1:]:
        if other.shape[-1] != base_size:
            raise QuantGolfError(
                f"the model has {other.shape[-1]} logits and the reference {base_size}, expected as many: "
                "compare a model with what it was compressed from"
            )
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in logits]
    at_once = max(1, LOGITS_AT_ONCE // base_size)
    for start in range(0, len(targets), at_once):
        rows = slice(start, start + at_once)
        base = logits[0][rows].float().log_softmax(-1)
        for index, each in enumerate(logits):
            log_p = each[rows].float().log_softmax(-1) if index else base
            base = base.to(log_p.device)
            loss = -log_p.gather(-1, targets[rows, None].to(log_p.device))[:, 0]
            apart = (base.exp() * (base - log_p)).sum(-1) if index else torch.zeros_like(loss)
            same = base.argmax(-1) == log_p.argmax(-1) if index else torch.ones_like(loss, dtype=torch.bool)
            parts[index].append((loss.double().cpu(), apart.double().cpu(), same.cpu()))
    return [
        (torch.cat(losses).numpy(), torch.cat(aparts).numpy(), torch.cat(sames).numpy())
        for losses, aparts, sames in (zip(*of_model, strict=True) for of_model in parts)
    ]
