"""The picture of what each tensor's bytes are worth: its predicted loss for each byte it takes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from quantgolf.report.scan import Saving, Scan
from quantgolf.report.spending import bar_name
from quantgolf.report.style import SMALL, TEXT, Canvas, Look, short
from quantgolf.report.ticks import log_ticks, spoken
from quantgolf.sweep.point import FrontierPoint, Tensor

ROWS = 36  # more tensors than that share a row by role
LABEL = "predicted loss for each MB, nats a token"
SAVED = "KL saved for each MB more, bits per byte"
LONGEST = 30  # characters of a tensor's name; it is its end that tells


Row = tuple[str, list[list[Tensor]]]


def rows_of(points: Sequence[FrontierPoint], by_role: bool = False) -> list[Row]:
    """Rows of the picture from the top: a name, and for each point the tensors that stand in it.

    A row for each tensor, or for each role where there are many or `by_role`; the dearest of the first point on top.
    """
    priced = [[t for t in point.tensors if t.loss is not None and t.loss > 0 and t.bytes > 0] for point in points]
    many = by_role or max(map(len, priced), default=0) > ROWS
    rows: dict[str, list[list[Tensor]]] = {}
    for index, tensors in enumerate(priced):
        for tensor in tensors:
            row = rows.setdefault(tensor.role if many else tensor.name, [[] for _ in points])
            row[index].append(tensor)

    def dearness(item: Row) -> tuple[float, str]:
        first = next(found for found in item[1] if found)
        return -float(np.median([worth_of(tensor) for tensor in first])), item[0]

    return sorted(rows.items(), key=dearness)


def worth_of(tensor: Tensor) -> float:
    """Predicted loss, nats a token, for each MB."""
    assert tensor.loss is not None
    return 1e6 * tensor.loss / tensor.bytes


def height_of(rows: Sequence[Row]) -> float:
    """Inches that the axes of these rows need."""
    return max(1.0, 0.16 * len(rows))


def draw_worth(
    drawn: Canvas, axes: Axes, points: Sequence[FrontierPoint], rows: Sequence[Row], found: Mapping[str, Look]
) -> None:
    """Draws a dot for each tensor of each point, in rows by name or by role; `found` has the look of every method."""
    values = [worth_of(tensor) for _, row in rows for tensors in row for tensor in tensors]
    low, high = min(values) / 1.3, max(values) * 1.3
    for place, (_, row) in enumerate(rows):
        for index in reversed(range(len(points))):  # the best one on top
            look = found[points[index].method]
            # Rows of one tensor have their dots on the line, those of many apart by method.
            offset = 0.0 if max(map(len, row)) <= 1 else 0.24 * (index - (len(points) - 1) / 2)
            for tensor in row[index]:
                dot = drawn.line(
                    axes, [worth_of(tensor)], [place + offset], marker=look.marker, color=look.colour, markersize=4.6,
                    alpha=0.9 if offset == 0 else 0.65, markeredgewidth=0, zorder=3,
                )  # fmt: skip
                drawn.tip(dot, tip_of(tensor, points[index]))
    many = any(len(tensors) > 1 for _, row in rows for tensors in row)
    _finish(drawn, axes, rows, low, high, f"{LABEL}; a dot for each tensor" if many else LABEL)
    key(drawn, axes, points, found)


def draw_scan(drawn: Canvas, axes: Axes, scan: Scan, rows: Sequence[Row], look: Look) -> None:
    """Draws beside `draw_worth`, in its rows, what each tensor saved for each MB that it was given more.

    What saved nothing stands hollow at the left edge of the logarithmic axis.
    """
    by_role = scan.by_role or len(rows) < len({tensor.name for _, row in rows for own in row for tensor in own})
    places = {name: place for place, (name, _) in enumerate(rows)}
    shown = [saving for saving in scan.savings if saving.name(by_role) in places]
    values = [saving.kl.value for saving in shown if saving.kl.value > 0] or [1.0]
    low, high = min(values) / 1.6, max(max(values), *(s.kl.high or 0 for s in shown)) * 1.3
    for saving in shown:
        place, kl = places[saving.name(by_role)], saving.kl
        if kl.low is not None and kl.high is not None and kl.high > low:
            drawn.line(axes, [max(low, kl.low), kl.high], [place, place], color=look.colour, linewidth=1.2, zorder=2)
        fill = look.colour if kl.value > 0 else drawn.theme.background
        dot = drawn.line(
            axes, [max(low, kl.value)], [place], marker=look.marker, color=look.colour, markerfacecolor=fill,
            markersize=4.6, zorder=3, clip_on=False,
        )  # fmt: skip
        drawn.tip(dot, saving_tip(saving))
    _finish(drawn, axes, rows, low, high, SAVED)
    axes.tick_params(axis="y", labelleft=False)
    hollow = "; hollow: saved nothing" if any(saving.kl.value <= 0 for saving in shown) else ""
    each = "role" if scan.by_role else "tensor"
    axes.set_title(f"measured, one {each} at a time{hollow}", loc="left", fontsize=TEXT, color=drawn.theme.ink, pad=5)


def _finish(drawn: Canvas, axes: Axes, rows: Sequence[Row], low: float, high: float, label: str) -> None:
    """A logarithmic axis below, a name and a faint line for each row."""
    axes.set_xscale("log")
    for place in range(len(rows)):
        drawn.line(axes, [low, high], [place, place], color=drawn.theme.faint, linewidth=0.8, zorder=0.5)
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row_name(name) for name, _ in rows], fontsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low, high, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value)))
    axes.set_xlabel(label, color=drawn.theme.ink)


def key(drawn: Canvas, axes: Axes, points: Sequence[FrontierPoint], found: Mapping[str, Look]) -> None:
    """Which dots are of which file, in their colours, in a line above the axes."""
    height = axes.get_position().height * drawn.figure.get_size_inches()[1] * 72
    width = axes.get_position().width * drawn.figure.get_size_inches()[0] * 72
    at = 4.0
    for point in points:
        look, up = found[point.method], 1 + 9 / height
        axes.plot(
            [at / width], [up], look.marker, color=look.colour, markersize=4.6, clip_on=False,
            transform=axes.transAxes,
        )  # fmt: skip
        text = axes.text(
            (at + 6) / width, up, short(bar_name(point)), color=look.colour, fontsize=TEXT, va="center",
            transform=axes.transAxes,
        )  # fmt: skip
        at += 6 + text.get_window_extent().width * 72 / drawn.figure.dpi + 16


def row_name(name: str) -> str:
    """A tensor's name without what all have in common, and without its beginning where it is long."""
    name = short(name.removesuffix(".weight"), longest=200)
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def tip_of(tensor: Tensor, point: FrontierPoint) -> str:
    """A dot's hover text."""
    return (
        f"{tensor.name}, {tensor.role}\n{worth_of(tensor):.3g} nats a token for each MB\n{tensor.loss:.3g} nats a "
        f"token, {tensor.bytes:,.0f} bytes, {tensor.bits:.2f} bits\n{bar_name(point)}"
    )


def saving_tip(saving: Saving) -> str:
    """The hover text of a scan's dot."""
    first, many = saving.tensors[0], len(saving.tensors)
    wide = next(tensor for tensor in saving.point.tensors if tensor.name == first.name)
    what = f"{first.name}, {first.role}" if many == 1 else f"{first.role}, {many} tensors"
    return (
        f"{what}\nfrom {first.bits:g} to {wide.bits:g} bits: "
        f"{saving.kl.said('.4g')} bits per byte saved for each MB\n{bar_name(saving.point)}"
    )
