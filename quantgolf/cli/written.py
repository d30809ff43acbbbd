"""What `compress` prints: of the file it wrote, or of the one a dry run predicts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from quantgolf.cli import show, spent
from quantgolf.compress import Compressed, DryRun, Wish
from quantgolf.compress.readback import ReadBack
from quantgolf.sweep.spending import kinds_of


def summary(result: Compressed, verified: ReadBack, out: Path, wish: Wish, limit: int | None) -> dict[str, Any]:
    """What was written, as the JSON output spells it."""
    judged = result.held_out
    kinds = kinds_of(result.coded, len(result.data), result.code_bytes)
    return {
        "file": str(out),
        "bytes": len(result.data),
        "code_bytes": result.code_bytes,
        "max_bytes": limit,
        "max_kl": wish.max_kl,
        "max_dbpb": wish.max_dbpb,
        "bpw": result.bpw,
        "verified": asdict(verified) | {"line": verified.line()},
        "kinds": kinds,
        "side_share": spent.side_share(kinds),
        "held_out": None if judged is None else asdict(judged),
        "guard": None if result.guard is None or judged is None
        else asdict(result.guard) | {"line": result.guard.line(judged.unit)},
        "tuning": None if result.tuning is None else asdict(result.tuning) | {"line": result.tuning.line()},
        "predicted_loss": result.plan.predicted_loss,
        "kept": result.kept,
        "weights": {
            name: {"bits": report.bits, **grid_of(result, name), "loss": report.loss, "damp": report.damp,
                   "retries": report.retries, "dead_columns": report.dead_columns}
            for name, report in result.reports.items()
        },
    }  # fmt: skip


def grid_of(result: Compressed, name: str) -> dict[str, Any]:
    """Columns of a weight that share a scale, "row" for all of them; nothing with one slope, which has other steps."""
    if name not in result.plan.groups:
        return {}
    return {"group_size": result.plan.groups[name] or "row"}


def print_summary(document: dict[str, Any]) -> None:
    console = show.console(False)
    grouped = any(w.get("group_size", "row") != "row" for w in document["weights"].values())
    rows = [
        (name, f"{w['bits']:.4g}", *([str(w.get("group_size", "row"))] * grouped), f"{w['loss']:.2e}", f"{w['damp']:g}",
         str(w["retries"]), str(w["dead_columns"]))
        for name, w in document["weights"].items()
    ]  # fmt: skip
    groups = ["columns a scale"] * grouped
    columns = ("weight", "bits", *groups, "loss, nats/token", "damp", "retries", "dead columns")
    console.print(show.table(None, columns, rows))
    for name, why in document["kept"].items():
        console.print(f"kept unquantized: {name}, because {why}")
    console.print(spent.table(document["kinds"], document["side_share"]))
    for note in document["notes"]:
        console.print(f"note: {note}")
    total = document["bytes"] + document["code_bytes"]
    limit = f" of {document['max_bytes']:,}" if document["max_bytes"] else ""
    code = f" ({document['code_bytes']:,} of them code)" if document["code_bytes"] else ""
    console.print(f"{document['file']}: {total:,} bytes{limit}{code}, {document['bpw']:.3f} bits per weight")
    console.print(document["verified"]["line"])
    console.print(show.calibrated(document["calibration"], document["unknown_pieces"], document["held_out"]))
    if document["tuning"] is not None:
        console.print(document["tuning"]["line"])
    if document["held_out"] is not None:
        print_held_out(console, document)


def print_held_out(console: Console, document: dict[str, Any]) -> None:
    found = document["held_out"]
    promised = [(name, document[f"max_{name}"]) for name in ("kl", "dbpb") if document[f"max_{name}"] is not None]
    kept = "".join(f"; promised: --max-{name} {most:g}" for name, most in promised)
    console.print(
        f"on {found['tokens']:,} tokens of held-out text: KL {found['kl']:.4g} bits per {found['unit']} to the float "
        f"model, loss {found['dbpb']:+.4g}{kept}"
    )
    if document["guard"] is not None:
        console.print(document["guard"]["line"])


def print_dry_run(predicted: DryRun, limit: int | None, json: bool) -> None:
    if json:
        show.print_json({"max_bytes": limit, **asdict(predicted)})
        return
    rows = [
        ("file, bytes", f"{predicted.file_bytes:,}", "" if limit is None else f"{limit:,} with code"),
        ("bits per weight", f"{predicted.bpw:.3f}", ""),
        ("smallest file there can be, bytes", f"{predicted.smallest_bytes:,}", ""),
        ("memory of the process, bytes", f"{predicted.memory_bytes:,}", f"{predicted.available_bytes:,} there"),
        (f"calibration on {predicted.tokens:,} tokens, passes over them", f"{predicted.passes}", ""),
        ("calibration", show.duration(predicted.calibrate_seconds), ""),
        ("allocating and solving", show.duration(predicted.solve_seconds), ""),
    ]
    console = show.console(False)
    console.print(show.table("dry run: nothing is written", ("", "predicted", "limit"), rows))
    if predicted.memory_bytes > predicted.available_bytes:
        console.print("this does not fit into memory: add --offload, or a smaller --length")
