"""What `quantgolf eval` prints for people."""

from typing import Any

from quantgolf.cli import show

LABELS = {"delta_bpb": ("ΔBPB", "+"), "kl_bpb": ("KL, bits per byte", ""), "top1": ("top-1 agreement", "")}
DIFFERENCES = {
    "bpb_difference": "BPB minus that",
    "kl_difference": "KL minus that, bits per byte",
    "top1_difference": "top-1 agreement minus that",
}


def print_summary(file: str, document: dict[str, Any]) -> None:
    """The JSON document of an evaluation as a table."""
    overlap = "" if document["stride"] == document["length"] else f", {document['stride']:,} new ones each"
    rows = [
        (f"bits per byte (bytes counted from {document['bytes_counted_from']})", f"{document['bpb']:.5f}"),
        ("nats per token", f"{document['nats_per_token']:.5f}"),
        ("context", f"{document['context']}, windows of up to {document['length']:,} tokens{overlap}"),
        ("precision", document["precision"]),
        ("documents", f"{document['scored_documents']:,}"),
        ("tokens", f"{document['scored_tokens']:,}"),
        ("bytes", f"{document['scored_bytes']:,}"),
        ("bytes of blank lines, not counted", f"{document['uncounted_bytes']:,}"),
        ("unknown pieces", f"{document['unknown_pieces']:,}"),
    ]
    if "reference_bpb" in document:
        rows.append(("reference, bits per byte", f"{document['reference_bpb']:.5f}"))
        rows += losses(document)
    if "against" in document:
        other = document["against"]
        rows.append((f"{other['file']}: bits per byte", f"{other['bpb']:.5f}"))
        rows += [(f"{other['file']}: {label}", value) for label, value in losses(other)]
        rows += [
            (f"{label}, 95% interval", show.with_interval(other[key], sign="+"))
            for key, label in DIFFERENCES.items()
            if key in other
        ]
    drawn = document.get("bootstrap") or document.get("against", {}).get("bootstrap")
    if drawn:
        rows.append(("intervals, paired over documents", f"{drawn['resamples']:,} resamples, seed {drawn['seed']}"))
    if "memory" in document:
        held = document["memory"]
        rows.append(("packed weights, bytes", f"{held['packed_bytes']:,}"))
        rows.append(("all else in memory, bytes", f"{held['float_bytes']:,}"))
        if held["packed_bpw"] is not None:
            rows.append(("packed bits per weight, and the file's", f"{held['packed_bpw']:.3f}, {held['file_bpw']:.3f}"))
    show.console(False).print(show.table(None, ("", file), rows))


def losses(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of what was lost against a reference."""
    rows = [
        (f"{label}, 95% interval", show.with_interval(document[key], sign=sign))
        for key, (label, sign) in LABELS.items()
        if key in document
    ]
    if "worst_document" in document:
        worst = document["worst_document"]
        where = f"document {worst['index']:,} ({worst['bytes']:,} bytes)"
        rows.append(("worst document", f"{where}: KL {worst['kl_bpb']:.5f}, ΔBPB {worst['delta_bpb']:+.5f}"))
    return rows
