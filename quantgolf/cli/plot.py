"""The demo's picture: BPB against bytes."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

COLOURS = {"rtn": "#b3541e", "gptq_lite": "#7a6a00", "gptq": "#1f5fa8", "slope": "#2e7d32"}


def plot_demo(document: dict[str, Any], path: Path) -> None:
    """Draws every method's file, the float model and the limit; writes a PNG."""
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    float_bpb, float_bytes = document["float_bpb"], document["fp16_bytes"]
    axes.axhline(float_bpb, color="0.6", linewidth=1, linestyle=":")
    axes.plot([float_bytes / 1e6], [float_bpb], "o", color="0.25")
    axes.annotate(
        f"float, fp16  {float_bpb:.3f}", (float_bytes / 1e6, float_bpb), (-8, 7), ha="right",
        textcoords="offset points", color="0.25",
    )  # fmt: skip
    axes.axvline(document["max_bytes"] / 1e6, color="0.6", linewidth=1)
    for index, (method, row) in enumerate(document["methods"].items()):
        size, bpb, delta = row["bytes"] / 1e6, row["bpb"], row["delta_bpb"]
        # All files are about as large, so that their bars would hide one another.
        beside = offset_copy(axes.transData, figure, x=7 * (index + 1), units="points")
        if delta["low"] is not None:
            spread = [[max(0, delta["value"] - delta["low"])], [max(0, delta["high"] - delta["value"])]]
            axes.errorbar([size], [bpb], spread, fmt="none", color=COLOURS[method], capsize=3, transform=beside)
        axes.plot([size], [bpb], "o", color=COLOURS[method])
        axes.annotate(f"{method}  {bpb:.3f}", (size, bpb), (36, -3), textcoords="offset points", color=COLOURS[method])
    axes.annotate(
        f"limit {document['max_bytes']:,} bytes", (document["max_bytes"] / 1e6, 1), (-6, -6), rotation=90,
        xycoords=("data", "axes fraction"), textcoords="offset points", ha="right", va="top", color="0.4",
    )  # fmt: skip
    deltas = [row["delta_bpb"] for row in document["methods"].values()]
    highest = max(0.001, *(delta["high"] or delta["value"] for delta in deltas))
    axes.set_ylim(float_bpb - 0.05 * highest, float_bpb + 1.08 * highest)
    axes.set_xscale("log")
    axes.set_xlim(min(document["max_bytes"], float_bytes) / 1.6e6, 1.25 * max(document["max_bytes"], float_bytes) / 1e6)
    ticks = [size for size in (0.5, 1, 2, 3, 5, 10) if axes.get_xlim()[0] < size < axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{size:g} MB" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("file size")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title("One model, one budget, four methods", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
