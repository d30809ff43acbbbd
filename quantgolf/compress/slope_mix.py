"""Two solutions, one just under the budget and one just over it, mixed into one that fills it.

What can be exchanged without touching anything else is taken from the larger one as long as it fits, the largest first:
runs of rows that the trellis makes independent, and whole matrices where errors go across rows. A matrix of the latter
kind, solved again between the two, fills what is left.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from quantgolf.compress.slope_draft import Draft, Drafts
from quantgolf.compress.slope_size import bits_by_segment
from quantgolf.compress.slope_solver import SlopeSolver
from quantgolf.encode.diagonals import rolled

ENOUGH = 2e-5  # of the budget: so little left is not worth another encode
MIXES, FILLS = 12, 6  # files that are encoded at most to mix two solutions, and to fill what is left then

Size = Callable[[Mapping[str, Draft]], int]


@dataclass(frozen=True)
class Side:
    """All matrices at one slope: drafts, bytes of their file, and log2 of the slope."""

    drafts: Drafts
    size: int
    power: float


def mixed(solver: SlopeSolver, under: Side, over: Side, size_of: Size, max_bytes: int) -> Drafts:
    """As much of the larger solution as fits."""
    names = sorted(solver.names, key=lambda name: -math.prod(solver.matrices.size(name)))
    gains = _gains(solver, under, over)
    edges = np.cumsum([0] + [len(gains[name]) for name in names])
    bits = np.concatenate([gains[name] for name in names])
    bits *= 8 * (over.size - under.size) / max(float(bits.sum()), 1.0)  # so that they add up to what files have shown

    def file(taken: NDArray[np.bool_]) -> Side:
        parts = zip(names, np.split(taken, edges[1:-1]), strict=True)
        restart = solver.trellis.restart
        found = {name: _joined(under.drafts[name], over.drafts[name], part, restart) for name, part in parts}
        return Side(found, size_of(found), under.power)

    best, fits, too_many = under, 0, len(bits)
    for tried in range(MIXES):
        room = max_bytes - best.size
        if too_many - fits <= 1 or room <= ENOUGH * max_bytes:
            break
        count = fits + int(np.searchsorted(np.cumsum(bits[fits:]), 8 * room, side="right"))
        count = min(max(count, fits + 1), too_many - 1) if tried % 3 < 2 else (fits + too_many) // 2
        found = file(np.arange(len(bits)) < count)
        if found.size <= max_bytes:
            best, fits = found, count
        else:
            too_many = count
    taken, open_ = np.arange(len(bits)) < fits, np.arange(len(bits)) >= fits
    for _ in range(FILLS):
        room = max_bytes - best.size
        fitting = np.where(open_ & (bits <= 8 * room), bits, 0.0)
        at = int(np.argmax(fitting))
        if room <= ENOUGH * max_bytes or fitting[at] <= 8:
            break
        open_[at], taken[at] = False, True
        found = file(taken)
        if found.size <= max_bytes:
            best = found
        else:
            taken[at] = False
    whole = [name for name in names if solver.grids()[name].diagonal and best.drafts[name] is under.drafts[name]]
    return _filled(solver, best, over.power, {name: float(gains[name].sum()) for name in whole}, size_of, max_bytes)


def _filled(
    solver: SlopeSolver, best: Side, over: float, gains: Mapping[str, float], size_of: Size, max_bytes: int
) -> Drafts:
    """Solves matrices again, each between the slopes of the two sides, as long as that fills the budget better.

    `gains` are bits that each would take more at the slope of the larger side.
    """
    start = best.power
    for name in sorted(gains, key=lambda name: -gains[name])[:FILLS]:
        room = max_bytes - best.size
        if room <= ENOUGH * max_bytes:
            break
        share = min(1.0, 8 * room / max(gains[name], 1.0))
        for part in (0.9, 0.6):
            power = start + part * share * (over - start)
            found = {**best.drafts, name: solver.draft_of(name, 2.0**power)}
            size = size_of(found)
            if size <= best.size:
                break
            if size <= max_bytes:
                best = replace(best, drafts=found, size=size)
                break
    return best.drafts


def _gains(solver: SlopeSolver, under: Side, over: Side) -> dict[str, NDArray[np.float64]]:
    """Bits that each run of rows, or each matrix that is one, takes more in the second of two solutions."""
    _, contexts = solver.sampled(2.0 ** ((under.power + over.power) / 2))

    def spent(draft: Draft) -> NDArray[np.float64]:
        levels = draft.levels.astype(np.int32, copy=False)
        row, column, spread = draft.exponents.row.numpy(), draft.exponents.column.numpy(), draft.exponents.spread
        ordered = rolled(levels) if draft.diagonal else levels.T
        return bits_by_segment(ordered, row, column, spread, solver.trellis, contexts, diagonal=draft.diagonal)

    def work(name: str) -> NDArray[np.float64]:
        gain: NDArray[np.float64] = spent(over.drafts[name]) - spent(under.drafts[name])
        return gain.sum(keepdims=True) if solver.grids()[name].diagonal else gain

    return solver.each(work)


def _joined(under: Draft, over: Draft, taken: NDArray[np.bool_], restart: int) -> Draft:
    """A matrix whose runs of `restart` rows are those of `over` where `taken`; columns have the same steps in both."""
    if taken.all() or not taken.any():
        return over if taken.all() else under
    rows = taken.repeat(restart)[: len(under.levels)]
    levels = np.where(rows, over.levels.T, under.levels.T).T
    row = torch.where(torch.from_numpy(rows), over.exponents.row, under.exponents.row)
    return replace(under, levels=levels, exponents=replace(under.exponents, row=row))
