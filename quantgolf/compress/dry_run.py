"""What compressing would give and take, in seconds: bytes from some rows of every matrix, time from one batch and one
small solve of every width of Hessian, on a GPU of one batch of every shape, memory from what is known to be held."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantgolf.allocate import allocate, plan_of, widths_by_hand
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.fixed import largest_group, sizes_of
from quantgolf.compress.look import look
from quantgolf.compress.matrices import NOTHING_TO_QUANTIZE, Matrices, choose
from quantgolf.compress.memory import available_bytes, resident_bytes
from quantgolf.compress.offload import plan_groups
from quantgolf.compress.place import Place
from quantgolf.compress.rehearse import held_sizes, rehearse, solver_bytes, statistics_bytes
from quantgolf.compress.rehearse_gpu import gpu_seconds
from quantgolf.compress.sampled import sampled_costs
from quantgolf.compress.slope import useful_bytes
from quantgolf.compress.slope_budget import NEXT_TO_NOTHING
from quantgolf.compress.targets import Wish
from quantgolf.data import Corpus
from quantgolf.encode import Codec
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.solve import WIDTHS, SolveOptions, Solver, predict, prepare, solve
from quantgolf.solve.gptq import factorise
from quantgolf.solve.slope import prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import BitPlan, Choice, WeightStats, WeightUse

SLOPES = 4  # slopes that are solved, the first of them for its steps alone, on the demo and the golf model
FORWARD = 1 / 3  # of a forward and backward pass
SOLVES = 1.5  # widths of a matrix that the budget loop solves, on the demo and the golf model


@dataclass(frozen=True)
class DryRun:
    """A prediction.

    Attributes:
        file_bytes: of the file that would be written.
        smallest_bytes: of the smallest file there can be; with one slope it is surely larger, by less than as much.
        bpw: bits of the file per number of the checkpoint.
        memory_bytes: peak of the process, and of its GPU together where the model is on one.
        available_bytes: what it takes now, and what programs can still take of the machine.
        calibrate_seconds, solve_seconds: on this machine; the second with the guard.
        batches, tokens: of calibration.
        passes: over them; more than one where memory is limited.
    """

    file_bytes: int
    smallest_bytes: int
    bpw: float
    memory_bytes: int
    available_bytes: int
    calibrate_seconds: float
    solve_seconds: float
    batches: int
    tokens: int
    passes: int


def dry_run(
    checkpoint: Checkpoint,
    text: Corpus,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    max_bytes: int | None = None,
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver | Literal["slope"] | None = None,
    code_bytes: int = 0,
    length: int = 512,
    memory: int | None = None,
    judged: int = 0,
    options: SolveOptions | None = None,
    group_sizes: Sequence[int | None] | None = None,
    codec: Codec = "auto",
) -> DryRun:
    """Predicts bytes, memory and time of `compress` after `calibrate`, both with the same arguments.

    Args:
        batches: of calibration, as `batches_of` makes them of `text`.
        max_bytes, rules, solver, code_bytes: as `compress`; for `bpw` the bytes it stands for.
        length: tokens the model sees at once.
        memory: limit of the process; None for all statistics at once.
        judged: tokens of held-out text that the guard compares on; 0 without a guard.
        options, group_sizes, codec: as `compress`; of the options the grid matters.

    Raises:
        BudgetError: the budget is below the smallest file predicted, or that of `rules`.
        QuantGolfError: neither a budget nor widths, nothing that can be quantized, rules that do not fit the names; as
            `look`.
    """
    Wish(max_bytes, by_hand=rules is not None)
    solver = solver or ("slope" if rules is None else "gptq")
    seen = look(checkpoint, text, length=length)
    matrices, _ = choose(checkpoint, seen)
    if not matrices:
        raise QuantGolfError(NOTHING_TO_QUANTIZE)
    sizes = {name: matrices.size(name) for name in matrices}
    held = resident_bytes()
    batch = max(batches, key=lambda batch: batch[0].numel())
    rehearsal = rehearse(checkpoint.module, seen, batch)
    tokens = sum(inputs.numel() for inputs, _ in batches)
    kept = held_sizes(sizes, seen)
    products = 2 * tokens * sum(k**2 + sum(n**2 for n in outputs) for _, k, *outputs in kept)
    calibrating = rehearsal.seconds * tokens / batch[0].numel() + products / _products_per_second()
    options = options or SolveOptions()
    group_sizes = sizes_of(options, group_sizes)
    costs = sampled_costs(matrices, options.grid, group_sizes, codec)
    fixed = _fixed_bytes(checkpoint, matrices, codec) + code_bytes
    smallest = fixed + sum(min(cost.bytes for cost in choices.values()) for choices in costs.values())
    if solver == "slope":  # levels may take next to nothing, steps half a byte a row and a column
        numbers = sum(rows * columns for rows, columns in sizes.values())
        smallest = fixed + int(NEXT_TO_NOTHING * numbers) // 8
        smallest += sum(rows + columns for rows, columns in sizes.values()) // 2
        least, which = smallest, "next to no bits for the weights"
    elif rules is not None:
        widths = widths_by_hand(rules, matrices)
        costs = {
            name: {choice: cost for choice, cost in costs[name].items() if choice.bits == bits}
            for name, bits in widths.items()
        }
        plan = plan_of(costs, {name: Choice(bits, largest_group(group_sizes)) for name, bits in widths.items()})
        least, which = fixed + plan.predicted_bytes, "the widths given"
    else:
        least, which = smallest, f"{WIDTHS[0]} bits everywhere"
    if max_bytes is not None and least > max_bytes:
        raise BudgetError(
            f"budget of {max_bytes:,} bytes cannot be met: file and code would take about {least:,} with {which}; "
            "give a larger --max-bytes or a smaller model",
            least,
        )
    if solver == "slope" and max_bytes is not None:
        plan = BitPlan({}, min(max_bytes - fixed, useful_bytes(checkpoint, matrices)), 0.0)
    elif max_bytes is not None:
        plan = allocate(costs, max_bytes - fixed)
    passes = 1 if memory is None else len(plan_groups(checkpoint, batches, memory))
    statistics = statistics_bytes(kept)
    calibrating_bytes = rehearsal.activation_bytes + statistics // (1 if len(batches) > 1 else 2)
    # Statistics in memory stay there while matrices are solved; their sums over a part of the text are gone.
    threads = torch.get_num_threads() if solver == "slope" and not matrices.place.batched else 1
    solving_bytes = solver_bytes(kept, threads) + int(SOLVES * plan.predicted_bytes)
    solving_bytes += statistics // 2 if memory is None else 0
    return DryRun(
        file_bytes=plan.predicted_bytes + fixed - code_bytes,
        smallest_bytes=smallest - code_bytes,
        bpw=8 * (plan.predicted_bytes + fixed - code_bytes) / checkpoint.parameters,
        memory_bytes=held + max(calibrating_bytes if memory is None else memory - held, solving_bytes),
        available_bytes=held + available_bytes(),
        calibrate_seconds=calibrating * passes,
        solve_seconds=_solve_seconds(kept, solver, matrices.place, options, len(group_sizes))
        + (_guard_seconds(kept, judged * rehearsal.seconds / batch[0].numel(), matrices.place) if judged else 0.0),
        passes=passes,
        batches=len(batches),
        tokens=tokens,
    )  # fmt: skip


def _fixed_bytes(checkpoint: Checkpoint, matrices: Matrices, codec: Codec) -> int:
    """Bytes of a file without the codes and steps: header and everything kept."""
    bare = Matrices(checkpoint, {})
    kept = {name: t for name, t in checkpoint.tensors.items() if name not in _parameters(matrices)}
    names = sum(len(name) for name in checkpoint.tensors) // 4
    if not kept:
        return names
    candidates = Candidates(bare, {}, "rtn", SolveOptions(), codec=codec)
    return names + len(Assembly(_only(checkpoint, kept), candidates).file({}))


def _parameters(matrices: Matrices) -> set[str]:
    return {block.parameter for block in matrices.blocks.values()}


def _only(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(checkpoint.module, dict(tensors), {}, checkpoint.description)


def _products_per_second() -> float:
    """Floating point operations a second of an fp32 matrix product of this machine."""
    matrix = torch.randn(768, 768)
    matrix @ matrix
    started = time.monotonic()
    for _ in range(4):
        matrix @ matrix
    return 4 * 2 * 768**3 / (time.monotonic() - started)


def _solve_seconds(
    kept: Sequence[tuple[int, ...]],
    solver: Solver | Literal["slope"],
    place: Place,
    options: SolveOptions,
    priced: int = 1,
) -> float:
    """Time to price all widths, `priced` times, and solve those the budget loop asks for, from a few rows of each
    number of columns."""
    if place.batched:
        return gpu_seconds(kept, solver, place, SLOPES, SOLVES, options, priced)
    total = _across_seconds([n for _, _, *outputs in kept for n in outputs]) if solver == "slope" else 0.0
    for columns in {columns for _, columns, *_ in kept}:
        rows = 128
        inputs = torch.randn(2 * columns, columns)
        outputs = torch.eye(rows) if solver == "slope" else None
        stats = WeightStats("sample", (WeightUse("linear", torch.ones(rows), inputs.T @ inputs, 1, outputs),), 1)
        weight = torch.randn(rows, columns)
        if solver == "slope":
            preparing, solving = _slope_seconds(weight, stats)
            total += sum(SLOPES * (preparing + n / rows * solving) for n, k, *_ in kept if k == columns)
            continue
        started = time.monotonic()
        prepared = prepare(weight, stats, solver, options)
        preparing = time.monotonic() - started
        predict(prepared, WIDTHS[0])  # compiles
        started = time.monotonic()
        for bits in (3, 6):
            predict(prepared, bits)
        pricing = (time.monotonic() - started) / 2 * len(WIDTHS) * priced
        started = time.monotonic()
        solve(prepared, 4)
        solving = time.monotonic() - started
        for n, k, *_ in kept:
            if k == columns:
                total += preparing * (1 + SOLVES) + n / rows * (pricing + SOLVES * solving)
    return total


def _across_seconds(outputs: Sequence[int]) -> float:
    """Time to factor G of every matrix, by its rows, for each slope."""
    total = 0.0
    for rows in set(outputs):
        started = time.monotonic()
        factorise(torch.eye(rows), 0.01, False, "sample")
        total += SLOPES * outputs.count(rows) * (time.monotonic() - started)
    return total


def _guard_seconds(kept: Sequence[tuple[int, ...]], passing: float, place: Place) -> float:
    """Time to solve one width everywhere, priced as the budget loop is, and to compare two results on text; `passing`
    is that of one forward and backward pass over it."""
    return (
        _solve_seconds(kept, "gptq", place, SolveOptions()) + FORWARD * 4 * passing
    )  # either result, each beside the float model


def _slope_seconds(weight: Tensor, stats: WeightStats) -> tuple[float, float]:
    """Time to factor a Hessian, and to solve these rows at one slope."""
    started = time.monotonic()
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    preparing = time.monotonic() - started
    row, column, _ = grid.powers(1.0)
    solve_slope(weight, feedback, row, column, Trellis())  # compiles
    started = time.monotonic()
    solve_slope(weight, feedback, row, column, Trellis())
    return preparing, time.monotonic() - started
