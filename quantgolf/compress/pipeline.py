"""The entry points: from a checkpoint and text to the bytes of a file under the budget."""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from quantgolf.allocate import plan_of, widths_by_hand
from quantgolf.blob import pack
from quantgolf.calibrate import collect
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.budget import fit
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.matrices import NOTHING_TO_QUANTIZE, choose
from quantgolf.compress.refuse import refuse_unreachable
from quantgolf.compress.result import Compressed, Progress, stage
from quantgolf.compress.slope import compress_by_slope
from quantgolf.data import Context, Corpus, calibration_batches, refuse_misfit
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.solve import WIDTHS, SolveOptions, Solver
from quantgolf.solve.trellis import Trellis
from quantgolf.types import BitPlan, Calibration

# Of a batch: logits are the largest tensor of a forward pass, and several of their size live at once.
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 4096, 1 << 23


def batches_of(
    text: Corpus, *, tokens: int = 32_768, length: int = 512, context: Context = "dense", one_by_one: bool = False
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
    tokens: int = 32_768,
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
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver | Literal["slope"] = "gptq",
    options: SolveOptions | None = None,
    trellis: Trellis | None = None,
    code_bytes: int = 0,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compresses a checkpoint into at most `max_bytes`, or to widths chosen by hand, or both.

    Args:
        checkpoint: from `open_checkpoint`.
        text: to calibrate on, or what an earlier `calibrate` returned.
        max_bytes: limit of the complete file plus `code_bytes`. Without it `rules` have to be given.
        rules: widths by hand, pairs (pattern, width) as `parse_bits` returns them; without them the allocator
            chooses.
        solver: "rtn", "gptq_lite" or "gptq" at fixed widths; "slope" for steps from one slope, unclipped levels and no
            widths at all.
        options: damping, column order and block size of GPTQ; None for the measured defaults.
        trellis: of the slope's quantizer; None for 8 states.
        code_bytes: raw bytes of source files that count towards the budget.
        ranks: the processes that share the work; None for this one alone. All of them get the result.
        progress: called with (stage, done, total).

    Raises:
        BudgetError: the budget cannot be met; refused before calibration where that can be told without it.
        QuantGolfError: neither a budget nor widths, text too short, or statistics of another model.
    """
    if max_bytes is None and rules is None:
        raise QuantGolfError("neither max_bytes nor rules are given, expected a budget, widths by hand, or both")
    if not isinstance(text, Calibration):
        if max_bytes is not None:
            refuse_unreachable(checkpoint, max_bytes, rules=rules, solver=solver, code_bytes=code_bytes)
        text = calibrate(checkpoint, text, ranks=ranks, progress=progress)
    matrices, kept = choose(checkpoint, text)
    if not matrices:
        raise QuantGolfError(NOTHING_TO_QUANTIZE)
    options = options or SolveOptions()
    if solver == "slope":
        if max_bytes is None or rules is not None:
            raise QuantGolfError(
                "one slope has a budget and no widths, expected max_bytes and no rules; leave --bits out"
            )
        return compress_by_slope(
            checkpoint, matrices, kept, text.stats, max_bytes=max_bytes, options=options,
            trellis=trellis or Trellis(), code_bytes=code_bytes, ranks=ranks, progress=progress,
        )  # fmt: skip
    candidates = Candidates(matrices, text.stats, solver, options, ranks)
    assembly = Assembly(checkpoint, candidates)
    chosen = None if rules is None else widths_by_hand(rules, matrices)
    widths = {name: WIDTHS if chosen is None else range(chosen[name], chosen[name] + 1) for name in matrices}
    costs = candidates.predict(widths, stage(progress, "predicting"))
    if max_bytes is None and chosen is not None:
        plan = plan_of(costs, chosen)
        candidates.solve(plan.bits, stage(progress, "solving"))
    elif max_bytes is not None:
        plan = fit(
            candidates, costs, lambda bits: code_bytes + len(assembly.file(bits)), max_bytes, stage(progress, "solving")
        )
    coded = assembly.coded(plan.bits)
    data = pack(coded, assembly.header.model)
    return Compressed(
        data=data,
        header=assembly.header,
        coded=coded,
        plan=BitPlan(plan.bits, len(data), plan.predicted_loss),
        reports={name: solved.report for name, solved in candidates.solve(plan.bits).items()},
        kept=kept,
        code_bytes=code_bytes,
        parameters=checkpoint.parameters,
    )


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
