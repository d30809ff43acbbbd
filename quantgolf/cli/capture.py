"""What calibration sees of every parameter, and what becomes of it, as a table."""

from typing import Any

from quantgolf.checkpoint import Checkpoint
from quantgolf.cli import show
from quantgolf.compress.matrices import choose
from quantgolf.types import Calibration

COLUMNS = ("parameter", "shape", "capture", "met in", "what happens", "why")
RARE = 0.01  # of the tokens: an expert met less often is pointed out


def document_of(source: Checkpoint, calibration: Calibration) -> dict[str, Any]:
    """The report as JSON: for each parameter what was seen and what happens to it."""
    matrices, kept = choose(source, calibration)
    parts: dict[str, list[str]] = {}
    for name, block in matrices.blocks.items():
        parts.setdefault(block.parameter, []).append(name)
    parameters = {}
    for report in calibration.parameters:
        inside = parts.get(report.name, [])
        if not inside:
            fate = "kept, in 16 bits where they hold it"
        elif report.name in kept:
            fate = f"{len(inside)} matrices quantized, the rest kept"
        else:
            fate = "quantized" if len(inside) == 1 else f"quantized as {len(inside)} matrices"
        why = report.why or kept.get(report.name, "")
        if inside and report.fewest < RARE * calibration.tokens:
            why = f"{why}; " * bool(why) + f"rarely used: {report.fewest:,} rows of {calibration.tokens:,} tokens"
        parameters[report.name] = {
            "shape": list(report.shape),
            "status": report.status,
            "uses": list(report.uses),
            "fewest_rows": report.fewest,
            "matrices": inside,
            "fate": fate,
            "why": why,
        }
    return {
        "seen_tokens": calibration.tokens,
        "notes": list(source.notes),
        "parameters": parameters,
    }


def print_capture(document: dict[str, Any]) -> None:
    console = show.console(False)
    rows = [
        (name, "×".join(map(str, p["shape"])), p["status"], ", ".join(p["uses"]), p["fate"], p["why"])
        for name, p in document["parameters"].items()
    ]
    console.print(show.table(None, COLUMNS, rows, words=len(COLUMNS)))
    for note in document["notes"]:
        console.print(f"note: {note}")
