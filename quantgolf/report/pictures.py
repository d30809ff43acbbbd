"""The four pictures, laid out: a row for each model and text, what was measured over it, how to read it below."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from quantgolf.report.depth import OUTSIDE, bits_of, draw_depth
from quantgolf.report.frontier import chosen, priced, rivals
from quantgolf.report.losses import METRICS, draw_loss, note_of
from quantgolf.report.results import Panel
from quantgolf.report.scan import Scan, scan_of
from quantgolf.report.spending import bar_name, by_kind, by_role, colours_of, draw_stacks, side
from quantgolf.report.style import SMALL, TEXT, TITLE, Canvas, Look, Theme, canvas, looks, saved, short
from quantgolf.report.worth import draw_scan, draw_worth, height_of, rows_of
from quantgolf.sweep.point import FrontierPoint

WIDTH = 10.4  # inches of every picture
FOOT, NOTE = 0.62, 0.24  # inches below the axes of a row, and for what stands below all rows
HEADS = {"frontier": 0.66, "bytes": 0.86, "depth": 0.86, "worth": 0.86}  # inches over the axes of a row
HEAD = 0.5  # of these are for what was measured
LEFT = 0.82  # inches for a loss's numbers and name
FEW = 6  # methods; with more the rows are higher
BARS, FILES, RIVALS = 5, 4, 3  # points in the pictures that do not show all

# What each picture is of, for those who cannot see it.
TITLES = {
    "frontier": "What is lost over complete file bytes: KL to the float model, and the rise of bits per byte",
    "bytes": "Where the bytes of a file go: by what a tensor does, and by kind of stream",
    "depth": "Bits of each matrix against its layer",
    "worth": "Loss of each tensor for the bytes that it takes",
}


def picture(
    name: str, panels: Sequence[Panel], theme: Theme, kind: Literal["png", "svg", "pdf"], *, adaptive: bool = False,
    among: Sequence[Panel] = (), words: bool = True,
) -> bytes | None:  # fmt: skip
    """One picture of all panels that have what it shows; None where none has.

    Args:
        name: a key of `TITLES`.
        adaptive: of an SVG drawn in the light theme, see `saved`.
        among: the panels in whose company these are shown, so that a method has one colour in all.
        words: writes over each row what was measured, and below how to read it; a page says both itself.
    """
    drawer, needs = DRAWERS[name]
    rows = [panel for panel in panels if needs(panel)]
    if not rows:
        return None
    heights = [_height(name, panel) for panel in rows]
    note = note_of(rows) if name == "frontier" and words else ""
    over = HEADS[name] - (0 if words else HEAD)
    total = sum(heights) + len(rows) * (over + FOOT) + (NOTE if note else 0.0)
    with canvas(WIDTH, total, theme) as drawn:
        found = looks({method for panel in (*panels, *among) for method in panel.methods}, theme)
        top = total
        for panel, height in zip(rows, heights, strict=True):
            if words:
                _head(drawn, panel, top)
            drawer(drawn, panel, top - over - height, height, found)
            top -= over + height + FOOT
        if note:
            drawn.figure.text(0.02, 0.1 / total, note, fontsize=SMALL, color=theme.muted)
        own = f"{rows[0].name}-{name}" if len(rows) == 1 else name
        return saved(drawn, kind, name=own, adaptive=adaptive)


def facts(panel: Panel) -> str:
    """What a panel was measured on, in a line."""
    text = panel.first.text
    parts = [f"{text[name]:,} {name}" for name in ("tokens", "bytes", "documents") if isinstance(text.get(name), int)]
    measured = f"measured on {', '.join(parts)} of text" if parts else "measured on one text"
    floats = {point.float_bpb for point in panel.points if point.float_bpb is not None}
    return measured + (f"; float model {min(floats):.4f} bits per byte" if floats else "")


def _head(drawn: Canvas, panel: Panel, top: float) -> None:
    across, up = drawn.figure.get_size_inches()
    drawn.figure.text(
        0.2 / across, (top - 0.22) / up, short(panel.title, longest=100), fontsize=TITLE, weight="bold",
        color=drawn.theme.ink, va="center",
    )  # fmt: skip
    drawn.figure.text(
        0.2 / across, (top - 0.4) / up, short(facts(panel), longest=140), fontsize=SMALL, color=drawn.theme.muted,
        va="center",
    )  # fmt: skip


def _height(name: str, panel: Panel) -> float:
    if name == "worth":
        scan, points = _of_worth(panel)
        return height_of(rows_of(points, scan is not None and scan.by_role))
    if name == "frontier":
        return 3.0 if len(panel.methods) <= FEW else 4.1
    return 2.6


def _frontier(drawn: Canvas, panel: Panel, bottom: float, height: float, found: Mapping[str, Look]) -> None:
    right = _right(panel)
    each = WIDTH / len(METRICS)
    for index, metric in enumerate(METRICS):
        axes = drawn.axes(index * each + LEFT, bottom, each - LEFT - right, height)
        draw_loss(drawn, axes, panel, metric, found, right - 0.05)


def _right(panel: Panel) -> float:
    """Inches beside the axes for the names of what lies near their right edge; other names find room inside."""
    sizes = [math.log(point.bytes) for point in panel.points if point.bytes is not None]
    edge = max(sizes) - 0.2 * (max(sizes) - min(sizes))
    near = [short(p.method) for p in panel.points if p.bytes is not None and math.log(p.bytes) >= edge]
    return min(1.7, max(0.5, max(map(len, near)) * TEXT * 0.62 / 72 + 0.1))


def _bytes(drawn: Canvas, panel: Panel, bottom: float, height: float, found: Mapping[str, Look]) -> None:
    points = chosen(panel, BARS)
    parts = (
        ("by tensor", by_role),
        ("by kind of stream", by_kind),
        ("without levels and codes; share of the file", side),
    )
    stacks = [(title, [part(point) for point in points], part is side) for title, part in parts]
    each = WIDTH / len(stacks)
    # One colour a kind in both pictures of kinds.
    kinds = colours_of(sorted({name for stack in stacks[1][1] for name in stack}), drawn.theme)
    roles = colours_of(sorted({name for stack in stacks[0][1] for name in stack}), drawn.theme)
    for index, (title, stack, shares) in enumerate(stacks):
        if any(stack):
            axes = drawn.axes(index * each + 0.62, bottom, each - 0.62 - 1.12, height, title)
            draw_stacks(drawn, axes, points, stack, kinds if index else roles, shares)


def _depth(drawn: Canvas, panel: Panel, bottom: float, height: float, found: Mapping[str, Look]) -> None:
    points = chosen(panel, FILES)
    tensors = [tensor for point in points for tensor in point.tensors]
    of_role = looks({tensor.role for tensor in tensors}, drawn.theme)
    weight = {role: sum(t.parameters for t in tensors if t.role == role and t.depth is None) for role in of_role}
    outside = sorted(sorted((role for role in weight if weight[role]), key=lambda r: (-weight[r], r))[:OUTSIDE])
    bits = [value for point in points for layers in bits_of(point).values() for value in layers.values()]
    room = 0.06 * (max(bits) - min(bits)) or 0.5
    each = (WIDTH - 0.62 - 1.1) / FILES
    for index, point in enumerate(points):
        axes = drawn.axes(0.62 + index * each, bottom, each - 0.14, height, bar_name(point))
        axes.set_ylim(min(bits) - room, max(bits) + room)  # before names are placed
        draw_depth(drawn, axes, point, of_role, outside, named=index == len(points) - 1)
        if index:
            axes.tick_params(axis="y", labelleft=False)
        else:
            axes.set_ylabel("bits per weight", color=drawn.theme.ink)


def _worth(drawn: Canvas, panel: Panel, bottom: float, height: float, found: Mapping[str, Look]) -> None:
    scan, points = _of_worth(panel)
    rows = rows_of(points, scan is not None and scan.by_role)
    wide = WIDTH - 2.2 - 0.4
    axes = drawn.axes(2.2, bottom, wide if scan is None else 0.52 * wide, height)
    draw_worth(drawn, axes, points, rows, found)
    if scan is not None:
        axes = drawn.axes(2.2 + 0.58 * wide, bottom, 0.42 * wide, height)
        draw_scan(drawn, axes, scan, rows, found[scan.base.method])


def _of_worth(panel: Panel) -> tuple[Scan | None, list[FrontierPoint]]:
    """A scan with the file it starts from, or the best methods at about equal bytes."""
    scan = scan_of(panel)
    if scan is not None and priced(scan.base):
        return scan, [scan.base]
    return None, rivals(panel, RIVALS)


Drawer = Callable[[Canvas, Panel, float, float, Mapping[str, Look]], None]
DRAWERS: dict[str, tuple[Drawer, Callable[[Panel], bool]]] = {
    "frontier": (_frontier, lambda panel: bool(panel.points)),
    "bytes": (_bytes, lambda panel: bool(chosen(panel, BARS))),
    "depth": (_depth, lambda panel: any(t.depth is not None for p in chosen(panel, FILES) for t in p.tensors)),
    "worth": (_worth, lambda panel: bool(_of_worth(panel)[1])),
}
