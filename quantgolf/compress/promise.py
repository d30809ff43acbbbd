"""Held-out text for those who need it, and the smallest file that keeps a promise on it."""

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.fixed import FixedWidths
from quantgolf.compress.guard import Judge, unjudgeable
from quantgolf.compress.heldout import HELD_OUT, SHARE, HeldOut, split_calibration
from quantgolf.compress.result import Compressed, Judged
from quantgolf.compress.slope import OneSlope
from quantgolf.compress.targets import Promise, Wish
from quantgolf.data import Context, Corpus
from quantgolf.data.corpus import Counted
from quantgolf.errors import QuantGolfError


def wants_held_out(wish: Wish, guard: bool | None, tune: bool = False) -> bool:
    """Whether held-out text has a use: for tuning, or for the guard, which is there by default where a solver chooses.

    Raises:
        QuantGolfError: a guard over widths by hand.
    """
    if guard and wish.by_hand:
        raise QuantGolfError("the guard compares what a solver chose, expected no widths by hand; leave --guard out")
    return wish.promise is not None or tune or (guard is not False and not wish.by_hand)


def refuse_blind(wish: Wish, guard: bool | None, why: str) -> str:
    """What to say where there is no held-out text to judge on and only the default asked for it; `why` there is none.

    Raises:
        QuantGolfError: a promise, or a guard that was asked for.
    """
    if wish.promise is not None:
        raise QuantGolfError(f"{wish.promise.option} is kept on held-out text: {why}")
    if guard:
        raise QuantGolfError(f"--guard compares on held-out text: {why}")
    return f"no guard, no tuning: {why}"


def refuse_uncounted(wish: Wish, counted: Counted) -> None:
    """Refuses a promise per byte on text without bytes; `counted` says where they are from.

    Raises:
        QuantGolfError: that.
    """
    if wish.promise is not None and counted == "none: self-generated":
        raise QuantGolfError(
            f"{wish.promise.option} is in bits per byte: text that the model wrote itself has no bytes, expected a "
            "text; give one with --data"
        )


def divided(
    checkpoint: Checkpoint,
    text: Corpus,
    wish: Wish,
    guard: bool | None,
    *,
    tokens: int = 32_768,
    held_out_tokens: int = HELD_OUT,
    length: int = 512,
    context: Context = "dense",
) -> tuple[Corpus, HeldOut | None, tuple[str, ...]]:
    """What to calibrate on, what to judge on, and notes. Where only the default wants a guard and none can be had, all
    of the text is to calibrate on, and a note says why.

    Raises:
        QuantGolfError: as `refuse_blind`, `refuse_uncounted` or `split_calibration`.
    """
    refuse_uncounted(wish, text.counted)
    why = unjudgeable(checkpoint)
    if why is None and len(text.tokens) < SHARE * (length + 1):
        why = (
            f"calibration text has {len(text.tokens):,} tokens, expected at least {SHARE * (length + 1):,} (four "
            "windows); give more text or a smaller --length"
        )
    if why is not None:
        return text, None, (refuse_blind(wish, guard, why),)
    learn, held = split_calibration(text, tokens, held_out_tokens, length=length, context=context)
    return learn, HeldOut(held, length, context), ()


def keep(way: OneSlope | FixedWidths, promise: Promise, judge: Judge) -> tuple[Compressed, Judged]:
    """The smallest file found that keeps a promise, and what was measured of it.

    Raises:
        QuantGolfError: no file keeps it.
    """
    judged: dict[int, Judged] = {}
    least = float("inf")

    def value_of(result: Compressed) -> float:
        nonlocal least
        found = judge(result)
        judged[id(result)] = found
        least = min(least, found.value(promise.kind))
        return found.value(promise.kind)

    best = way.smallest(value_of, promise.most)
    if best is None:
        raise QuantGolfError(
            f"{promise.option} {promise.most:g} cannot be kept: the best file measures {least:.3g} bits per byte on "
            f"held-out text; give {promise.option} {least * 1.05:.3g} or more"
        )
    return best, judged[id(best)]
