"""Tuning after the solve: what stays continuous is moved by gradients of the KL to the float model.

Codes stay as they are. Gains of rows and columns are rounded to the grid the file stores (128 an octave) in every
forward pass, so that what is measured is what is written. They take bytes, about 4.5 bits each, which as many codes
could have had; norms, gains and biases take hardly more than before, but where all of them were equal. Text that
neither statistics nor gradients have seen decides which of the states on the way is kept and whether steps are worth
their bytes; in the end two files of equal bytes are compared. What was found belongs to the levels it was found for:
put on those of a slope near by it raised the golf model's KL by 25% at 3.5 bits and by 13% at 2.5.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantgolf.compress.heldout import HeldOut
from quantgolf.compress.student import Student, Tuned
from quantgolf.data import Corpus, calibration_batches

STEPS = 80
SECONDS = 300.0
PASSES = 2  # over the text at most
FEWEST = 8  # steps that are worth to begin with
EVERY = 20  # steps between two looks at held-out text
RATE_STEPS, RATE_KEPT = 4e-3, 5e-3  # of Adam: octaves, and shares of a tensor's root mean square
WARM, LAST = 5, 0.02  # steps until the full rate, and the share of it the cosine ends with
LEAST_SCALE = 1e-2  # root mean square that a tensor of zeros counts as having
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 2048, 1 << 23
TOKENS = STEPS * TOKENS_AT_ONCE  # of text, for all steps

Batches = Sequence[Tensor]


@dataclass(frozen=True)
class Tuning:
    """What to tune on, and how long.

    Attributes:
        text: gradients are taken on it, at most twice on the same. It has to be as varied as what the model is for.
        held_out: text that neither it nor the statistics have.
        steps: of Adam; the file depends on their number and on nothing that takes time.
        seconds: if that many steps took longer, as many as there is time for; the report says how many.
    """

    text: Corpus
    held_out: HeldOut
    steps: int = STEPS
    seconds: float = SECONDS

    def batches(self, text: Corpus) -> Batches:
        """Tokens of a text, int64 [B, L] each, about 2,048 at once."""
        at_once = min(TOKENS_AT_ONCE, max(self.held_out.length, LOGITS_AT_ONCE // text.vocab_size))
        pairs = calibration_batches(text, len(text.tokens), self.held_out.length, self.held_out.context, at_once)
        return [inputs for inputs, _ in pairs]


@dataclass(frozen=True)
class Descent:
    """What a descent found.

    Attributes:
        before, after: KL to the float model on held-out text, nats a token.
        tuned: the best state by it, as the file stores it.
        steps: that were made; fewer than asked for where time or text is short, 0 where there was none.
        note: why there was none.
    """

    before: float
    after: float
    tuned: Tuned
    steps: int
    note: str = ""


def descend(
    student: Student,
    tuning: Tuning,
    steps: int,
    *,
    seconds: float = math.inf,
    fewest: int = FEWEST,
    progress: Callable[[int, int], None] | None = None,
) -> Descent:
    """Steps of Adam from the state a student is in, which is left in the best one that held-out text met.

    Args:
        student: what of it may move is told by `fix_steps`.
        tuning: on what.
        steps: to make, at most as many as `PASSES` over the text take.
        seconds: if they took longer, as many as there is time for.
        fewest: steps that are worth to begin with.
        progress: called with (done, total) steps.
    """
    learn, held_out = tuning.batches(tuning.text), tuning.batches(tuning.held_out.text)
    begin, started = student.tuned(), time.monotonic()
    before = kl_of(student, held_out)
    look = time.monotonic() - started
    steps = min(steps, PASSES * len(learn))
    steps, note = _affordable(student, learn[0], before, steps, seconds - 2 * look, look)
    if not note and steps < fewest:
        note = f"time and text are enough for {steps} steps, expected {fewest} or more"
    if note:
        return Descent(before, before, begin, 0, note)
    optimizer, best, worse = _optimizer(student), (math.inf, begin), 0
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        _kl(student, learn[step % len(learn)]).backward()  # type: ignore[no-untyped-call]
        rate = min(1.0, (step + 1) / WARM) * max(LAST, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate
        optimizer.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            reached = kl_of(student, held_out)
            worse = 0 if reached < best[0] else worse + 1
            if reached < best[0]:
                best = (reached, student.tuned())
            if worse == 2 or not math.isfinite(reached):
                break
        if progress is not None:
            progress(step + 1, steps)
    student.put(best[1])
    return Descent(before, best[0], best[1], step + 1)


def _affordable(
    student: Student, batch: Tensor, before: float, steps: int, seconds: float, look: float
) -> tuple[int, str]:
    """As many of these steps as there is time for; why there is none to begin with, or nothing."""
    if not math.isfinite(before):
        return 0, f"KL on held-out text is {before}, expected a number"
    for _ in range(2):  # the first one also warms up
        begun = time.monotonic()
        loss = _kl(student, batch)
        if not loss.requires_grad:
            return 0, "no gradient reaches what could move"
        loss.backward()  # type: ignore[no-untyped-call]
        took = time.monotonic() - begun
        seconds -= took
    steps = int(min(steps, max(0.0, seconds) / (took + look / EVERY)))
    return steps, ""


def kl_of(student: Student, batches: Batches) -> float:
    """KL(float model ‖ student) on batches of tokens, nats a token."""
    with torch.no_grad():
        total = sum(float(_kl(student, batch)) * batch.numel() for batch in batches)
    return total / sum(batch.numel() for batch in batches)


def _kl(student: Student, tokens: Tensor) -> Tensor:
    tokens = tokens.to(student.device)
    with torch.no_grad():
        wanted = F.log_softmax(student.reference(tokens), -1)
    found = F.log_softmax(student(tokens), -1)
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean()


def _optimizer(student: Student) -> torch.optim.Adam:
    groups = [{"params": [*student.rows.values(), *student.columns.values()], "rate": RATE_STEPS}]
    for values in student.kept.values():
        scale = float(values.detach().square().mean().sqrt())
        groups.append({"params": [values], "rate": RATE_KEPT * (scale or LEAST_SCALE)})
    return torch.optim.Adam([{**group, "lr": 0.0} for group in groups], betas=(0.9, 0.95))
