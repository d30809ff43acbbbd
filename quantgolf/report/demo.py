"""The demo's picture: every method's file, the float model's, and the limit."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from quantgolf.report.style import SMALL, TITLE, Theme, canvas, looks, saved
from quantgolf.report.ticks import log_ticks, spoken, unit_of

APART = 9  # points between the methods' marks: files of one budget are as large, and their bars would hide one another


def demo_picture(document: Mapping[str, Any], theme: Theme, kind: Literal["png", "svg", "pdf"] = "png") -> bytes:
    """BPB over complete file bytes, from the document that `quantgolf demo --json` prints."""
    limit, float_bytes, float_bpb = document["max_bytes"], document["fp16_bytes"], document["float_bpb"]
    methods = document["methods"]
    with canvas(7.2, 4.3, theme) as drawn:
        axes = drawn.axes(0.75, 0.6, 6.2, 3.05)
        drawn.figure.text(
            0.75 / 7.2, 4.08 / 4.3, "One model, one budget, four methods", fontsize=TITLE, weight="bold",
            color=theme.ink, va="center",
        )  # fmt: skip
        drawn.figure.text(
            0.75 / 7.2, 3.88 / 4.3, "every file is within the limit; marks and 95% intervals stand side by side",
            fontsize=SMALL, color=theme.muted, va="center",
        )  # fmt: skip
        axes.set_xscale("log")
        low, high = min(limit, float_bytes) / 1.5, 1.25 * max(limit, float_bytes)
        axes.set_xlim(low, high)
        deltas = [row["delta_bpb"] for row in methods.values()]
        most = max(0.001, *(delta["value"] if delta["high"] is None else delta["high"] for delta in deltas))
        axes.set_ylim(float_bpb - 0.07 * most, float_bpb + 1.1 * most)
        axes.grid(axis="y", color=theme.faint, linewidth=0.8)
        axes.axhline(float_bpb, color=theme.muted, linewidth=0.9, linestyle=":")
        axes.axvline(limit, color=theme.muted, linewidth=0.9)
        axes.plot([float_bytes], [float_bpb], "o", color=theme.ink, markersize=5)
        axes.annotate(
            f"float, fp16  {float_bpb:.3f}", (float_bytes, float_bpb), (0, 8), textcoords="offset points",
            ha="center", color=theme.ink,
        )  # fmt: skip
        axes.annotate(
            f"limit {limit:,} bytes", (limit, 1), (-4, -2), xycoords=("data", "axes fraction"), rotation=90,
            textcoords="offset points", ha="right", va="top", color=theme.muted, fontsize=SMALL,
        )  # fmt: skip
        found = looks(methods, theme)
        pixels = drawn.figure.dpi / 72
        for index, (method, row) in enumerate(methods.items()):
            bpb, delta, look = row["bpb"], row["delta_bpb"], found[method]
            at, _ = axes.transData.transform((row["bytes"], bpb))
            beside = float(axes.transData.inverted().transform((at + APART * (index + 1) * pixels, 0))[0])
            if delta["low"] is not None:
                ends = float_bpb + np.array([delta["low"], delta["high"]])
                axes.plot([beside, beside], ends, color=look.colour, linewidth=1.2)
            axes.plot([beside], [bpb], look.marker, color=look.colour, markersize=5)
            named = APART * (len(methods) + 1) * pixels + at
            x = float(axes.transData.inverted().transform((named, 0))[0])
            axes.annotate(f"{method}  {bpb:.3f}", (x, bpb), va="center", color=look.colour)
        unit, size = unit_of(high)
        axes.xaxis.set_major_locator(FixedLocator([tick * size for tick in log_ticks(low / size, high / size, 6)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value / size)))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(f"complete file, {unit}", color=theme.ink)
        axes.set_ylabel("bits per byte (lower is better)", color=theme.ink)
        return saved(drawn, kind, name="demo")
