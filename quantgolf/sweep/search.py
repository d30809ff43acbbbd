"""Points that depend on others: a scan of what each matrix is worth at high precision, and searches around a plan.

All of them are the same for the same seed, however many processes make them, and whatever the results file has
already is not made again: a search that was killed goes through its finished points to where it was.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from quantgolf.compress.fixed import FixedWidths
from quantgolf.compress.workshop import Workshop
from quantgolf.encode import Codec
from quantgolf.errors import QuantGolfError
from quantgolf.solve import WIDTHS, Solver
from quantgolf.sweep.asked import Outcome
from quantgolf.sweep.axes import recipes_of
from quantgolf.sweep.plan import read_point, recipe_of
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.recipe import FIXED, Recipe, make, rules_of, widths_of
from quantgolf.sweep.roles import role_of
from quantgolf.sweep.run import Session
from quantgolf.types import Choice

ROUND = 4  # plans that a local search tries before it moves: as many on one core as on sixteen
MOVES = (1, 1, 1, 2, 2, 3)  # how many matrices are widened in a neighbour, drawn from these
TRIES = 200


def sensitivity(
    going: Session, axes: Mapping[str, Sequence[Any]], code_bytes: int, *, by_role: bool = False, high: int = 8
) -> Outcome:
    """The base plan, and for each matrix (or role) the plan with that one at `high` bits.

    Raises:
        QuantGolfError: not exactly one base plan, of fixed widths; or `high` out of range.
    """
    if high not in WIDTHS:
        raise QuantGolfError(f"high is {high}, expected a width from {WIDTHS[0]} to {WIDTHS[-1]}")
    base = base_of(going, axes, code_bytes)
    shop = Workshop(going.source, going.calibration, code_bytes=code_bytes)
    widths = widths_of(base.rules(), shop.matrices)
    names = sorted({role_of(name) for name in widths}) if by_role else list(widths)
    raised = [replace(base, max_bytes=None, raised=f"{name}={high}") for name in names]
    if not by_role:
        raised = [recipe for recipe, name in zip(raised, names, strict=True) if widths[name] != high]
    return going.points([replace(base, max_bytes=None), *raised])


def base_of(going: Session, axes: Mapping[str, Sequence[Any]], code_bytes: int) -> Recipe:
    """The one plan that axes describe, its widths written out where the knapsack chooses them.

    Raises:
        QuantGolfError: several plans, or one without widths.
    """
    found = recipes_of(axes if "solver" in axes else {"solver": ["gptq"], **axes}, going.source.parameters, code_bytes)
    if len(found) != 1:
        raise QuantGolfError(f"the options say {len(found)} plans, expected one to begin from; give one value of each")
    return written_out(going, found[0])


def written_out(going: Session, recipe: Recipe) -> Recipe:
    """A recipe with a width for every matrix, that makes the same file.

    Raises:
        QuantGolfError: one slope, which has no widths; or groups of columns that differ between matrices.
    """
    if recipe.solver not in FIXED:
        raise QuantGolfError(f"solver {recipe.solver} has no widths to move, expected one of {', '.join(FIXED)}")
    if len(recipe.group_sizes()) > 1:
        raise QuantGolfError(f"group-size {recipe.group_size} leaves a choice, expected one size; give one")
    if recipe.bits is not None:
        return recipe
    plan = make(Workshop(going.source, going.calibration, code_bytes=recipe.code_bytes), recipe).plan
    return replace(recipe, bits=rules_of(plan.bits))


@dataclass(frozen=True)
class Search:
    """A search around a plan.

    Attributes:
        kind: "random" for neighbours of the plan, "local" for neighbours of the best so far.
        count: of plans that are tried.
        seed: of what is drawn.
        around: a point's file to begin from; None for the plan that the axes describe.
    """

    kind: str
    count: int
    seed: int = 0
    around: Path | None = None

    @staticmethod
    def parse(text: str, seed: int, around: Path | None) -> "Search":
        """`random:20` or `local:20`.

        Raises:
            QuantGolfError: not of that form.
        """
        match = re.fullmatch(r"(random|local):([1-9]\d*)", text.strip())
        if match is None:
            raise QuantGolfError(f"--search {text!r}, expected random:N or local:N, for example local:24")
        return Search(match[1], int(match[2]), seed, around)

    def run(self, going: Session, axes: Mapping[str, Sequence[Any]], code_bytes: int) -> Outcome:
        """The start and what was tried around it.

        Raises:
            QuantGolfError: as `base_of`, no limit, or a start that cannot be made.
        """
        start = self._start(going, axes, code_bytes)
        first = going.points([start], divide=False)
        if not first.done:
            raise QuantGolfError(f"the plan to begin from failed: {first.points[0].error if first.points else ''}")
        near = Neighbours(going, start, first.done[0])
        method = f"{start.solver}, {self.kind} search"
        if self.kind == "random":
            drawn = near.drawn(start, self.count, random.Random(f"{self.seed}"))
            found = going.points(drawn, method)
            return replace(found, points=(*first.points, *found.points), made=first.made + found.made)
        return self._climb(going, near, start, first, method)

    def _climb(self, going: Session, near: "Neighbours", start: Recipe, first: Outcome, method: str) -> Outcome:
        best, best_kl = start, _kl(first.done[0])
        points, made, tried = list(first.points), first.made, {start}
        for step in range(-(-self.count // ROUND)):
            count = min(ROUND, self.count - step * ROUND)
            drawn = near.drawn(best, count, random.Random(f"{self.seed} {step}"), tried)
            tried |= set(drawn)
            found = going.points(drawn, method, divide=False)
            points, made = [*points, *found.points], made + found.made
            by_key = {going.key(recipe): recipe for recipe in drawn}
            for point in found.done:
                if _kl(point) < best_kl:
                    best, best_kl = by_key[point.key], _kl(point)
        return Outcome(tuple(points), tuple(going.notes), made)

    def _start(self, going: Session, axes: Mapping[str, Sequence[Any]], code_bytes: int) -> Recipe:
        if self.around is None:
            start = base_of(going, axes, code_bytes)
        else:
            point = read_point(self.around)
            start = written_out(going, recipe_of(point, going.source.fingerprint))
            limits = axes.get("max_bytes", [start.max_bytes or point.bytes])
            if len(limits) != 1 or set(axes) - {"max_bytes"}:
                raise QuantGolfError("--around gives all options but the limit, expected at most one --max-bytes")
            start = replace(start, max_bytes=limits[0], code_bytes=code_bytes)
        if start.max_bytes is None:
            raise QuantGolfError("a search moves widths within a limit, expected one; give --max-bytes")
        return start


class Neighbours:
    """Plans near a plan that should fit into the same limit.

    Args:
        going: the sweep.
        start: the plan whose file is `measured`, by which predicted bytes are set right.
    """

    def __init__(self, going: Session, start: Recipe, measured: FrontierPoint) -> None:
        shop = Workshop(going.source, going.calibration, code_bytes=start.code_bytes)
        self.fixed: FixedWidths = shop.fixed(
            cast(Solver, start.solver), start.solve_options(), None, cast(Codec, start.codec)
        )
        self.names, self.group = list(shop.matrices), start.group_sizes()[0]
        assert start.max_bytes is not None and measured.bytes is not None
        self.room = start.max_bytes - measured.bytes
        self.start_bytes = self._bytes(widths_of(start.rules(), self.names))

    def drawn(
        self, center: Recipe, count: int, drawing: random.Random, known: set[Recipe] | None = None
    ) -> list[Recipe]:
        """`count` plans near one, or as many as are found: some matrices a bit wider, and others a bit narrower until
        the file should fit."""
        widths, found = widths_of(center.rules(), self.names), dict[Recipe, None]()
        for _ in range(TRIES * count):
            if len(found) == count:
                break
            moved = self._moved(widths, drawing)
            if moved is not None:
                recipe = replace(center, bits=rules_of(moved), raised=None)
                if recipe != center and recipe not in (known or ()):
                    found[recipe] = None
        return list(found)

    def _moved(self, widths: Mapping[str, int], drawing: random.Random) -> dict[str, int] | None:
        moved = dict(widths)
        wider = [name for name in self.names if moved[name] < WIDTHS[-1]]
        chosen = drawing.sample(wider, min(len(wider), drawing.choice(MOVES)))
        for name in chosen:
            moved[name] += 1
        others = [name for name in self.names if name not in chosen]
        drawing.shuffle(others)
        for name in others:
            if self._bytes(moved) - self.start_bytes <= self.room:
                break
            if moved[name] > WIDTHS[0]:
                moved[name] -= 1
        return moved if self._bytes(moved) - self.start_bytes <= self.room else None

    def _bytes(self, widths: Mapping[str, int]) -> float:
        """Predicted bytes of codes and scales."""
        return sum(self.fixed.costs[name][Choice(width, self.group)].bytes for name, width in widths.items())


def _kl(point: FrontierPoint) -> float:
    assert point.kl is not None
    return point.kl.value
