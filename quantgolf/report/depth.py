"""The picture of which layers get the bits: bits of each matrix against its layer, a line for each role."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from quantgolf.report.labels import beside
from quantgolf.report.spending import bar_name
from quantgolf.report.style import Canvas, Look, short
from quantgolf.sweep.point import FrontierPoint

OUTSIDE = 5  # places left of the layers for roles that are in none; more than that are left out of the picture


def bits_of(point: FrontierPoint) -> dict[str, dict[int | None, float]]:
    """Bits by role and layer; of several matrices of one role in a layer their mean by parameters."""
    sums: dict[str, dict[int | None, tuple[float, int]]] = {}
    for tensor in point.tensors:
        bits, count = sums.setdefault(tensor.role, {}).get(tensor.depth, (0.0, 0))
        sums[tensor.role][tensor.depth] = (bits + tensor.bits * tensor.parameters, count + tensor.parameters)
    return {
        role: {layer: bits / count for layer, (bits, count) in layers.items() if count} for role, layers in sums.items()
    }


def draw_depth(
    drawn: Canvas, axes: Axes, point: FrontierPoint, found: Mapping[str, Look], outside: Sequence[str], named: bool
) -> None:
    """Draws one point.

    Args:
        found: the look of every role.
        outside: roles that are in no layer, in the order of their places left of the first one.
        named: writes the roles' names to the right.
    """
    bits = bits_of(point)
    layers = sorted({layer for by_layer in bits.values() for layer in by_layer if layer is not None})
    unit = max(1.0, len(layers) / 6)  # between the places of roles that are in no layer
    names = []
    for role in sorted(bits):
        look, by_layer = found[role], bits[role]
        inside = sorted((layer, value) for layer, value in by_layer.items() if layer is not None)
        if inside:
            drawn.line(axes, *zip(*inside, strict=True), color=look.colour, linewidth=1.3, alpha=0.9)
            names.append((short(role), inside[-1][1], look.colour))
        places = [(float(layer), value) for layer, value in inside]
        if None in by_layer and role in outside:
            places.append((_place(outside, role, unit), by_layer[None]))
        for x, y in places:
            drawn.line(
                axes, [x], [y], marker=look.marker, color=look.colour, markersize=4.4 if len(layers) <= 16 else 3.2
            )
            target = drawn.line(axes, [x], [y], marker="o", color=look.colour, markersize=11, alpha=0)
            where = "outside of layers" if x < 0 else f"layer {x:g}"
            drawn.tip(target, f"{role}, {where}\n{y:.2f} bits\n{bar_name(point)}")
    ticks = [float(tick) for tick in MaxNLocator(6, integer=True).tick_values(0, max(layers, default=0))]
    ticks = [tick for tick in ticks if 0 <= tick <= max(layers, default=-1)]
    left = [_place(outside, role, unit) for role in outside]
    axes.set_xticks(left + ticks, [short(role)[:10] for role in outside] + [f"{tick:g}" for tick in ticks])
    axes.set_xlim(min([0.0, *left]) - 0.5 * unit, max(layers, default=0) + 0.3 * unit)
    axes.set_xlabel("layer", color=drawn.theme.ink)
    axes.grid(axis="y", color=drawn.theme.faint, linewidth=0.8)
    if named:
        beside(drawn, axes, names, room=0.2)


def _place(outside: Sequence[str], role: str, unit: float) -> float:
    return -unit * (len(outside) - list(outside).index(role))
