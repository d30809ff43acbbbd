"""Says no to a budget that nothing can meet, before any text is read."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from quantgolf.allocate import widths_by_hand
from quantgolf.blob import pack
from quantgolf.calibrate.report import NEVER_USED
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.budget import unreachable
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.fixed import largest_group, sizes_of
from quantgolf.compress.look import look
from quantgolf.compress.matrices import FEWEST_COLUMNS, Matrices, choose
from quantgolf.encode import Codec, Entry, Leveled, encode_model
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.solve import WIDTHS, SolveOptions, Solver
from quantgolf.solve.grid import ROWS
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Calibration, Choice, Exponents, WeightStats, WeightUse

# Without text every input channel counts alike, which moves the clips and with them the size: by up to 2.2% on the
# demo and the golf model at 2 bits.
MARGIN = 0.04


def refuse_unreachable(
    checkpoint: Checkpoint,
    max_bytes: int,
    *,
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver | Literal["slope"] | None = None,
    code_bytes: int = 0,
    length: int = 512,
    options: SolveOptions | None = None,
    group_sizes: Sequence[int | None] | None = None,
    codec: Codec = "auto",
) -> None:
    """Refuses a budget that no slope or no widths (or not those of `rules`) can meet, within `MARGIN` of certainty.

    What lies within the margin is decided after calibration. Budgets so large that any codes fit cost no time.

    Which matrices there are is learned from one forward pass of a few tokens, at most `length`; a parameter that it
    does not use counts as one matrix. Of several sizes of groups the largest make the smallest file.

    Raises:
        BudgetError: the smallest file takes more; `nearest` is a size that surely suffices.
        QuantGolfError: rules that do not fit the checkpoint's names.
    """
    solver = solver or ("slope" if rules is None else "gptq")
    matrices, _ = choose(checkpoint, with_late_ones(look(checkpoint, length=length)))
    bits = dict.fromkeys(matrices, WIDTHS[0]) if rules is None else widths_by_hand(rules, matrices)
    sizes = {name: matrices.size(name) for name in matrices}
    quantized: dict[str, int] = {}
    for name, (rows, columns) in sizes.items():
        parameter = matrices.blocks[name].parameter
        quantized[parameter] = quantized.get(parameter, 0) + rows * columns
    if solver == "slope":  # levels may take next to nothing: what is left is known when the first file is made
        bits = dict.fromkeys(matrices, 0)
    whole = sum(t.nbytes - quantized.get(name, 0) * t.element_size() for name, t in checkpoint.tensors.items())
    packed = sum(rows * columns * bits[name] for name, (rows, columns) in sizes.items()) // 8
    options = options or SolveOptions()
    options = replace(options, grid=replace(options.grid, group_size=largest_group(sizes_of(options, group_sizes))))
    scales = sum(rows * -(-columns // options.grid.size(columns)) for rows, columns in sizes.values())
    if max_bytes >= code_bytes + whole + packed + 4 * scales + 4096:
        return
    if solver == "slope":
        least = code_bytes + least_on_slope(checkpoint, matrices)
        if max_bytes < least:
            raise BudgetError(
                f"budget of {max_bytes:,} bytes cannot be met: code and what is kept take {least:,} or more; give a "
                "larger --max-bytes or a smaller model", least,
            )  # fmt: skip
        return
    stats = {name: uniform(name, *size) for name, size in sizes.items()}
    # GPTQ chooses its clips as GPTQ-lite does where all columns count alike.
    stand_in: Solver = "rtn" if solver == "rtn" else "gptq_lite"
    choices = {name: Choice(width, options.grid.group_size) for name, width in bits.items()}
    candidates = Candidates(matrices, stats, stand_in, options, codec=codec)
    size = len(Assembly(checkpoint, candidates).file(choices))
    if code_bytes + size * (1 - MARGIN) > max_bytes:
        raise unreachable(max_bytes, code_bytes + int(size * (1 + MARGIN)), choices)


def least_on_slope(checkpoint: Checkpoint, matrices: Matrices) -> int:
    """Bytes of a file whose levels are all zero and whose steps are all equal: one slope makes none that is smaller."""
    inside: dict[str, list[Leveled]] = {}
    for name, block in matrices.blocks.items():
        rows, columns = matrices.size(name)
        steps = Exponents(torch.zeros(rows, dtype=torch.int16), torch.zeros(columns, dtype=torch.int16), 0)
        part = Leveled(block, steps, torch.zeros(rows, columns, dtype=torch.int32))
        inside.setdefault(block.parameter, []).append(part)
    entries = [
        Entry(name, tensor, tuple(inside.get(name, ())), checkpoint.aliases.get(name, ()))
        for name, tensor in checkpoint.tensors.items()
    ]
    return len(pack(encode_model(entries, Trellis()), checkpoint.description))


def refuse_idle_grid(options: SolveOptions, group_sizes: Sequence[int | None] | None, codec: Codec) -> None:
    """Refuses with one slope what only fixed widths have.

    Raises:
        QuantGolfError: a grid, group sizes or a codec.
    """
    if options.grid != ROWS or group_sizes is not None:
        raise QuantGolfError(
            "one slope has steps of rows and columns and no other grid, expected none; leave --group-size, "
            "--asymmetric and --scales out, or take --solver gptq"
        )
    if codec != "auto":
        raise QuantGolfError(
            f"--codec {codec} is for the codes of fixed widths, and one slope codes its levels by rANS alone; leave it "
            "out, or take --solver gptq"
        )


def refuse_idle_rules(checkpoint: Checkpoint, rules: Sequence[tuple[str, int]], length: int = 512) -> None:
    """Refuses widths by hand that do not fit the names, before calibration; where a few tokens do not meet everything,
    names are not known yet and nothing is said.

    Raises:
        QuantGolfError: as `widths_by_hand`.
    """
    seen = look(checkpoint, length=length)
    if with_late_ones(seen) == seen:
        widths_by_hand(rules, choose(checkpoint, seen)[0])


def with_late_ones(seen: Calibration) -> Calibration:
    """As if what a few tokens did not meet, but others may (an expert), had been met; each parameter as one matrix."""
    blocks = dict(seen.blocks)
    for report in seen.parameters:
        if report.status == "partly" or report.why == NEVER_USED:
            blocks = {name: block for name, block in blocks.items() if block.parameter != report.name}
            lead = len(report.shape) - 1 if report.shape[-1] >= FEWEST_COLUMNS else 1
            blocks[report.name] = Block(report.name, lead, 0, math.prod(report.shape[:lead]))
    return replace(seen, blocks=blocks)


def uniform(name: str, rows: int, columns: int) -> WeightStats:
    """Statistics that know nothing: every row and every column of a matrix [N, K] counts one."""
    return WeightStats(name, (WeightUse("linear", torch.ones(rows), torch.eye(columns), visits=1),), tokens=1)
