"""Tables of `quantgolf bench`: what was measured, with what is asked of it beside."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from quantgolf.bench.bpb import Comparison
from quantgolf.cli import show
from quantgolf.sweep.point import Measured

Row = dict[str, Any]


def kernels_table(rows: Sequence[Row]) -> Table:
    """Times of kernels; a gain has its goal beside it, and the word under where it is not met."""
    columns = (
        "what", "bits", "shape", "m", "caches", "µs", "GB/s", "roofline µs", "of it", "bf16 µs", "gain", "goal",
        "error",
    )  # fmt: skip
    return show.table(
        _conditions(rows), columns,
        [
            (
                f"{row['op']} {row['kind']}", str(row["bits"]), f"{row['n']}×{row['k']}", str(row["m"] or ""),
                row["state"], f"{row['us']:.2f}", f"{row['gbps']:.0f}", f"{row['roofline_us']:.2f}",
                f"{row['of_roofline']:.0%}", _number(row.get("dense_us")), _number(row.get("gain")),
                _goal(row.get("gain"), row.get("goal")), _error(row.get("error")),
            )
            for row in rows
        ],
    )  # fmt: skip


def static_table(rows: Sequence[Row]) -> Table:
    """What was compiled for an H100, and the times that follow from it."""
    columns = (
        "kernel", "bits", "shape", "m", "registers", "shared", "instructions", "in the loop", "a weight", "bytes µs",
        "issue µs", "integer µs", "predicted µs",
    )  # fmt: skip
    return show.table(
        "compiled for sm_90, nothing ran: times are a PREDICTION (the largest of three bounds), not a measurement",
        columns,
        [
            (
                row["kernel"], str(row["bits"]), f"{row['n']}×{row['k']}", str(row["m"]), str(row["registers"]),
                f"{row['shared']:,}", str(row["instructions"]), str(row["loop"]), f"{row['per_weight']:.2f}",
                f"{row['bytes_us']:.2f}", f"{row['issue_us']:.2f}", f"{row['integer_us']:.2f}",
                f"{row['predicted_us']:.2f}, {row['bound']}",
            )
            for row in rows
        ],
    )  # fmt: skip


def model_table(rows: Sequence[Row]) -> Table:
    """Tokens a second of whole models, with bytes of weights."""
    columns = ("what", "file", "tokens/s", "bf16 tokens/s", "gain", "goal", "bytes", "bf16 bytes", "of them", "goal")
    return show.table(
        _conditions(rows), columns,
        [
            (
                row["name"].removeprefix("model "), row["form"], f"{row['tokens_per_second']:,.0f}",
                f"{row['dense_tokens_per_second']:,.0f}", f"{row['gain']:.2f}", _goal(row["gain"], row["goal"]),
                f"{row['bytes']:,}", f"{row['dense_bytes']:,}", f"{row['of_dense_bytes']:.2f}",
                _goal(-row["of_dense_bytes"], -row["bytes_goal"]),
            )
            for row in rows
        ],
        words=2,
    )  # fmt: skip


def bpb_table(comparisons: Sequence[Comparison], text: Mapping[str, Any]) -> Table:
    """Users' methods, each with ours within the bytes of its file, and how much it is above each of them."""
    columns = (
        "method", "file bytes", "bits per weight", "BPB", "ΔBPB, 95% interval", "KL, bits per byte", "top-1",
        "your BPB above it", "your KL above it",
    )  # fmt: skip
    rows = []
    for comparison in comparisons:
        for point in (comparison.theirs, *comparison.ours):
            if point.status == "failed":
                rows.append((f"{point.method}: {point.error}", "failed", *[""] * 7))
                continue
            above = comparison.differences.get(point.method, {}) if point is not comparison.theirs else {}
            rows.append(
                (
                    point.method, f"{point.bytes:,}", f"{point.bpw:.3f}", f"{point.bpb:.5f}",
                    _spread(point.delta_bpb, "+"), _spread(point.kl), f"{point.top1:.4f}",
                    _spread(above.get("bpb"), "+"), _spread(above.get("kl"), "+"),
                )
            )  # fmt: skip
    title = (
        f"{text['tokens']:,} tokens, {text['bytes']:,} bytes ({text['counted']}), {text['documents']:,} documents, "
        f"{text['context']} windows of up to {text['length']:,}"
    )
    return show.table(title, columns, rows)


def unmet(rows: Sequence[Row]) -> int:
    """How many goals were not met."""
    slow = [row for row in rows if row.get("goal") is not None and row["gain"] < row["goal"]]
    large = [row for row in rows if "bytes_goal" in row and row["of_dense_bytes"] > row["bytes_goal"]]
    return len(slow) + len(large)


def _conditions(rows: Sequence[Row]) -> str | None:
    if not rows:
        return None
    first = rows[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items() if number)
    return f"{first['gpu'] or first['machine']}, driver {first['driver'] or 'none'}, {versions}, {first['date']}"


def _spread(value: Measured | None, sign: str = "") -> str:
    return "" if value is None else value.said(sign=sign)


def _goal(value: float | None, goal: float | None) -> str:
    """A negative goal is the most that minus the value may be."""
    if goal is None or value is None:
        return ""
    return f"{abs(goal):.2f}" + ("" if value >= goal else " under" if goal > 0 else " over")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
