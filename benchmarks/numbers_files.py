"""What files and statistics of drawn models promise: budgets, slopes, merging, one token. See `hard_numbers.py`."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from numbers_models import Drawn, Losing, batches, draw, fill

from quantgolf.blob import parse
from quantgolf.calibrate import collect
from quantgolf.checkpoint import open_checkpoint, read_demo
from quantgolf.cli.inputs import Part, demo_texts
from quantgolf.compress import calibrate, compress
from quantgolf.compress.matrices import choose
from quantgolf.compress.slope import OneSlope
from quantgolf.compress.slope_budget import power_for
from quantgolf.data import Tokenizer, corpus_from_texts
from quantgolf.encode import DTYPES
from quantgolf.errors import BudgetError
from quantgolf.runtime import restored
from quantgolf.solve import SolveOptions, Solver
from quantgolf.solve.trellis import Trellis
from quantgolf.types import WeightUse

APART, WITHIN = 1.05, 0.01
SAME = 1e-5  # of the largest number: statistics in fp32 whose sums were taken in another order
SOLVERS: tuple[Solver | Literal["slope"], ...] = ("slope", "gptq", "rtn", "gptq_lite")
Found = tuple[int, int, list[str], dict[str, object]]  # tried, with a fault in them, failures, more


def budgets(wanted: int, folder: Path) -> Found:
    """Random models, solvers and limits, among them the least that can be met and one byte less."""
    faults, tried, refused = [], 0, 0
    for seed in range(wanted):
        model, solver = draw(seed, folder), SOLVERS[seed % 4]
        code = model.between(0, 3000) * (seed % 2)
        _, least = _file(model, solver, code, 1 + code)
        tried, refused = tried + 1, refused + 1
        if least is None or least <= 1 + code:
            faults.append(f"{seed}, {solver}: a limit of 1 byte is met, or {least} named")
            continue
        for limit in (least, least - 1, least + model.between(1, 300), least + model.between(300, 20_000)):
            data, nearest = _file(model, solver, code, limit)
            tried, refused = tried + 1, refused + (data is None)
            if data is None and (limit >= least or nearest is None or nearest <= limit):
                faults.append(f"{seed}, {solver}: {limit} refused, and {nearest} named")
            if data is not None:
                over = len(data) + code - limit
                faults += [f"{seed}, {solver}: {over} bytes over {limit}"] * (over > 0)
                faults += [f"{seed}, {solver}, {limit}: {fault}" for fault in faults_of_file(data, model)]
    return tried, refused, faults, {"models": wanted}


def _file(
    model: Drawn, solver: Solver | Literal["slope"], code: int, limit: int
) -> tuple[bytes | None, int | None]:  # fmt: skip
    """A file within a limit; or the least size that can be met."""
    source, known = model.checkpoint, model.calibration
    try:
        found = compress(source, known, max_bytes=limit, solver=solver, code_bytes=code, trellis=Trellis(8))
        return found.data, None
    except BudgetError as error:
        return None, error.nearest


def faults_of_file(data: bytes, model: Drawn) -> Iterator[str]:
    """What is not finite in a file, in the checkpoint's dtypes."""
    for entry, whole in restored(parse(data)[1]):
        if not whole.to(DTYPES[entry.dtype]).isfinite().all():
            yield f"{entry.name} is not finite"
        if whole.shape != model.checkpoint.tensors[entry.name].shape:
            yield f"{entry.name} is {list(whole.shape)}"


def monotone(slope: OneSlope, bits: float, count: int, losses_too: bool) -> tuple[list[str], float, float]:
    """Sizes and losses of slopes 5% apart, from so many bits a weight on; the least favourable ratios."""
    solver = slope._solver
    numbers = sum(math.prod(solver.matrices.size(name)) for name in solver.names)
    power, known = power_for(solver, bits * numbers), []
    for step in range(count):
        solution = solver.solve(2.0**power * APART**step)
        known.append((slope.size(solution), sum(each.report.loss for each in solution.values())))
    larger = max(b[0] / a[0] for a, b in itertools.pairwise(known))
    lower = min(b[1] / a[1] for a, b in itertools.pairwise(known))
    faults = [f"a size of {larger:.4f} times the one before"] if larger > 1 + WITHIN else []
    if losses_too and lower < 1 - WITHIN:
        faults.append(f"a loss of {lower:.4f} times the one before")
    return faults, larger, lower


def slopes(wanted: int, folder: Path) -> Found:
    """Sizes of files of random models; losses of so few weights are luck by some per cent."""
    faults, worst, low = [], 0.0, 9.0
    for seed in range(wanted):
        model = draw(1000 + seed, folder)
        found, larger, lower = monotone(model.one_slope((1, 8, 128)[seed % 3]), (2.0, 4.0, 7.0)[seed % 3], 11, False)
        faults += [f"{seed}: {each}" for each in found]
        worst, low = max(worst, larger), min(low, lower)
    return 10 * wanted, 0, faults, {"size": round(worst, 4), "loss": round(low, 4)}


def demo_slopes(count: int) -> Found:
    """Sizes and losses of the demo."""
    tokenizer, texts = Tokenizer.load(read_demo().tokenizer), demo_texts()
    source = open_checkpoint(read_demo().checkpoint, read_demo().card_path)
    text = corpus_from_texts(texts.parts[Part.calibration], tokenizer, max_tokens=9000)
    learned = calibrate(source, text, tokens=8192)
    matrices, kept = choose(source, learned)
    slope = OneSlope(source, matrices, kept, learned.stats, SolveOptions(), Trellis(8))
    faults, larger, lower = monotone(slope, 3.3, count + 1, True)
    return count, 0, faults, {"size": round(larger, 4), "loss": round(lower, 4)}


def merged(wanted: int) -> Found:
    """Text in other batches, and in two parts put together by what each saw: the statistics of the whole."""
    faults, worst = [], 0.0
    for seed in range(wanted):
        generator = torch.Generator().manual_seed(seed)
        module = Losing(30 + seed % 40, [17, 24])
        fill(module, generator, 4.0)
        text = batches(30 + seed % 40, generator, 2 + seed % 11, 5 + seed % 20)
        cut = 1 + seed % (len(text) - 1)
        first = torch.cat([inputs for inputs, _ in text[:cut]]), torch.cat([targets for _, targets in text[:cut]])
        whole, rebatched, again = collect(module, text), collect(module, [first, *text[cut:]]), collect(module, text)
        parts = [collect(module, text[:cut]), collect(module, text[cut:])]
        for name, stats in whole.stats.items():
            for index, use in enumerate(stats.uses):
                found = joined([part.stats[name].uses[index] for part in parts], [part.tokens for part in parts])
                off = max(distance(found, use), distance(rebatched.stats[name].uses[index], use))
                worst = max(worst, off)
                if off > SAME or found.visits != use.visits:
                    faults.append(f"{seed}, {name}: {off:.2g} apart")
                if distance(again.stats[name].uses[index], use):
                    faults.append(f"{seed}, {name}: not the same numbers a second time")
    return wanted, 0, faults, {"worst": f"{worst:.1e}"}


def joined(parts: list[WeightUse], tokens: list[int]) -> WeightUse:
    """Uses of parts of a text as one of all of it: means over visits and over tokens weigh as those do."""
    visits = [part.visits for part in parts]
    rows, columns = (visits, tokens) if parts[0].kind == "linear" else (tokens, visits)
    row = sum(part.row.double() * n for part, n in zip(parts, rows, strict=True)) / sum(rows)
    column = sum(part.column.double() * n for part, n in zip(parts, columns, strict=True)) / sum(columns)
    assert isinstance(row, torch.Tensor) and isinstance(column, torch.Tensor)
    return WeightUse(parts[0].kind, row, column, sum(visits))


def distance(a: WeightUse, b: WeightUse) -> float:
    """How far row weights and column matrices lie apart, in shares of the largest number."""
    pairs = ((a.row, b.row), (a.column, b.column))
    return max(float((x.double() - y.double()).abs().max() / y.abs().max().clamp(min=1e-30)) for x, y in pairs)


def one_token(wanted: int, folder: Path) -> Found:
    """A single token, or a single window of two: statistics of rank one, and files of every solver."""
    faults, tried = [], 0
    for seed in range(wanted):
        model = draw(5000 + seed, folder, windows=1, length=1 + seed % 2)
        for solver in SOLVERS:
            tried += 1
            try:
                result = compress(model.checkpoint, model.calibration, max_bytes=12_000, solver=solver)
            except BudgetError:
                continue
            faults += [f"{seed}, {solver}: {fault}" for fault in faults_of_file(result.data, model)]
            if not all(math.isfinite(report.loss) for report in result.reports.values()):
                faults.append(f"{seed}, {solver}: a loss that is not finite")
    return tried, tried, faults, {}
