"""What compressing would give and take, in seconds: bytes from some rows of every matrix, time from one batch and one
small solve of every width of Hessian, memory from what is known to be held."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantgolf.allocate import Cost, allocate, plan_of, widths_by_hand
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.look import look
from quantgolf.compress.matrices import Matrices, choose
from quantgolf.compress.memory import available_bytes, resident_bytes
from quantgolf.compress.refuse import uniform
from quantgolf.compress.rehearse import rehearse, solver_bytes, statistics_bytes
from quantgolf.data import Corpus
from quantgolf.encode import coded_bytes
from quantgolf.errors import BudgetError
from quantgolf.solve import WIDTHS, SolveOptions, Solver, predict, prepare, solve
from quantgolf.types import WeightStats, WeightUse

SAMPLE = 24  # rows of a matrix that stand for all of it
STEP_BYTES = 1.8  # of an fp16 step once coded, on the demo and the golf model
SOLVES = 1.5  # widths of a matrix that the budget loop solves, on the same


@dataclass(frozen=True)
class DryRun:
    """A prediction.

    Attributes:
        file_bytes: of the file that would be written.
        smallest_bytes: of the smallest file there can be.
        bpw: bits of the file per number of the checkpoint.
        memory_bytes: peak of the process.
        available_bytes: what it takes now, and what programs can still take of the machine.
        calibrate_seconds, solve_seconds: on this machine.
        batches, tokens: of calibration.
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


def dry_run(
    checkpoint: Checkpoint,
    text: Corpus,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    max_bytes: int | None = None,
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver = "gptq",
    code_bytes: int = 0,
    length: int = 512,
) -> DryRun:
    """Predicts bytes, memory and time of `compress` after `calibrate`, both with the same arguments.

    Raises:
        BudgetError: the budget is below the smallest file predicted.
        QuantGolfError: as `look`; rules that do not fit the names.
    """
    seen = look(checkpoint, text, length=length)
    matrices, _ = choose(checkpoint, seen)
    sizes = {name: matrices.size(name) for name in matrices}
    batch = max(batches, key=lambda batch: batch[0].numel())
    rehearsal = rehearse(checkpoint.module, seen, batch)
    tokens = sum(inputs.numel() for inputs, _ in batches)
    products = 2 * tokens * sum(columns**2 for _, columns in sizes.values())
    calibrating = rehearsal.seconds * tokens / batch[0].numel() + products / _products_per_second()
    costs = sampled_costs(matrices)
    fixed = _fixed_bytes(checkpoint, matrices) + code_bytes
    smallest = fixed + sum(min(cost.bytes for cost in choices.values()) for choices in costs.values())
    if rules is not None:
        plan = plan_of(costs, widths_by_hand(rules, matrices))
    else:
        assert max_bytes is not None
        if smallest > max_bytes:
            raise BudgetError(
                f"budget of {max_bytes:,} bytes cannot be met: file and code would take about {smallest:,} at "
                f"{WIDTHS[0]} bits everywhere; give a larger --max-bytes or a smaller model",
                smallest,
            )
        plan = allocate(costs, max_bytes - fixed)
    held = resident_bytes()
    codes = max(plan.predicted_bytes * SOLVES, 0)
    return DryRun(
        file_bytes=plan.predicted_bytes + fixed - code_bytes,
        smallest_bytes=smallest - code_bytes,
        bpw=8 * (plan.predicted_bytes + fixed - code_bytes) / checkpoint.parameters,
        memory_bytes=held + statistics_bytes(list(sizes.values())) // (1 if len(batches) > 1 else 2)
        + max(rehearsal.activation_bytes, solver_bytes(list(sizes.values())) + int(codes)),
        available_bytes=held + available_bytes(),
        calibrate_seconds=calibrating,
        solve_seconds=_solve_seconds(sizes, solver),
        batches=len(batches),
        tokens=tokens,
    )  # fmt: skip


def sampled_costs(matrices: Matrices) -> dict[str, dict[int, Cost]]:
    """Costs of every width from some rows of each matrix, without statistics: all inputs count alike."""
    costs = {}
    for name, matrix in matrices.items():
        rows, columns = matrix.shape
        sample = matrix[torch.linspace(0, rows - 1, min(rows, SAMPLE)).long()].contiguous()
        prepared = prepare(sample, uniform(name, len(sample), columns), "gptq_lite", SolveOptions())
        scale = rows / len(sample)
        choices = {}
        for bits in WIDTHS:
            counts, loss = predict(prepared, bits)
            coded = coded_bytes((counts * scale).round().astype(counts.dtype))
            choices[bits] = Cost(coded + int(STEP_BYTES * rows), loss * scale)
        costs[name] = choices
    return costs


def _fixed_bytes(checkpoint: Checkpoint, matrices: Matrices) -> int:
    """Bytes of a file without the codes and steps: header and everything kept."""
    bare = Matrices(checkpoint, {})
    kept = {name: t for name, t in checkpoint.tensors.items() if name not in _parameters(matrices)}
    names = sum(len(name) for name in checkpoint.tensors) // 4
    if not kept:
        return names
    candidates = Candidates(bare, {}, "rtn", SolveOptions())
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


def _solve_seconds(sizes: Mapping[str, tuple[int, int]], solver: Solver) -> float:
    """Time to price all widths and solve those the budget loop asks for, from a few rows of each number of columns."""
    total = 0.0
    for columns in {columns for _, columns in sizes.values()}:
        rows = 128
        inputs = torch.randn(2 * columns, columns)
        stats = WeightStats("sample", (WeightUse("linear", torch.ones(rows), inputs.T @ inputs, 1),), 1)
        weight = torch.randn(rows, columns)
        started = time.monotonic()
        prepared = prepare(weight, stats, solver, SolveOptions())
        preparing = time.monotonic() - started
        predict(prepared, WIDTHS[0])  # compiles
        started = time.monotonic()
        for bits in (3, 6):
            predict(prepared, bits)
        pricing = (time.monotonic() - started) / 2 * len(WIDTHS)
        started = time.monotonic()
        solve(prepared, 4)
        solving = time.monotonic() - started
        for n, k in sizes.values():
            if k == columns:
                total += preparing * (1 + SOLVES) + n / rows * (pricing + SOLVES * solving)
    return total
