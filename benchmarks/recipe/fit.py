"""One factor on all clips, found so that the complete file just fits: a larger one means wider steps and fewer bytes.

A solve is dear and an encode is dearer, so sizes are predicted: from histograms of the weights before a solve, from
those of the codes after it. Only what should fit is encoded.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import NOTHING_TO_QUANTIZE, choose
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.types import Calibration

from .coders import FOR_CODES
from .correct import Plan, correct, loss_of, plans
from .file import RecipeFile, choices_of, encode, file_of
from .low_rank import LowRank
from .solve import Recipe, Roles, Solved, Solver
from .streams import Choice, entropy_bytes, stream_of

ENOUGH = 5e-4  # of the limit: a file that leaves no more of it is taken
ROUNDS = 12
WIDER = 1.15  # the step to a larger factor that is tried in the end


@dataclass(frozen=True)
class Fitted:
    """A file that fits.

    Attributes:
        data: its bytes.
        factor: on all k's.
        low_rank: the way of the corrections, and the loss they save beyond their bytes' worth.
        choices: layouts and coders of the streams of codes.
        loss: predicted, nats a token.
        solves, encodes: how many it took.
        seconds: altogether.
    """

    data: bytes
    factor: float
    low_rank: Plan
    choices: dict[str, Choice]
    loss: float
    solves: int
    encodes: int
    seconds: float


class _Search:
    """What one search learns as it goes: from the first solution how streams are coded and what is corrected, from
    every encode what a file has beyond the entropy of its codes."""

    def __init__(
        self, source: Checkpoint, solver: Solver, coders: Sequence[str], way: str | None, say: Callable[[str], None]
    ) -> None:
        self.source, self.solver, self.coders, self.way, self.say = source, solver, coders, way, say
        self.plan = Plan("none")
        self.choices: dict[str, Choice] = {}
        self.beyond = 0.0
        self.solves = self.encodes = 0

    def solve(self, factor: float) -> dict[str, Solved]:
        """All matrices; the first time, plans too."""
        self.solves += 1
        self.say(f"{self.solver.recipe.name}: solving at factor {factor:.4f}")
        solved = self.solver.solve(factor)
        if not self.choices:
            found = plans(self.solver, solved)
            self.plan = found[0] if self.way is None else next(plan for plan in found if plan.way == self.way)
            file, _ = self.file(solved)
            self.choices = choices_of(file, self.coders)
            bare = {stream: replace(choice, coder="none") for stream, choice in self.choices.items()}
            sides = len(encode(file, bare)) - sum(each.codes.numel() for each in solved.values())
            ratios = sum(self.choices[stream].ratio * size for stream, size in entropies(solved).items())
            self.beyond = sides + ratios - entropy_of(solved)
        return solved

    def predicted(self, solved: Mapping[str, Solved]) -> float:
        """Bytes of a solution's file."""
        return entropy_of(solved) + self.beyond

    def file(self, solved: Mapping[str, Solved]) -> tuple[RecipeFile, dict[str, LowRank]]:
        """A solution's file, not encoded, and the corrections in it."""
        low = correct(self.solver, solved, self.plan)
        return file_of(self.source, self.solver.matrices, solved, low), low

    def encode(self, solved: Mapping[str, Solved]) -> tuple[bytes, float]:
        """A solution's file and its predicted loss."""
        self.encodes += 1
        file, low = self.file(solved)
        data = encode(file, self.choices)
        self.beyond = len(data) - entropy_of(solved)
        self.say(f"{self.solver.recipe.name}: encoded to {len(data):,} bytes")
        return data, loss_of(self.solver, solved, low)


def fit(
    source: Checkpoint,
    learned: Calibration,
    recipe: Recipe,
    max_bytes: int,
    *,
    roles: Roles | None = None,
    coders: Sequence[str] = FOR_CODES,
    low_rank: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """The recipe's file of a checkpoint, tuned to at most `max_bytes` and at least all but `ENOUGH` of it.

    Args:
        source, learned: the checkpoint and its calibration.
        recipe: widths and clips.
        max_bytes: of the complete file.
        roles: which matrix is what.
        coders: that codes may go through.
        low_rank: "none", "published" or "under H"; None for the best by predicted loss.
        say: is told what is under way.

    Raises:
        BudgetError: no factor fits.
    """
    started = time.monotonic()
    matrices, _ = choose(source, learned)
    if not matrices:
        raise QuantGolfError(NOTHING_TO_QUANTIZE)
    solver = Solver(matrices, learned.stats, recipe, roles)
    search = _Search(source, solver, coders, low_rank, say)
    aim = max_bytes * (1 - ENOUGH / 2)
    # Before anything is known: two bytes a row beside the codes.
    factor = _factor_for(solver, aim - sum(2 * matrices.size(name)[0] for name in matrices))
    best: tuple[float, bytes, float] | None = None
    smallest: int | None = None
    encoded: list[tuple[float, int]] = []  # bytes predicted before the solve, and those of the file
    for done in range(ROUNDS):
        solved = search.solve(factor)
        size = search.predicted(solved)
        before = solver.predicted_bytes(factor)
        following = _factor_for(solver, before + aim - size)
        # What is far off is not encoded, unless no factor comes nearer: sizes of small models jump.
        if abs(size / max_bytes - 1) <= ENOUGH * 2 ** max(1, done - 1) or abs(following / factor - 1) < 1e-6:
            data, loss = search.encode(solved)
            size = len(data)
            smallest = size if smallest is None else min(size, smallest)
            if size <= max_bytes and (best is None or size > len(best[1])):
                best = factor, data, loss
                if size >= max_bytes * (1 - ENOUGH):
                    break
            encoded.append((before, len(data)))
            following = _factor_for(solver, before + (aim - size) / _rate(encoded))
        if abs(following / factor - 1) < 1e-6:
            break
        factor = following
    if best is None:
        nearest = smallest or int(size)
        raise BudgetError(f"budget of {max_bytes:,} bytes is met at no factor, the file takes {nearest:,}", nearest)
    factor, data, loss = _wider(search, *best)
    return Fitted(
        data, factor, search.plan, search.choices, loss, search.solves, search.encodes, time.monotonic() - started
    )


def _wider(search: _Search, factor: float, data: bytes, loss: float) -> tuple[float, bytes, float]:
    """A larger factor where it loses less, in fewer bytes: where small ones clip too much."""
    best = factor, loss
    while True:
        wider = best[0] * WIDER
        solved = search.solve(wider)
        _, low = search.file(solved)
        found = loss_of(search.solver, solved, low)
        if found >= best[1]:
            break
        best = wider, found
    if best[0] == factor:
        return factor, data, loss
    return best[0], search.encode(search.solve(best[0]))[0], best[1]


def _rate(encoded: Sequence[tuple[float, int]]) -> float:
    """Bytes of the file for each byte that histograms predict, by the last two encodes."""
    if len(encoded) < 2 or abs(encoded[-1][0] - encoded[-2][0]) < 1:
        return 1.0
    (before, size), (after, then) = encoded[-2:]
    return min(2.0, max(0.5, (then - size) / (after - before)))


def _factor_for(solver: Solver, size: float) -> float:
    """The factor at which codes should take so many bytes."""
    low, high = -7.0, 7.0
    for _ in range(40):
        middle = (low + high) / 2
        if solver.predicted_bytes(2.0**middle) > size:
            low = middle
        else:
            high = middle
    return float(2.0**high)


def entropy_of(solved: Mapping[str, Solved]) -> float:
    """Bytes of all codes by the histogram of each stream."""
    return sum(entropies(solved).values())


def entropies(solved: Mapping[str, Solved]) -> dict[str, float]:
    """Bytes of each stream by its histogram."""
    counts: dict[str, NDArray[np.int64]] = {}
    for name, each in solved.items():
        found = np.bincount(each.codes.numpy().view(np.uint8).reshape(-1), minlength=256)
        counts[stream_of(name)] = counts.get(stream_of(name), np.zeros_like(found)) + found
    return {stream: entropy_bytes(each) for stream, each in counts.items()}
