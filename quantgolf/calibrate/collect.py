"""Streams calibration text through the model and returns the statistics of every weight that was used.

Labels are drawn from the model's own prediction, not read from the text: that makes the gradients' second
moment the true Fisher information, which is what the quadratic model of the loss asks for (Kunstner et al.
2019, arXiv:1905.12558). A model that gives nothing but a loss is taken at the text's own labels.

The text is summed in `PARTS` parts, and the parts are added in their order, whatever number of processes share
them: the result is the same to the last bit.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.calibrate.capture import Capture, parameters_of, undisturbed, weights
from quantgolf.calibrate.record import Recorder, Sums, only_linear
from quantgolf.calibrate.report import report
from quantgolf.calibrate.totals import Totals, ordered, refined, statistics
from quantgolf.checkpoint.call import gives_logits, logits_of, loss_of
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.types import Calibration

PARTS = 8
SEEDS_APART = 1_000_003  # batches: torch's generator on a CPU knows no more than 32 bits of a seed
Batch = tuple[Tensor, Tensor]


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    only: Collection[str] | None = None,
    ranks: Ranks | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Statistics of every matrix of every parameter that met activations.

    Args:
        model: anything `checkpoint.call` understands. It leaves as it came: parameters, buffers, gradients, modes.
        batches: inputs and targets, int64 [B, L] each, on any device; the same on every rank.
        seed: of the sampled labels.
        only: parameters to keep statistics of, for models whose statistics do not fit together; None for all.
        ranks: the processes that share the batches; None for this one alone.
        progress: called with the tokens of each finished batch.

    Returns:
        Statistics on the model's device. A matrix that never met activations is absent, and reported.

    Raises:
        QuantGolfError: no tokens, a model without gradients, or statistics that are not finite.
    """
    batches, ranks = list(batches), ranks or Ranks()
    tokens = sum(inputs.numel() for inputs, _ in batches)
    if not tokens:
        raise QuantGolfError("calibration got 0 tokens, expected at least one batch: give it more text")
    totals, parts = Totals(), _parts(len(batches))
    with undisturbed(model):
        seen, sampled = _look(model, batches[0][0][:1])
        for first in range(0, len(parts), ranks.world):
            recorder = Recorder(only, seen, _device(model))
            if first + ranks.rank < len(parts):
                capture = Capture(weights(model), recorder)
                for index in parts[first + ranks.rank]:
                    generator = torch.Generator(_device(model)).manual_seed((seed * SEEDS_APART + index) % 2**32)
                    _learn(model, capture, *batches[index], generator if sampled else None)
                    if progress is not None:
                        progress(batches[index][0].numel() * ranks.world)
            totals.add(recorder, ranks)
    return _calibration(model, totals, tokens, sampled)


def survey(model: nn.Module, tokens: Tensor) -> Calibration:
    """What `collect` would see, learned from one forward pass of int64 `tokens` [B, L]; it has no statistics.

    Raises:
        QuantGolfError: a model that gives neither logits nor a loss.
    """
    with undisturbed(model):
        seen, sampled = _look(model, tokens)
    totals = Totals()
    totals.add(seen, Ranks())
    return _calibration(model, totals, tokens.numel(), sampled)


def sampled_loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Summed cross-entropy (nats) of `logits` [B, L, V] against labels drawn from their own softmax."""
    flat = logits.float().flatten(0, -2)
    if not flat.isfinite().all():
        raise QuantGolfError(
            "the model's logits on the calibration text are not all finite, expected finite values: check the "
            "checkpoint with `quantgolf eval`, and run it in fp32"
        )
    labels = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)
    return F.cross_entropy(flat, labels[:, 0], reduction="sum")


def _learn(
    model: nn.Module, capture: Capture, inputs: Tensor, targets: Tensor, generator: torch.Generator | None
) -> None:
    """One batch forward and backward under the capture."""
    inputs, targets = inputs.to(_device(model)), targets.to(_device(model))
    visits = capture.recorder.summed_visits()
    with torch.enable_grad(), _users_code(capture, inputs):
        with capture:
            loss = loss_of(model, inputs, targets) if generator is None else logits_of(model, inputs, targets)
        capture.forget()
        if generator is not None:
            loss = sampled_loss(loss, generator)
        if not loss.requires_grad:
            if capture.recorder.only is not None and capture.recorder.summed_visits() == visits:
                return  # a batch that comes to none of these parameters, as experts have them
            raise QuantGolfError(
                "the model's output has no gradient, expected one to calibrate with: its forward runs under "
                "torch.no_grad, or meets no parameter that can be followed (see `quantgolf inspect --capture`)"
            )
        loss.backward()  # type: ignore[no-untyped-call]


def _look(model: nn.Module, tokens: Tensor) -> tuple[Recorder, bool]:
    """One forward pass without gradients or sums: what there is to see, and whether logits are among it."""
    recorder = Recorder(only=(), device=_device(model))
    capture = Capture(weights(model), recorder)
    with torch.no_grad(), _users_code(capture, tokens):
        with capture:
            sampled = gives_logits(model, tokens.to(_device(model)))
        capture.forget()
    return recorder, sampled


@contextmanager
def _users_code(capture: Capture, tokens: Tensor) -> Iterator[None]:
    """What the model raises in one line, and what it changed put back."""
    try:
        yield
    except QuantGolfError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise QuantGolfError(
            f"the model failed on tokens {list(tokens.shape)} ({type(error).__name__}: {error}), expected it to run "
            "forward and backward; mend the module, or give a smaller --length"
        ) from error
    finally:
        capture.restore()


def _calibration(model: nn.Module, totals: Totals, tokens: int, sampled: bool) -> Calibration:
    totals.drop_without_gradient()
    sums = refined(totals.sums)
    _refuse_flat(sums.values())
    names = ordered((block for _, block in sums), {name: tuple(p.shape) for name, p in parameters_of(model).items()})
    return Calibration(
        parameters=report(model, sums, totals.passed_over),
        stats=statistics(sums, names, tokens),
        blocks={name: block for block, name in names.items()},
        tokens=tokens,
        labels="sampled" if sampled else "targets",
        outputs=frozenset(names[block] for (_, block), part in sums.items() if part.kept and only_linear(sums, block)),
    )


def _refuse_flat(sums: Collection[Sums]) -> None:
    """A loss that no weight changes would let every weight be anything."""
    summed = [part for part in sums if part.row is not None and part.column is not None]
    if summed and not any(bool(part.row.any()) and bool(part.column.any()) for part in summed):  # type: ignore[union-attr]
        raise QuantGolfError(
            "the gradients of the model's loss are all zero, expected some: its logits do not depend on its weights, "
            "or what it returns is no logits (see `quantgolf inspect --capture`)"
        )


def _parts(batches: int) -> Sequence[range]:
    """Batches cut into `PARTS` runs of about the same length, empty ones left out."""
    edges = [batches * part // PARTS for part in range(PARTS + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise QuantGolfError("the model has no parameters, expected weights to calibrate; name another factory")
    return parameter.device
