"""The picture of a sweep or a comparison: what is lost over complete file bytes, a line or a point for each method."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from quantgolf.report.frontier import frontier, loss_of
from quantgolf.report.labels import Boxes, Name, along, boxes_at, place
from quantgolf.report.results import Panel
from quantgolf.report.style import OURS, SMALL, Canvas, Look, short
from quantgolf.report.ticks import bytes_axis, loss_axis, spoken, unit_of
from quantgolf.sweep.point import FrontierPoint, Measured

METRICS = {"kl": "KL to the float model, bits per byte", "delta_bpb": "rise of BPB over the float model"}
RADIUS, PALE = 4.6, 0.38  # of a marker in points; opacity of what another point beats
LIMITS, LINES = (
    3,
    16,
)  # more than so many limits are lines without their numbers, and then no lines: a wood says nothing
XZ = 0.99  # a file that xz makes smaller than this is shown at both sizes


def draw_loss(drawn: Canvas, axes: Axes, panel: Panel, metric: str, found: Mapping[str, Look], right: float) -> None:
    """Draws one panel.

    Args:
        metric: a key of `METRICS`.
        found: the look of every method.
        right: inches to the right of the axes that are free for names.
    """
    known = [point for point in panel.points if loss_of(point, metric) is not None]
    axes.set_ylabel(METRICS[metric], color=drawn.theme.ink)
    axes.xaxis.label.set_color(drawn.theme.ink)
    if not known:
        axes.set_axis_off()
        axes.text(0, 0.5, "not measured on any point", color=drawn.theme.muted, transform=axes.transAxes)
        return
    limits = sorted({point.limit for point in known if point.limit is not None})
    sizes = [float(size) for p in known for size in (p.bytes, _packed(p)) if size is not None]
    if len(limits) > LINES:
        limits = []
    bytes_axis(axes, [*sizes, *(limits if len(limits) <= LIMITS else [])])
    values = [_measured(point, metric).value for point in known]
    reach = [end for point in known for end in (_measured(point, metric).low, _measured(point, metric).high)]
    bottom = loss_axis(axes, values, [end for end in reach if end is not None])
    axes.grid(axis="y", color=drawn.theme.faint, linewidth=0.8)
    strength = 0.8 if len(limits) <= LIMITS else 0.35
    for limit in limits:
        axes.axvline(limit, color=drawn.theme.muted, linewidth=0.7, alpha=strength, zorder=1)
    on = {point.key for point in frontier(known, metric)}
    marks: list[Boxes] = []
    lines: list[Boxes] = []
    names = []
    dpi = drawn.figure.dpi
    for method in sorted(panel.methods, key=lambda name: (-OURS.get(name, len(OURS)), name)):  # ours on top
        points = [point for point in known if point.method == method]
        if not points:
            continue
        look, own = found[method], frontier(points, metric)
        at = np.array([(point.bytes, _measured(point, metric).value) for point in own], dtype=np.float64)
        if len(own) > 1:
            full = any(point.key in on for point in own)
            drawn.line(
                axes, *at.T, color=look.colour, linewidth=1.6 if full else 1.2, alpha=1 if full else 0.6, zorder=2.5
            )
            lines.append(along(axes, dpi, at))
        for point in points:
            marks += _draw_point(drawn, axes, point, metric, look, point.key in on, bottom)
        ends = at if len(at) < 3 else at[[-1, 0, *range(len(at) - 2, 0, -1)]]
        names.append(Name(short(method), tuple((float(x), float(y)) for x, y in ends[:4]), look.colour))
    if limits and len(limits) <= LIMITS:
        marks += _write_limits(drawn, axes, limits)
    place(drawn, axes, names, marks, lines, right)


def note_of(panels: Sequence[Panel]) -> str:
    """What the drawing means, in a sentence or two, as far as it occurs in it."""
    points = [point for panel in panels for point in panel.points]
    parts = ["Bars: 95% intervals over documents."]
    if any(len(frontier(panel.points)) < len(panel.points) for panel in panels):
        parts.append("Pale: a file for the same limit, or a smaller one, loses less.")
    if any(_packed(point) is not None for point in points):
        parts.append("Hollow: the same file after xz -9e.")
    if any(0 < len({point.limit for point in panel.points} - {None}) <= LINES for panel in panels):
        parts.append("Upright lines: limits.")
    return " ".join(parts)


def tip_of(point: FrontierPoint) -> str:
    """A point's hover text: a line each for what it is, weighs and loses."""
    assert point.bytes is not None
    rows = [point.method, f"{point.bytes:,} bytes, {point.bpw:.3f} bits per parameter"]
    if point.xz_bytes is not None:
        rows.append(f"{point.xz_bytes:,} bytes after xz")
    for metric, name in (("kl", "KL"), ("delta_bpb", "ΔBPB")):
        measured = loss_of(point, metric)
        if measured is not None:
            rows.append(f"{name} {measured.said('.4g', '+' if metric == 'delta_bpb' else '')}")
    said = ("solver", "max_bytes")
    varied = ", ".join(f"{name} {value}" for name, value in point.options.items() if name not in said)
    return "\n".join([*rows, varied] if varied else rows)


def _draw_point(
    drawn: Canvas, axes: Axes, point: FrontierPoint, metric: str, look: Look, on: bool, bottom: float
) -> list[Boxes]:
    assert point.bytes is not None
    measured, dpi = _measured(point, metric), drawn.figure.dpi
    x, y = float(point.bytes), measured.value
    marks = []
    if measured.low is not None and measured.high is not None:
        # An interval that reaches below a logarithmic axis runs down to its edge.
        ends = np.array([(x, max(measured.low, bottom)), (x, max(measured.high, bottom))])
        drawn.line(axes, *ends.T, color=look.colour, linewidth=1.1, alpha=1 if on else PALE + 0.1, zorder=2.7)
        marks.append(along(axes, dpi, ends))
    packed = _packed(point)
    if packed is not None:
        ends = np.array([(packed, y), (x, y)])
        drawn.line(axes, *ends.T, color=look.colour, linewidth=0.9, linestyle=(0, (1, 1.6)), alpha=0.9, zorder=2.6)
        drawn.line(
            axes, [packed], [y], marker=look.marker, markersize=RADIUS, markerfacecolor=drawn.theme.background,
            markeredgecolor=look.colour, markeredgewidth=1, zorder=3,
        )  # fmt: skip
        marks += [along(axes, dpi, ends), boxes_at(axes, dpi, ends[:1], RADIUS * 0.7)]
    # Under a pale marker the line and the bar would show through.
    drawn.line(axes, [x], [y], marker=look.marker, markersize=RADIUS, color=drawn.theme.background, zorder=3)
    drawn.line(
        axes, [x], [y], marker=look.marker, markersize=RADIUS, color=look.colour, markeredgewidth=0.8, zorder=3.1,
        alpha=1 if on else PALE,
    )  # fmt: skip
    target = drawn.line(axes, [x], [y], marker="o", markersize=13, color=look.colour, alpha=0, zorder=4)
    drawn.tip(target, tip_of(point))
    marks.append(boxes_at(axes, dpi, np.array([(x, y)]), RADIUS * 0.7))
    return marks


def _write_limits(drawn: Canvas, axes: Axes, limits: Sequence[int]) -> list[Boxes]:
    found = []
    for limit in limits:
        unit, size = unit_of(limit)
        text = axes.annotate(
            f"limit {spoken(limit / size)} {unit}", (limit, 1), (-3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", rotation=90, ha="right", va="top", fontsize=SMALL, color=drawn.theme.muted,
        )  # fmt: skip
        box = text.get_window_extent()
        found.append(np.array([[box.x0, box.y0, box.x1, box.y1]]) * 72 / drawn.figure.dpi)
    return found


def _packed(point: FrontierPoint) -> float | None:
    """Bytes after xz, where they are worth showing."""
    assert point.bytes is not None
    return None if point.xz_bytes is None or point.xz_bytes > XZ * point.bytes else float(point.xz_bytes)


def _measured(point: FrontierPoint, metric: str) -> Measured:
    measured = loss_of(point, metric)
    assert measured is not None
    return measured
