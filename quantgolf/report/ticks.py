"""Axes for bytes and losses: logarithmic, with few ticks that are numbers one says."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

FAR = 2.5  # times above or below all values that an interval may reach and still stretch its axis
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` numbers between two positive ones, as evenly spread on a logarithmic axis as numbers one says are:
    1, 2 and 5, whole decades where those are too many, equal distances where both ends are near each other."""
    if high < 3 * low:
        return [float(tick) for tick in MaxNLocator(most - 1).tick_values(low, high) if low <= tick <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for digits in STEPS:
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > most:
            break
        found = ticks
    if not found:  # more decades than ticks
        every = math.ceil(len(decades) / most)
        found = [10.0**decade for decade in decades if decade % every == 0 and low <= 10.0**decade <= high]
    return found


def bytes_axis(axes: Axes, sizes: Sequence[float], most: int = 6) -> None:
    """Complete file bytes, in MB or kB, logarithmic, with some room around the outermost ones."""
    low, high = min(sizes), max(sizes)
    room = max(1.06, (high / low) ** 0.07)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    unit, size = unit_of(high)
    ticks = [tick * size for tick in log_ticks(low / room / size, high * room / size, most)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value / size)))
    axes.set_xlabel(f"complete file, {unit}")


def loss_axis(axes: Axes, values: Sequence[float], ends: Sequence[float] = ()) -> float:
    """A loss: logarithmic where all values are above zero, otherwise linear near it.

    Args:
        ends: of intervals, which are shown too unless they are far from all values.

    Returns:
        The least value that the axis shows.
    """
    size = np.abs(np.array([value for value in values if value != 0] or [1.0]))
    high = float(max(values))
    if min(values) > 0:
        values = [*values, *(end for end in ends if min(values) / FAR < end < high * FAR)]
        high = max(values)
        room = max(1.25, (high / min(values)) ** 0.08)
        low, high = min(values) / room, high * room
        axes.set_yscale("log")
        ticks = log_ticks(low, high, 7)
    else:
        # Below a twentieth of the typical value noise is of either sign, and a logarithm would say nothing of it.
        linear = 10.0 ** math.floor(math.log10(float(np.median(size)) / 4))
        lowest = min(0.0, *values)
        axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
        low, high = lowest - 0.6 * linear if lowest >= -linear else lowest * 1.4, max(high * 1.4, linear)
        ticks = [*(-tick for tick in _beyond(linear, -low, 3)), 0.0, *(_beyond(linear, high, 4) or [linear])]
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value)))
    return float(low)


def _beyond(linear: float, end: float, most: int) -> list[float]:
    """Ticks of the logarithmic part of an axis up to its end; of a short one, where it begins alone."""
    return log_ticks(linear, end, most) if end >= 3 * linear else [linear] * (end >= linear)


def unit_of(most: float) -> tuple[str, float]:
    """The name and the bytes of the unit in which the largest of some numbers of bytes is told."""
    for unit, size, least in (("GB", 1e9, 1e9), ("MB", 1e6, 1e5), ("kB", 1e3, 1e3)):
        if most >= least:
            return unit, size
    return "bytes", 1.0


def spoken(value: float) -> str:
    """`0.002`, `1.5`, `0.00003`, `2e-07`: four digits, no zeros at the end, a true minus."""
    text = f"{value:.4g}"
    if "e" in text and 1e-6 <= abs(value) < 1:
        text = f"{value:.9f}".rstrip("0")
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text
