"""Files of measured points of the comparison: written line by line, paired at equal bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from quantgolf.evaluate.interval import per_byte
from quantgolf.sweep.point import Against, FrontierPoint, Measured

SLOPE, TUNED, RECIPE = "slope", "slope, tuned", "record recipe"
LEAST = 0.9  # of a file's bytes has one of ours that it is compared with
OURS = (SLOPE, TUNED, "rtn", "gptq_lite", "gptq", RECIPE)


def read(path: Path) -> list[FrontierPoint]:
    """Points of a file; none where there is no file yet."""
    if not path.exists():
        return []
    return [FrontierPoint.read(line) for line in path.read_text("utf-8").splitlines()]


def append(path: Path, point: FrontierPoint) -> None:
    """One more line."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(point.line())


def friendliest(point: FrontierPoint) -> int:
    """Bytes that a file is compared at: on disk or after xz, whichever is less."""
    assert point.bytes is not None
    return min(point.bytes, point.xz_bytes or point.bytes)


def paired(point: FrontierPoint, points: list[FrontierPoint], seed: int) -> FrontierPoint:
    """A point with its difference to our largest file of one slope that has no more bytes, and not far fewer."""
    if point.status != "done" or point.method == SLOPE or point.documents is None:
        return point
    limit = point.limit or friendliest(point)
    fitting = [
        other for other in points
        if other.method == SLOPE and other.status == "done" and other.model == point.model
        and other.text == point.text and other.bytes is not None and LEAST * limit <= other.bytes <= limit
    ]  # fmt: skip
    if not fitting:
        return point
    other = max(fitting, key=lambda each: (each.bytes or 0, each.key))
    assert other.documents is not None
    size = np.array(point.documents.bytes)
    kl, nats = (
        per_byte(np.array(getattr(point.documents, name)) - np.array(getattr(other.documents, name)), size, seed)
        for name in ("kl", "nats")
    )
    return replace(point, against=Against(other.key, Measured.of(kl), Measured.of(nats)))
