"""The entry points: from a checkpoint and text to the bytes of a file under the budget."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from quantgolf.calibrate import collect
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.guard import guarded, judge_on
from quantgolf.compress.heldout import HeldOut
from quantgolf.compress.promise import divided, keep, refuse_blind, refuse_uncounted, wants_held_out
from quantgolf.compress.refuse import refuse_idle_grid, refuse_unreachable
from quantgolf.compress.result import Compressed, Progress
from quantgolf.compress.shelf import Shelf
from quantgolf.compress.targets import Wish
from quantgolf.compress.tune import TOKENS as TUNE_TOKENS
from quantgolf.compress.tune import Tuning
from quantgolf.compress.workshop import Workshop
from quantgolf.data import Context, Corpus, calibration_batches, refuse_misfit
from quantgolf.encode import Codec
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions, Solver
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration

TOKENS = 32_768  # to calibrate on
# Of a batch: logits are the largest tensor of a forward pass, and several of their size live at once.
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 4096, 1 << 23
BLIND = "statistics alone come without text, expected some beside them; give it with --data (held_out=)"


def batches_of(
    text: Corpus, *, tokens: int = TOKENS, length: int = 512, context: Context = "dense", one_by_one: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """The batches `calibrate` runs: see `calibration_batches`. Their size depends on text and settings alone.

    Args:
        one_by_one: a batch for every window, where memory is short.
    """
    at_once = 1 if one_by_one else min(TOKENS_AT_ONCE, max(length, LOGITS_AT_ONCE // text.vocab_size))
    return calibration_batches(text, tokens, length, context, at_once=at_once)


def calibrate(
    checkpoint: Checkpoint,
    text: Corpus,
    *,
    tokens: int = TOKENS,
    length: int = 512,
    context: Context = "dense",
    seed: int = 0,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Statistics of the checkpoint's weights on the first `tokens` tokens of `text`, in windows of `length`.

    Args:
        checkpoint: from `open_checkpoint`; its module may be on any device.
        text: to calibrate on.
        tokens, length: how much of it, and how much the model sees at once.
        context: "dense" windows run over documents, "isolated" ones keep inside them.
        seed: of the sampled labels.
        ranks: the processes that share the text; None for this one alone.
        progress: called with (stage, done, total).

    Raises:
        QuantGolfError: the text is shorter than one window, or does not fit the model.
    """
    batches = batches_of(text, tokens=tokens, length=length, context=context)
    refuse_misfit(checkpoint.module, text, length, context, losses=True)
    return collect(
        checkpoint.module, batches, seed=seed, ranks=ranks, progress=counter(progress, "calibrating", batches)
    )


def compress(
    checkpoint: Checkpoint,
    text: Corpus | Calibration,
    *,
    max_bytes: int | None = None,
    bpw: float | None = None,
    max_kl: float | None = None,
    max_dbpb: float | None = None,
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver | Literal["slope"] | None = None,
    options: SolveOptions | None = None,
    trellis: Trellis | None = None,
    code_bytes: int = 0,
    held_out: HeldOut | None = None,
    guard: bool | None = None,
    tuning: Tuning | Literal[False] | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
    group_sizes: Sequence[int | None] | None = None,
    codec: Codec = "auto",
    shelf: Shelf | None = None,
) -> Compressed:
    """Compresses a checkpoint into a limit of bytes, into the smallest file that keeps a promise, or to widths chosen
    by hand.

    Matrices are solved where the checkpoint's module is, on a GPU in batches (see `place`); coding is the CPU's work.
    A GPU's file is that of the CPU but for ties and the order of sums: another one, as good, to the same limit.

    Args:
        checkpoint: from `open_checkpoint`; its module may be on any device.
        text: to calibrate on, or what an earlier `calibrate` returned.
        max_bytes, bpw: limit of the complete file plus `code_bytes`, in bytes or in bits per parameter.
        max_kl, max_dbpb: instead of a limit, what may be lost on held-out text, in bits per byte of it: KL to the
            float model, or loss above the float model's.
        rules: widths by hand, pairs (pattern, width) as `parse_bits` returns them, with or without a limit.
        solver: "slope" for steps from one slope, unclipped levels and no widths at all; "rtn", "gptq_lite" or "gptq"
            at fixed widths. None for "slope", and for "gptq" where there are `rules`.
        options: damping, column order, block size and grid of the solvers; None for the measured defaults.
        trellis: of the slope's quantizer; None for 128 states.
        code_bytes: raw bytes of source files that count towards the limit.
        held_out: text that the statistics have not seen, for promises and the guard. None for a part of `text`, which
            is then not calibrated on; beside statistics there is none.
        guard: whether the result is compared on held-out text with one width everywhere within the same bytes, and the
            better one returned, which takes one more solve. None for yes where there is such text and no `rules`.
        tuning: of what stays continuous, after a solve by "slope" into a limit. None for the defaults of `Tuning` on
            `text` where that is a text and some of it is held out; False for none.
        ranks: the processes that share the work; None for this one alone. All of them get the result.
        progress: called with (stage, done, total).
        group_sizes: several sizes of groups of columns that share a scale, of which the best is chosen for every
            matrix within the limit; None for the one that `options.grid` says.
        codec: of codes, scales and small tensors: "rans", "zstd", or "auto" for the smaller of both, stream by stream.
        shelf: where solved matrices are kept while the work goes on, so that a run that was killed takes them from
            there; of one process alone.

    Raises:
        BudgetError: the budget cannot be met; refused before calibration where that can be told without it.
        QuantGolfError: not exactly one thing asked for, a promise that no file keeps, text too short, no held-out text
            where it is needed, or statistics of another model.
    """
    wish = Wish(max_bytes, bpw, max_kl, max_dbpb, by_hand=rules is not None)
    limit = wish.limit(checkpoint.parameters)
    solver = solver or ("slope" if rules is None else "gptq")
    if rules is not None and solver == "slope":
        raise QuantGolfError("one slope has a budget and no widths, expected max_bytes and no rules; leave --bits out")
    options = options or SolveOptions()
    if solver == "slope":
        refuse_idle_grid(options, group_sizes, codec)
    if isinstance(tuning, Tuning) and (solver != "slope" or limit is None):
        raise QuantGolfError("tuning follows a solve by one slope into a limit, expected solver slope and a limit")
    notes: tuple[str, ...] = ()
    wanted = wants_held_out(wish, guard)
    if not isinstance(text, Calibration):
        if limit is not None:
            refuse_unreachable(
                checkpoint, limit, rules=rules, solver=solver, code_bytes=code_bytes, options=options,
                group_sizes=group_sizes, codec=codec,
            )  # fmt: skip
        if wanted and held_out is None:
            tokens = TUNE_TOKENS if tuning is None and solver == "slope" and limit is not None else 0
            text, held_out, notes = divided(checkpoint, text, wish, guard, tokens=max(TOKENS, tokens))
        if tuning is None and held_out is not None and solver == "slope" and limit is not None:
            tuning = Tuning(text, held_out)
        text = calibrate(checkpoint, text, ranks=ranks, progress=progress)
    if wanted and held_out is None and not notes:
        notes = (refuse_blind(wish, guard, BLIND),)
    if held_out is not None:
        refuse_uncounted(wish, held_out.text.counted)
    shop = Workshop(checkpoint, text, code_bytes=code_bytes, ranks=ranks, progress=progress, shelf=shelf)
    fixed = shop.fixed("gptq" if solver == "slope" else solver, options, group_sizes, codec)
    if rules is not None:
        return fixed.by_hand(rules, limit)
    slope = shop.slope(options, trellis or Trellis())

    def filled(most: int) -> Compressed:
        return fixed.within(most) if solver != "slope" else slope.within(most, tuning or None)

    if held_out is None or not wanted:
        assert limit is not None
        result = filled(limit)
        return replace(result, notes=(*result.notes, *notes))
    judge = judge_on(held_out, checkpoint, ranks, progress)
    if wish.promise is not None:
        result, own = keep(slope if solver == "slope" else fixed, wish.promise, judge)
    else:
        assert limit is not None
        result = filled(limit)
        own = judge(result)
    if guard is False:
        return replace(result, held_out=own)
    within = len(result.data) + code_bytes if limit is None else limit
    return guarded(result, own, solver, fixed, judge, within, wish.promise)


def counter(
    progress: Progress | None, name: str, batches: Sequence[tuple[Tensor, Tensor]], passes: int = 1
) -> Callable[[int], None] | None:
    """`progress` of one stage, called with the tokens of each batch that is done."""
    if progress is None:
        return None
    done, total = 0, passes * sum(inputs.numel() for inputs, _ in batches)

    def count(tokens: int) -> None:
        nonlocal done
        done = min(total, done + tokens)
        progress(name, done, total)

    return count
