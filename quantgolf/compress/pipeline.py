"""The entry points: from a checkpoint and text to the bytes of a file under the budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quantgolf.allocate import Cost, plan_of, widths_by_hand
from quantgolf.blob import pack, write_blob
from quantgolf.calibrate import collect
from quantgolf.calibrate import weights as capturable
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.budget import fit
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.refuse import refuse_unreachable
from quantgolf.data import Corpus, refuse_misfit
from quantgolf.errors import QuantGolfError
from quantgolf.runtime import module_of
from quantgolf.solve import WIDTHS, SolveOptions, Solver
from quantgolf.types import BitPlan, BlobHeader, CodedModel, SolveReport, WeightStats

Progress = Callable[[str, int, int], None]
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Compressed:
    """A compressed model, still in memory.

    Attributes:
        data: the bytes of the file.
        header, coded: what they hold.
        plan: widths, bytes of the file, and the predicted rise of the loss.
        reports: how each weight was solved.
        kept: matrices that calibration never saw in use; they are kept unquantized.
        code_bytes: raw bytes of the --code files that count towards the budget.
        parameters: numbers in the checkpoint.
    """

    data: bytes
    header: BlobHeader
    coded: CodedModel
    plan: BitPlan
    reports: dict[str, SolveReport]
    kept: tuple[str, ...]
    code_bytes: int
    parameters: int

    @property
    def bpw(self) -> float:
        """Bits of the complete file per number of the checkpoint."""
        return 8 * len(self.data) / self.parameters

    def write(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes the file beside its place and renames it; see `write_blob`."""
        write_blob(Path(path), self.data, overwrite=overwrite)

    def module(self, model: nn.Module | str | Path | None = None) -> nn.Module:
        """The working module, as `load` would return it from the written file."""
        return module_of(self.header, self.coded, model)


def calibrate(
    checkpoint: Checkpoint,
    text: Corpus,
    *,
    tokens: int = 32_768,
    length: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, WeightStats]:
    """Statistics of the checkpoint's weights on the first `tokens` tokens of `text`, in windows of `length`.

    Raises:
        QuantGolfError: the text is shorter than one window of tokens.
    """
    available = len(text.tokens) - 1
    if available < length:
        raise QuantGolfError(
            f"calibration text has {available + 1:,} tokens, expected at least one window of {length + 1:,}: "
            "give more text or a smaller --length"
        )
    count = min(tokens, available) // length * length
    if count == 0:
        raise QuantGolfError(f"calibration of {tokens} tokens is shorter than one window, expected at least {length}")
    refuse_misfit(checkpoint.module, text, length)
    done = 0

    def report(batch: int) -> None:
        nonlocal done
        done += batch
        _report(progress, "calibrating", done, count)

    inputs = text.tokens[:count].reshape(-1, length)
    batches = torch.split(inputs, max(1, TOKENS_AT_ONCE // length))
    return collect(checkpoint.module, batches, seed=seed, progress=report)


def compress(
    checkpoint: Checkpoint,
    text: Corpus | Mapping[str, WeightStats],
    *,
    max_bytes: int | None = None,
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver = "gptq",
    options: SolveOptions | None = None,
    code_bytes: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Compresses a checkpoint into at most `max_bytes`, or to widths chosen by hand, or both.

    Args:
        checkpoint: from `open_checkpoint`.
        text: to calibrate on, or the statistics an earlier `calibrate` returned.
        max_bytes: limit of the complete file plus `code_bytes`. Without it `rules` have to be given.
        rules: widths by hand, pairs (pattern, width) as `parse_bits` returns them; without them the allocator
            chooses.
        solver: "rtn", "gptq_lite" or "gptq".
        options: damping, column order and block size of GPTQ; None for the measured defaults.
        code_bytes: raw bytes of source files that count towards the budget.
        progress: called with (stage, done, total).

    Raises:
        BudgetError: the budget cannot be met; refused before calibration where that can be told without it.
        QuantGolfError: neither a budget nor widths, text too short, or statistics of another model.
    """
    if max_bytes is None and rules is None:
        raise QuantGolfError("neither max_bytes nor rules are given, expected a budget, widths by hand, or both")
    if isinstance(text, Mapping):
        stats = dict(text)
    else:
        if max_bytes is not None:
            refuse_unreachable(checkpoint, max_bytes, rules=rules, solver=solver, code_bytes=code_bytes)
        stats = calibrate(checkpoint, text, progress=progress)
    names = [name for name, _ in capturable(checkpoint.module)]
    foreign = [name for name in stats if name not in names]
    if foreign:
        raise QuantGolfError(f"statistics of {', '.join(foreign[:5])} belong to another model; calibrate this one")
    weights = {name: checkpoint.tensors[name].float() for name in names if name in stats}
    candidates = Candidates(weights, stats, solver, options or SolveOptions())
    assembly = Assembly(checkpoint, candidates)
    widths = dict.fromkeys(weights, WIDTHS)
    if rules is not None:
        chosen = widths_by_hand(rules, weights)
        widths = {name: range(bits, bits + 1) for name, bits in chosen.items()}
    costs: dict[str, dict[int, Cost]] = {}
    for done, (name, choices) in enumerate(widths.items(), 1):
        costs[name] = {bits: candidates.predict(name, bits) for bits in choices}
        _report(progress, "predicting", done, len(widths))
    if max_bytes is None:
        plan = plan_of(costs, chosen)
    else:
        plan = fit(
            candidates, costs, lambda bits: code_bytes + len(assembly.file(bits)), max_bytes,
            lambda done, total: _report(progress, "solving", done, total),
        )  # fmt: skip
    coded = assembly.coded(plan.bits)
    data = pack(coded, assembly.header.model)
    return Compressed(
        data=data,
        header=assembly.header,
        coded=coded,
        plan=BitPlan(plan.bits, len(data), plan.predicted_loss),
        reports={name: candidates.solve(name, bits).report for name, bits in plan.bits.items()},
        kept=tuple(name for name in names if name not in stats),
        code_bytes=code_bytes,
        parameters=checkpoint.parameters,
    )


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)
