"""Tuning after the solve: what stays continuous is moved by gradients of the KL to the float model.

Codes stay as they are. Gains of rows and columns are rounded to the grid the file stores (128 an octave) in every
forward pass, so that what is measured is what is written. They take bytes, about 4.5 bits each, which as many codes
could have had; norms, gains and biases take none. Text that neither statistics nor gradients have seen decides which
of the states on the way is kept, whether steps are worth their bytes, and whether any of it is kept.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.heldout import HeldOut
from quantgolf.compress.result import TuneReport
from quantgolf.compress.student import Student, Tuned
from quantgolf.data import Corpus, calibration_batches
from quantgolf.types import Block

STEPS = 80
SECONDS = 300.0
PASSES = 2  # over the text at most
FEWEST = 8  # steps that are worth to begin with
EVERY = 20  # steps between two looks at held-out text
AGAIN = 4  # one step so many is made once more for what takes no bytes alone
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
        text: gradients are taken on it, at most twice on the same. It has to be as varied as what the model is for: on
            the golf model at 2.5 bits 40 steps on 163,840 tokens lowered KL on other books by 14%, and 50 on 32,768
            tokens of one book raised it by 10%, though they lowered it by 15% on what follows in that book.
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


def tune(
    checkpoint: Checkpoint,
    blocks: Mapping[str, Block],
    restored: Mapping[str, Tensor],
    tuning: Tuning,
    *,
    price: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tuned | None, TuneReport]:
    """Tunes a solved model; None where held-out text does not get better by it, or no gradient reaches it.

    Args:
        checkpoint: the float model; it stays as it is.
        blocks, restored: its matrices, and their values [N, K] fp32 after the solve.
        tuning: on what, and how long.
        price: bytes that tuned steps take, a weight.
        progress: called with (done, total) steps.
    """
    run = _Run(Student(checkpoint, blocks, restored), tuning, progress)
    if note := run.plan():
        return None, run.report(run.before, note=note)
    with_steps, both = run.descend(run.steps)
    run.student.fix_steps()
    without, kept = run.descend(max(1, run.steps // AGAIN)) if run.learns() else (math.inf, both)
    # KL falls fourfold with a bit a weight: what the bytes of tuned steps would buy as codes.
    worth = with_steps * 2 ** (16 * price)
    if min(worth, without) >= run.before:
        return None, run.report(run.before, note="held-out text did not get better")
    fine = worth < without
    return (both, run.report(with_steps, fine=True)) if fine else (kept, run.report(without))


class _Run:
    """Descends with what is tuned of a student, as often as it is told to."""

    def __init__(self, student: Student, tuning: Tuning, progress: Callable[[int, int], None] | None) -> None:
        self.student, self.steps, self.seconds, self.progress = student, tuning.steps, tuning.seconds, progress
        self.started = time.monotonic()
        self.learn, self.held_out = tuning.batches(tuning.text), tuning.batches(tuning.held_out.text)
        self.before = kl_of(student, self.held_out)
        self.done = 0

    def report(self, after: float, *, fine: bool = False, note: str = "") -> TuneReport:
        return TuneReport(self.done, time.monotonic() - self.started, self.before, after, fine, note)

    def learns(self) -> bool:
        """Whether a gradient reaches what may move."""
        return _kl(self.student, self.learn[0]).requires_grad

    def plan(self) -> str:
        """Takes as many steps as there is time for; why there is none to begin with, or nothing."""
        for _ in range(2):  # the first one also warms up
            begun = time.monotonic()
            loss = _kl(self.student, self.learn[0])
            if not loss.requires_grad:
                return "no gradient reaches the weights"
            loss.backward()  # type: ignore[no-untyped-call]
            took = time.monotonic() - begun
        self.steps = min(self.steps, PASSES * len(self.learn))
        if self.steps < FEWEST:
            return (
                f"calibration text has {len(self.learn)} batches of about {TOKENS_AT_ONCE:,} tokens, expected "
                f"{FEWEST} steps' worth"
            )
        left = (self.seconds - (begun - self.started)) / took / (1 + 1 / AGAIN)
        if left < self.steps:
            self.steps = int(left)
            if left < FEWEST:
                return f"a step takes {took:.1f} s, and {FEWEST} of them more than the {self.seconds:g} s there are"
        return ""

    def descend(self, steps: int) -> tuple[float, Tuned]:
        """The best state met by held-out text, where the student is left, and KL there."""
        optimizer = _optimizer(self.student)
        best: tuple[float, Tuned] | None = None
        worse = 0
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            _kl(self.student, self.learn[self.done % len(self.learn)]).backward()  # type: ignore[no-untyped-call]
            rate = min(1.0, (step + 1) / WARM) * max(LAST, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * rate
            optimizer.step()
            self.done += 1
            if (step + 1) % EVERY == 0 or step + 1 == steps:
                reached = kl_of(self.student, self.held_out)
                if best is None or reached < best[0]:
                    best, worse = (reached, self.student.tuned()), 0
                else:
                    worse += 1
                if worse == 2 or not math.isfinite(reached):
                    break
            if self.progress is not None:
                self.progress(min(self.done, self.steps), self.steps)
        assert best is not None
        self.student.put(best[1])
        return best


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
