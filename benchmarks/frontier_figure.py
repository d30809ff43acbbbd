"""The frontier, drawn: KL and ΔBPB of every method over complete file bytes, from committed JSON lines; and a table of
what share of the record recipe's KL each has.

    python benchmarks/frontier_figure.py benchmarks/results/record_recipe.jsonl --out docs/frontier.png

The lines are those of `record_recipe.py`; of several measurements of one method at one limit the last one counts.
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantgolf.cli import show
from quantgolf.errors import QuantGolfError

Row = dict[str, Any]
# Ours are drawn last, over the others.
STYLES = {
    "rtn": ("RTN", "#b3541e", "--"),
    "gptq": ("GPTQ", "#8a6d00", "--"),
    "record": ("record recipe", "#1f5fa8", "-"),
    "slope": ("one slope, untuned", "#7cb07f", ":"),
    "slope, tuned": ("one slope", "#1b6e22", "-"),
}
RECIPES = ("int6/int7", "int5/int6")


def main(
    results: Annotated[list[Path], typer.Argument(help="JSON lines of record_recipe.py.")],
    out: Annotated[Path, typer.Option(help="Picture to write; .png, .svg or .pdf.")] = Path("docs/frontier.png"),
) -> None:
    """Draw two panels for each checkpoint that was measured at more than one limit; the table has the others, too."""
    found = read(results)
    if not found:
        raise QuantGolfError(f"{', '.join(map(str, results))}: no lines, expected those of record_recipe.py --out")
    lines = {name: methods for name, methods in found.items() if any(len(rows) > 1 for rows in methods.values())}
    if not lines:
        raise QuantGolfError("no checkpoint was measured at more than one limit, expected two or more to draw a line")
    figure = Figure(figsize=(4.4 * len(lines), 6.6), dpi=150, layout="constrained")
    panels = figure.subplots(2, len(lines), squeeze=False)
    for column, (name, methods) in enumerate(lines.items()):
        for row, (key, label) in enumerate((("kl", "KL to the float model"), ("delta_bpb", "rise of BPB"))):
            draw(panels[row][column], methods, key)
            if column == 0:
                panels[row][column].set_ylabel(f"{label}, bits per byte")
        parameters = next(iter(methods.values()))[0]["parameters"]
        panels[0][column].set_title(f"{name}, {parameters / 1e6:.1f}M parameters", loc="left", fontsize=10)
        panels[1][column].set_xlabel("complete file, MB")
    figure.savefig(out)
    print_shares(found)


def print_shares(found: dict[str, dict[str, list[Row]]]) -> None:
    """KL of every method at every limit, and its share of the better recipe's. Runs may differ: no interval."""
    lines = []
    for name, methods in found.items():
        recipe = {row["limit"]: row["kl"] for row in methods.get("record", ())}
        for method, rows in methods.items():
            for row in rows:
                share = f"{row['kl'] / recipe[row['limit']]:.3f}" if row["limit"] in recipe else ""
                kl = f"{row['kl']:.5f}"
                lines.append((name, STYLES[method][0], f"{row['limit']:,}", f"{row['bytes']:,}", kl, share))
    columns = ("checkpoint", "method", "limit", "bytes", "KL, bits/byte", "of the recipe's")
    show.console(False).print(show.table(None, columns, lines))


def read(paths: list[Path]) -> dict[str, dict[str, list[Row]]]:
    """By checkpoint and method, the rows in order of bytes; of the two recipes the better one at each limit."""
    last: dict[tuple[str, str, int], Row] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            last[row["name"], row["method"], row["limit"]] = row
    found: dict[str, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for (name, method, limit), row in last.items():
        method = "record" if method in RECIPES else method
        known = found[name][method].get(limit) if method in STYLES else row
        if known is None or row["kl"] < known["kl"]:
            found[name][method][limit] = row
    return {
        name: {m: sorted(methods[m].values(), key=lambda row: row["bytes"]) for m in STYLES if m in methods}
        for name, methods in found.items()
    }


def draw(axes: Axes, methods: dict[str, list[Row]], key: str) -> None:
    """One line a method, named at its left end, with the 95% intervals."""
    for method, rows in methods.items():
        label, colour, style = STYLES[method]
        rows = [row for row in rows if row[key] > 0]
        if not rows:
            continue
        x, y = [row["bytes"] / 1e6 for row in rows], [row[key] for row in rows]
        low = [max(0.0, row[key] - max(row[f"{key}_low"], row[key] / 20)) for row in rows]
        high = [max(0.0, row[f"{key}_high"] - row[key]) for row in rows]
        bars = [[0.0 if math.isnan(v) else v for v in side] for side in (low, high)]
        axes.errorbar(
            x, y, bars, color=colour, linestyle=style, linewidth=1.6, marker="o", markersize=4, capsize=2, label=label
        )
    axes.set_yscale("log")
    axes.set_xscale("log")
    ticks = sorted({row["limit"] / 1e6 for rows in methods.values() for row in rows})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", which="major", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    typer.run(main)
