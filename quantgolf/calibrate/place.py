"""Where in its parameter a piece of a weight lies, and which part of a block's statistics its activations fill.

A block has its output rows along one side of the parameter, chosen by the first use. A later use may cover part of
the block's columns, or stand across it (x @ W in one place, y @ W.T in another): what it teaches then falls into
other corners of the same two statistics.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from quantgolf.calibrate.track import Home, Piece
from quantgolf.types import Block


@dataclass(frozen=True)
class Place:
    """A rectangle of a parameter seen as [R, C], its first `lead` dimensions merged into R.

    `turned` says that the matrix [N, K] found there has its N outputs along C.
    """

    home: Home
    lead: int
    rows: range
    columns: range
    turned: bool

    @property
    def width(self) -> int:
        """C."""
        return torch.Size(self.home.shape[self.lead :]).numel()

    @property
    def whole_rows(self) -> bool:
        return len(self.columns) == self.width

    def block(self, transposed: bool) -> Block:
        """The block whose rows of the parameter these are."""
        return Block(self.home.name, self.lead, self.rows.start, self.rows.stop, transposed)


@dataclass(frozen=True)
class Corner:
    """Which part of a block's row weights [N] and column matrix [K, K] a place fills."""

    rows: slice
    columns: slice


def places_of(piece: Piece) -> list[Place]:
    """Where a piece may lie, whole rows first; empty where its elements are no rectangle."""
    shape, n, k = piece.home.shape, len(piece.rows), piece.columns
    found = []
    for lead in range(1, len(shape)):
        width = torch.Size(shape[lead:]).numel()
        row, column = divmod(piece.start, width)
        if (k == 1 or piece.column == 1) and (n == 1 or piece.row == width) and column + k <= width:
            found.append(Place(piece.home, lead, range(row, row + n), range(column, column + k), turned=False))
        if (n == 1 or piece.row == 1) and (k == 1 or piece.column == width) and column + n <= width:
            found.append(Place(piece.home, lead, range(row, row + k), range(column, column + n), turned=True))
    return sorted(found, key=lambda place: not place.whole_rows)


def choose(places: Iterable[Place], before: tuple[int, bool] | None) -> Place | None:
    """The first place that agrees with the (lead, transposed) an earlier use gave the parameter, upright ones first."""
    if before is None:
        return next(iter(places), None)
    lead, transposed = before
    agreeing = [place for place in places if place.lead == lead]
    return next((p for p in agreeing if p.turned == transposed), agreeing[0] if agreeing else None)


def corner(place: Place, transposed: bool) -> Corner:
    """What a place fills of the statistics of its block."""
    columns, everything = slice(place.columns.start, place.columns.stop), slice(None)
    return Corner(columns, everything) if transposed else Corner(everything, columns)


def size_of(place: Place, transposed: bool) -> tuple[int, int]:
    """[N, K] of a place's block."""
    return (place.width, len(place.rows)) if transposed else (len(place.rows), place.width)


Kind = Literal["linear", "lookup", "crossed"]
