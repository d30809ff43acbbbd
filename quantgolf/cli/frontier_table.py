"""What `sweep` prints: a row for each point, and which of them nothing beats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantgolf.cli import show
from quantgolf.sweep.asked import Outcome
from quantgolf.sweep.front import front
from quantgolf.sweep.point import FrontierPoint

LONGEST = 40  # characters of widths by hand


def document(outcome: Outcome, out: Path) -> dict[str, Any]:
    """As JSON: the points as the results file has them, but for tensors and documents, and where they stand."""
    best = fronts(outcome)
    rows = []
    for point in outcome.points:
        row = json.loads(point.line())
        for name in ("tensors", "documents", "schema"):
            row.pop(name, None)
        rows.append({**row, "frontier": point.key in best, "saved_per_byte": saved(point, outcome)})
    return {"out": str(out), "made": outcome.made, "points": rows, "notes": list(outcome.notes)}


def fronts(outcome: Outcome) -> set[str]:
    """Keys of the points that none beats in bytes and KL."""
    return front(outcome.points, lambda point: None if point.kl is None else point.kl.value)


def saved(point: FrontierPoint, outcome: Outcome) -> float | None:
    """Of a point with one matrix raised: KL, bits a byte of text, that it saves for each byte of file more than the
    plan has that it was raised from; None of other points, and of those that are no larger."""
    if "raised" not in point.options:
        return None
    options = {name: value for name, value in point.options.items() if name != "raised"}
    base = next((each for each in outcome.done if each.options == options), None)
    if base is None or point.kl is None or base.kl is None or point.bytes is None or base.bytes is None:
        return None
    more = point.bytes - base.bytes
    return None if more <= 0 else (base.kl.value - point.kl.value) / more


def print_table(outcome: Outcome, out: Path) -> None:
    """For people: the measured points by bytes, those that failed, and notes."""
    console = show.console(False)
    best = fronts(outcome)
    scan = any("raised" in point.options for point in outcome.points)
    rows = []
    for point in sorted(outcome.done, key=lambda p: (p.bytes or 0, p.key)):
        row = [
            point.key[:8],
            said(point),
            "yes" if point.key in best else "",
            f"{point.bytes:,}",
            f"{point.bpb:.4f}",
            "" if point.delta_bpb is None else point.delta_bpb.said(sign="+"),
            "" if point.kl is None else point.kl.said(),
            "" if point.top1 is None else f"{point.top1:.2%}",
        ]
        worth = saved(point, outcome)
        rows.append([*row, *(["" if worth is None else f"{1e6 * worth:+.4f}"] * scan)])
    columns = ["key", "method", "frontier", "bytes", "BPB", "ΔBPB (95%)", "KL (95%), bits a byte", "top-1"]
    console.print(show.table(None, [*columns, *["KL saved per MB"] * scan], rows, words=3))
    if outcome.done:
        console.print(f"float: {outcome.done[0].float_bpb:.4f} BPB on {outcome.done[0].text['tokens']:,} tokens")
    for point in outcome.failed:
        console.print(f"failed: {point.key[:8]} {said(point)}: {point.error}", markup=False)
    for note in outcome.notes:
        console.print(f"note: {note}", markup=False)
    counted = f"{len(outcome.done)} points, {outcome.made} of them made now"
    failed = f"; {len(outcome.failed)} failed, {again(outcome.failed)}" if outcome.failed else ""
    console.print(f"{out}: {counted}{failed}", markup=False)


def again(failed: Sequence[FrontierPoint]) -> str:
    """What has to be typed for another try at points that failed; those that are not final are tried in any case."""
    return ("--retry does" if any(point.final for point in failed) else "the same command does") + " them again"


def said(point: FrontierPoint) -> str:
    """The method, and the widths or what was raised."""
    more = point.options.get("raised") or point.options.get("bits")
    if more is None:
        return point.method
    return f"{point.method}: {more if len(more) <= LONGEST else more[: LONGEST - 1] + '…'}"
