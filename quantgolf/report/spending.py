"""The picture of where bytes go: a bar for each file, cut by what a tensor does or by the kind of stream."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from quantgolf.report.labels import beside
from quantgolf.report.style import SMALL, Canvas, Theme, looks, short
from quantgolf.report.ticks import spoken, unit_of
from quantgolf.sweep.point import FrontierPoint

REST = "all else"
MOST = 8  # colours; more parts than that are drawn as one
PAYLOAD = ("levels", "codes")  # what weights are made of; the other kinds of stream are what comes with them


def by_role(point: FrontierPoint) -> dict[str, float]:
    """Bytes of a file by what its matrices do, and what is none of theirs."""
    found: dict[str, float] = {}
    for tensor in point.tensors:
        found[tensor.role] = found.get(tensor.role, 0.0) + tensor.bytes
    return _with_rest(found, point)


def by_kind(point: FrontierPoint) -> dict[str, float]:
    """Bytes of a file by kind of stream, and what no kind names."""
    return _with_rest({name: float(count) for name, count in point.kinds.items()}, point)


def side(point: FrontierPoint) -> dict[str, float]:
    """Bytes by kind without levels and codes: what comes with them."""
    return {name: count for name, count in by_kind(point).items() if name not in PAYLOAD}


def colours_of(names: Sequence[str], theme: Theme) -> dict[str, str]:
    """A colour for each name, the muted one for `REST`."""
    found = {name: look.colour for name, look in looks([n for n in names if n != REST], theme).items()}
    return {**found, REST: theme.muted}


def draw_stacks(
    drawn: Canvas, axes: Axes, points: Sequence[FrontierPoint], stacks: Sequence[Mapping[str, float]],
    colours: Mapping[str, str], shares: bool = False,
) -> None:  # fmt: skip
    """A bar for each point, its parts named beside the last one.

    Args:
        stacks: bytes by part, one mapping a point.
        colours: of every part.
        shares: writes over each bar which part of its file it is.
    """
    parts = _lumped(stacks)
    order = sorted({name for stack in parts for name in stack}, key=lambda n: (n == REST, -_total(parts, n), n))
    highest = max(sum(stack.values()) for stack in parts)
    unit, size = unit_of(highest)
    middles: dict[str, float] = {}
    for index, (point, stack) in enumerate(zip(points, parts, strict=True)):
        assert point.bytes is not None
        base = 0.0
        for name in order:
            count = stack.get(name, 0.0)
            if count <= 0:
                continue
            bar = Rectangle(
                (index - 0.36, base / size), 0.72, count / size, facecolor=colours[name],
                edgecolor=drawn.theme.background, linewidth=0.5, zorder=2,
            )  # fmt: skip
            axes.add_artist(bar)
            drawn.tip(bar, f"{name}\n{count:,.0f} bytes, {count / point.bytes:.2%} of the file\n{bar_name(point)}")
            # A part that the last bar lacks is named at the last one that has it.
            middles[name] = (base + count / 2) / size
            base += count
        if shares:
            axes.annotate(
                f"{base / point.bytes:.1%}", (index, base / size), (0, 3), textcoords="offset points", ha="center",
                fontsize=SMALL, color=drawn.theme.ink,
            )  # fmt: skip
    axes.set_xlim(-0.6, len(points) - 0.4)
    axes.set_ylim(0, highest / size * (1.1 if shares else 1.04))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value)))
    axes.set_ylabel(unit, color=drawn.theme.ink)
    axes.grid(axis="y", color=drawn.theme.faint, linewidth=0.8)
    axes.tick_params(axis="x", length=0)
    name_bars(drawn, axes, points)
    beside(drawn, axes, [(short(name), middles[name], colours[name]) for name in order], room=0.16)


def name_bars(drawn: Canvas, axes: Axes, points: Sequence[FrontierPoint]) -> None:
    """What file each bar is: its size, and its method where there are several; slanted where they would meet."""
    unit, size = unit_of(max(point.bytes or 0 for point in points))
    several = len({point.method for point in points}) > 1
    numbers = [(point.bytes or 0) / size for point in points]
    names = [f"{number:.2f}" if number < 10 else f"{number:.3g}" for number in numbers]
    if several:
        names = [f"{name}\n{short(point.method)}" for name, point in zip(names, points, strict=True)]
    widest = max(max(map(len, name.split("\n"))) for name in names) * SMALL * 0.62
    room = axes.get_position().width * drawn.figure.get_size_inches()[0] * 72 / len(points)
    if widest > room:
        names = [name.replace("\n", " ") for name in names]
        axes.set_xticks(range(len(points)), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(points)), names)
    what = "complete files" if several else f"complete files of {short(points[0].method)}"
    axes.set_xlabel(f"{what}, {unit}", color=drawn.theme.ink)


def bar_name(point: FrontierPoint) -> str:
    """`slope, 1.15 MB`: which file a bar or a panel is of."""
    assert point.bytes is not None
    unit, size = unit_of(point.bytes)
    return f"{point.method}, {point.bytes / size:.3g} {unit}"


def _with_rest(found: dict[str, float], point: FrontierPoint) -> dict[str, float]:
    assert point.bytes is not None
    rest = point.bytes - sum(found.values())
    return {**found, REST: rest} if found and rest >= 1 else found


def _lumped(stacks: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """With more parts than colours the smallest become part of the rest."""
    names = sorted({name for stack in stacks for name in stack if name != REST}, key=lambda n: (-_total(stacks, n), n))
    kept = set(names if len(names) <= MOST else names[: MOST - 1])
    found = []
    for stack in stacks:
        own = {name: count for name, count in stack.items() if name in kept}
        rest = sum(count for name, count in stack.items() if name not in kept)
        found.append({**own, REST: rest} if rest else own)
    return found


def _total(stacks: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(stack.get(name, 0.0) for stack in stacks)
