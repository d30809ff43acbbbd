"""From a checkpoint and text to the bytes of a file under the budget: the entry points."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quantgolf.allocate import Cost, widths_by_hand
from quantgolf.allocate.knapsack import plan_of
from quantgolf.blob import pack, write_blob
from quantgolf.calibrate import collect
from quantgolf.calibrate.capture import weights as capturable
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.budget import fit, unreachable
from quantgolf.compress.candidates import Candidates
from quantgolf.data import Corpus, windows
from quantgolf.encode import Entry, encode_model
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.runtime import module_of
from quantgolf.solve import SolveOptions, Solver
from quantgolf.types import BitPlan, BlobHeader, CodedModel, QTensor, SolveReport, WeightStats, WeightUse

Progress = Callable[[str, int, int], None]
WIDTHS = range(2, 9)


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
    done = 0

    def report(batch: int) -> None:
        nonlocal done
        done += batch
        if progress is not None:
            progress("calibrating", done, count)

    inputs = text.tokens[:count].reshape(-1, length)
    return collect(checkpoint.module, inputs.split(max(1, 4096 // length)), seed=seed, progress=report)


def compress(
    checkpoint: Checkpoint,
    text: Corpus | Mapping[str, WeightStats],
    *,
    max_bytes: int | None = None,
    bits: Sequence[tuple[str, int]] | None = None,
    solver: Solver = "gptq",
    options: SolveOptions | None = None,
    code_bytes: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Compresses a checkpoint into at most `max_bytes`, or to widths chosen by hand, or both.

    Args:
        checkpoint: from `open_checkpoint`.
        text: to calibrate on, or the statistics an earlier `calibrate` returned.
        max_bytes: limit of the complete file plus `code_bytes`. Without it `bits` has to be given.
        bits: pairs (pattern, width) as `parse_bits` returns them; without it the allocator chooses.
        solver: "rtn", "gptq_lite" or "gptq".
        options: damping, column order and block size of GPTQ; None for the measured defaults.
        code_bytes: raw bytes of source files that count towards the budget.
        progress: called with (stage, done, total).

    Raises:
        BudgetError: the budget cannot be met; refused before calibration where that can be told without it.
        QuantGolfError: neither a budget nor widths, or statistics that do not belong to the checkpoint.
    """
    if max_bytes is None and bits is None:
        raise QuantGolfError("neither max_bytes nor bits is given, expected a budget, widths by hand, or both")
    options = options or SolveOptions()
    limit = None if max_bytes is None else max_bytes - code_bytes
    if limit is not None:
        refuse_unreachable(checkpoint, limit, code_bytes, solver, options)
    stats = calibrate(checkpoint, text, progress=progress) if isinstance(text, Corpus) else dict(text)
    parameters = dict(capturable(checkpoint.module))
    foreign = [name for name in stats if name not in parameters]
    if foreign:
        raise QuantGolfError(f"statistics of {', '.join(foreign[:5])} belong to another model; calibrate this one")
    weights = {name: checkpoint.tensors[name].float() for name in parameters if name in stats}
    kept = tuple(name for name in parameters if name not in stats)
    candidates = Candidates(weights, stats, solver, options)
    assembly = Assembly(checkpoint, candidates)
    if bits is not None:
        widths = widths_by_hand(bits, weights)
        costs = {name: {width: candidates.predict(name, width)} for name, width in widths.items()}
    else:
        costs = predicted_costs(candidates, progress)
    if limit is None:
        plan = plan_of(costs, widths)
    else:
        plan = fit(
            candidates, costs, lambda chosen: len(assembly.file(chosen)), limit,
            lambda done, total: progress("solving", done, total) if progress is not None else None,
        )  # fmt: skip
    data = assembly.file(plan.bits)
    reports = {name: candidates.solve(name, width).report for name, width in plan.bits.items()}
    return Compressed(
        data, assembly.header, assembly.coded(plan.bits), BitPlan(plan.bits, len(data), plan.predicted_loss),
        reports, kept, code_bytes, checkpoint.parameters,
    )  # fmt: skip


def refuse_unreachable(
    checkpoint: Checkpoint, limit: int, code_bytes: int, solver: Solver, options: SolveOptions
) -> None:
    """Refuses a budget that no widths can meet, before any text is read.

    Without statistics every input channel counts alike, which moves the smallest size by a percent or two; the
    exact one is known, and checked again, after calibration.

    Raises:
        BudgetError: even 2 bits everywhere take more than `limit`.
    """
    weights = {name: checkpoint.tensors[name].float() for name, _ in capturable(checkpoint.module)}
    stats = {name: _uniform(name, weight) for name, weight in weights.items()}
    candidates = Candidates(weights, stats, "rtn" if solver == "rtn" else "gptq_lite", options)
    codes = sum(candidates.predict(name, WIDTHS[0]).bytes for name in weights)
    rest = sum(t.numel() for name, t in checkpoint.tensors.items() if name not in weights)
