"""Where names go in a picture: beside what they name, on nothing else, and never on one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from quantgolf.report.style import TEXT, Canvas

Boxes = NDArray[np.float64]  # [n, 4]: left, bottom, right, top, in points from the figure's corner
GAP = 5.0  # points between a marker's middle and the name beside it
REACHES = (0.0, 4.0, 9.0, 15.0, 22.0, 30.0, 40.0, 52.0, 66.0, 82.0, 100.0)
FAR = 9.0  # points from which on a line leads to the name
DIRECTIONS = tuple((float(np.cos(a)), float(np.sin(a))) for a in np.arange(16) * np.pi / 8)
ON_LABEL, ON_MARK, BOUND = 400.0, 20.0, 1e9
ROUNDS = 6
SPACE = 5.0  # points between two names side by side
LEADER = (0.12, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0)  # where a line to a name is looked at


@dataclass(frozen=True)
class Name:
    """A name to place, and the points (in data) that it may stand beside, the best first."""

    text: str
    anchors: tuple[tuple[float, float], ...]
    colour: str


@dataclass(frozen=True)
class _Spots:
    """Where a name may stand: its boxes, the anchors they are at, where a line to them would end, and what each costs
    but for other names."""

    boxes: Boxes
    anchors: NDArray[np.float64]
    near: NDArray[np.float64]
    costs: NDArray[np.float64]


def spread(wanted: Sequence[float], size: float, low: float, high: float) -> list[float]:
    """Middles of equally high labels as near as can be to where they are wanted, none on another, all within bounds.

    Least squares under y[i + 1] ≥ y[i] + size: pooling of adjacent violators (Ayer et al. 1955) of wanted[i] - i·size.
    Where there is no room for all they are spread evenly over it.
    """
    if not wanted:
        return []
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    if size * len(wanted) > high - low:
        even = np.linspace(low + min(size, high - low) / 2, high - min(size, high - low) / 2, len(wanted))
        return [float(even[order.index(i)]) for i in range(len(wanted))]
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        pools.append((wanted[index] - rank * size, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    lowest, highest = low + size / 2, high - size / 2 - (len(wanted) - 1) * size
    flat = [min(max(mean, lowest), highest) for mean, count in pools for _ in range(count)]
    found = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        found[index] = flat[rank] + rank * size
    return found


def beside(drawn: Canvas, axes: Axes, names: Sequence[tuple[str, float, str]], room: float) -> None:
    """Names to the right of the axes at heights in data, with a thin line where one had to move.

    Args:
        names: text, height and colour of each.
        room: inches between the axes' right edge and the names.
    """
    heights = [float(axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1]) for _, y, _ in names]
    points = axes.get_position().height * drawn.figure.get_size_inches()[1] * 72
    right = room * 72 / (axes.get_position().width * drawn.figure.get_size_inches()[0] * 72)
    line = (TEXT + 2.5) / points
    for (text, _, colour), at, to in zip(names, heights, spread(heights, line, -0.06, 1.06), strict=True):
        axes.plot(
            [1 + 0.1 * right, 1 + 0.4 * right, 1 + 0.85 * right], [at, at * 0.3 + to * 0.7, to], color=colour,
            linewidth=0.7, alpha=0.7, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.text(1 + right, to, text, color=colour, fontsize=TEXT, va="center", transform=axes.transAxes)


def place(
    drawn: Canvas, axes: Axes, names: Sequence[Name], marks: Sequence[Boxes], lines: Sequence[Boxes], right: float
) -> None:
    """Writes every name near one of its points.

    Args:
        marks: boxes of what should not be covered, in points; `lines` of what had better not be.
        right: inches to the right of the axes that are free for names.
    """
    sizes = [_size(drawn, name.text) for name in names]
    window = axes.get_window_extent()
    scale = 72 / drawn.figure.dpi
    bounds = (window.x0 * scale, window.y0 * scale, window.x1 * scale + 72 * right, window.y1 * scale + 4)
    fixed = np.concatenate([*marks, *lines]) if marks or lines else np.zeros((0, 4))
    weight = np.concatenate([np.full(sum(map(len, marks)), ON_MARK), np.full(sum(map(len, lines)), ON_MARK / 3)])
    options = [_spots(axes, name, size, bounds, fixed, weight) for name, size in zip(names, sizes, strict=True)]
    taken = [-1] * len(names)
    for _ in range(ROUNDS):
        before = list(taken)
        for index, spots in enumerate(options):
            others = [options[i].boxes[at] for i, at in enumerate(taken) if i != index and at >= 0]
            crowded = _crowding(spots, np.array(others)) if others else 0.0
            taken[index] = int(np.argmin(spots.costs + crowded))
        if taken == before:
            break
    for name, spots, at in zip(names, options, taken, strict=True):
        _write(drawn, name, spots, at)


def boxes_at(axes: Axes, dpi: float, points: NDArray[np.float64], radius: float) -> Boxes:
    """Boxes of a radius (points) around points in data [n, 2]."""
    at = axes.transData.transform(points) * 72 / dpi
    return np.concatenate([at - radius, at + radius], 1)


def along(axes: Axes, dpi: float, points: NDArray[np.float64], radius: float = 1.0, every: float = 4.0) -> Boxes:
    """Boxes along the straight lines through points in data [n, 2]."""
    at = axes.transData.transform(points) * 72 / dpi
    found = [np.zeros((0, 2))]
    for start, stop in pairwise(at):
        steps = max(2, int(np.hypot(*(stop - start)) / every))
        found.append(start + (stop - start) * np.linspace(0, 1, steps)[:, None])
    middle = np.concatenate(found)
    return np.concatenate([middle - radius, middle + radius], 1)


def _size(drawn: Canvas, text: str) -> tuple[float, float]:
    found = drawn.figure.text(0, 0, text, fontsize=TEXT)
    box = found.get_window_extent()
    found.remove()
    scale = 72 / drawn.figure.dpi
    return box.width * scale, TEXT * 1.15


def _spots(
    axes: Axes, name: Name, size: tuple[float, float], bounds: tuple[float, float, float, float], fixed: Boxes,
    weight: NDArray[np.float64],
) -> _Spots:  # fmt: skip
    at = axes.transData.transform(np.array(name.anchors)) * 72 / axes.figure.dpi
    rank, reach, toward = (
        grid.ravel()
        for grid in np.meshgrid(np.arange(len(at)), np.array(REACHES), np.arange(len(DIRECTIONS)), indexing="ij")
    )
    along_x, along_y = np.array(DIRECTIONS)[toward].T
    half = np.array(size) / 2
    # The box touches, from outside, the circle that it is pushed out to.
    middle = np.stack(
        [
            at[rank, 0] + along_x * (GAP + reach) + half[0] * np.clip(along_x * 2.5, -1, 1),
            at[rank, 1] + along_y * (GAP + reach) + half[1] * np.clip(along_y * 2.5, -1, 1),
        ],
        1,
    )
    boxes = np.concatenate([middle - half, middle + half], 1)
    near = np.clip(at[rank], boxes[:, :2], boxes[:, 2:])
    left, bottom, right, top = bounds
    outside = (boxes[:, 0] < left) | (boxes[:, 1] < bottom) | (boxes[:, 2] > right) | (boxes[:, 3] > top)
    costs = reach + 6.0 * rank + 1.5 * (1 - along_x) + BOUND * outside
    if len(fixed):
        costs = costs + _overlaps(boxes, fixed) @ weight
        length = np.hypot(*(near - at[rank]).T)
        for share in LEADER:
            covered = (_overlaps(_around(at[rank], near, share), fixed) @ weight).clip(max=ON_MARK)
            costs = costs + np.where(share * length > 1.5 * GAP, covered / 3, 0)  # not the mark that it starts from
    return _Spots(boxes, at[rank], near, costs)


def _overlaps(boxes: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """Which of boxes [n, 4] lie on which of others [m, 4]: [n, m]."""
    a, b = boxes[:, None], others[None]
    found: NDArray[np.bool_] = (
        (a[..., 0] < b[..., 2]) & (b[..., 0] < a[..., 2]) & (a[..., 1] < b[..., 3]) & (b[..., 1] < a[..., 3])
    )
    return found


def _crowding(spots: _Spots, others: Boxes) -> NDArray[np.float64]:
    """What it costs that a name, or the line to it, lies on other names; some space between two stays free."""
    wide = others + np.array([-SPACE, 0, SPACE, 0])
    cost: NDArray[np.float64] = ON_LABEL * _overlaps(spots.boxes, wide).sum(1).astype(np.float64)
    for share in LEADER:
        cost += ON_MARK * _overlaps(_around(spots.anchors, spots.near, share), others).any(1)
    return cost


def _around(start: NDArray[np.float64], stop: NDArray[np.float64], share: float) -> Boxes:
    middle = start * (1 - share) + stop * share
    return np.concatenate([middle - 1, middle + 1], 1)


def _write(drawn: Canvas, name: Name, spots: _Spots, at: int) -> None:
    across, up = drawn.figure.get_size_inches() * 72
    left, bottom, _, top = spots.boxes[at]
    anchor, near = spots.anchors[at], spots.near[at]
    if np.hypot(*(near - anchor)) > FAR:
        line = Line2D(
            [anchor[0] / across, near[0] / across], [anchor[1] / up, near[1] / up], color=name.colour, linewidth=0.6,
            alpha=0.7, transform=drawn.figure.transFigure,
        )  # fmt: skip
        drawn.figure.add_artist(line)
    drawn.figure.text(left / across, (bottom + top) / 2 / up, name.text, fontsize=TEXT, color=name.colour, va="center")
