"""Results files line by line: measured points, and why a line is none. What reads them trusts no number in them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantgolf.errors import QuantGolfError
from quantgolf.json_lines import is_json
from quantgolf.sweep.point import FrontierPoint, Measured

MOST = 1e18  # of any number in a point
HALF = "it is half written, as a killed process leaves it"


@dataclass(frozen=True)
class Line:
    """A line of a results file, counted from 1: the point it holds, or why it holds none."""

    number: int
    found: FrontierPoint | str


def read_lines(path: Path) -> list[Line]:
    """The lines of a results file that are not blank; a last one that was cut off in the middle is called `HALF`.

    Raises:
        QuantGolfError: a file that cannot be read.
    """
    try:
        # What a killed process left may end within a letter.
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise QuantGolfError(
            f"results {path}: {error.strerror}, expected a file that `quantgolf sweep` wrote"
        ) from error
    *whole, rest = text.split("\n")
    lines = [Line(number, point_of(line)) for number, line in enumerate(whole, 1) if line.strip()]
    if rest.strip():
        found = point_of(rest)
        lines.append(Line(len(whole) + 1, HALF if lines and not is_json(rest) else found))
    return lines


def point_of(line: str) -> FrontierPoint | str:
    """The point of a line, or why it is none."""
    try:
        point = FrontierPoint.read(line)
        refuse_unsound(point)
    except (QuantGolfError, RecursionError) as error:
        return str(error)
    return point


def refuse_unsound(point: FrontierPoint) -> None:
    """A line's types are only those of JSON: what is drawn and counted with has to be what it says it is.

    Raises:
        QuantGolfError: naming the first value that is not.
    """
    texts = (point.key, point.model, point.fingerprint, point.method, point.error, point.machine, point.date)
    if not all(isinstance(text, str) for text in texts):
        raise QuantGolfError("a point whose names are not all text, expected key, model, method and the like as text")
    for name in ("options", "text", "kinds", "seconds", "versions"):
        if not isinstance(getattr(point, name), Mapping):
            raise QuantGolfError(f"{name} {getattr(point, name)!r:.60}, expected an object")
    if "fingerprint" not in point.text:
        raise QuantGolfError("a text without `fingerprint`, expected one, since points of two texts do not compare")
    if point.status not in ("done", "failed"):
        raise QuantGolfError(f"status {point.status!r:.60}, expected done or failed")
    _refuse_number("parameters", point.parameters, above=0)
    if not isinstance(point.final, bool):
        raise QuantGolfError(f"final {point.final!r:.60}, expected true or false")
    if point.nearest is not None:
        _refuse_number("nearest", point.nearest, above=0)
    if point.status == "failed":
        return
    _refuse_number("bytes", point.bytes, above=0)
    for name in ("limit", "xz_bytes"):
        if getattr(point, name) is not None:
            _refuse_number(name, getattr(point, name), above=0)
    for name in ("float_bpb", "bpb", "top1", "worst"):
        if getattr(point, name) is not None:
            _refuse_number(name, getattr(point, name))
    for name in ("delta_bpb", "kl"):
        measured: Measured | None = getattr(point, name)
        if measured is not None:
            _refuse_number(name, measured.value)
            for end in (measured.low, measured.high):
                if end is not None:
                    _refuse_number(f"{name}'s interval", end)
            if (measured.low is None) != (measured.high is None):
                raise QuantGolfError(f"{name} with half an interval, expected both ends or none")
    for stage, took in point.seconds.items():
        _refuse_number(f"seconds of {stage!r:.40}", took)
    for name, value in point.kinds.items():
        _refuse_number(f"bytes of {name!r:.40}", value, above=-1)
    for tensor in point.tensors:
        if not (isinstance(tensor.name, str) and isinstance(tensor.role, str)):
            raise QuantGolfError("a tensor whose name or role is not text, expected both as text")
        if tensor.depth is not None and (isinstance(tensor.depth, bool) or not isinstance(tensor.depth, int)):
            raise QuantGolfError(f"depth {tensor.depth!r:.40} of {tensor.name:.40}, expected a layer's number or null")
        _refuse_number(f"parameters of {tensor.name:.40}", tensor.parameters, above=-1)
        _refuse_number(f"bits of {tensor.name:.40}", tensor.bits)
        _refuse_number(f"bytes of {tensor.name:.40}", tensor.bytes, above=-1)
        if tensor.loss is not None:
            _refuse_number(f"loss of {tensor.name:.40}", tensor.loss)
    if point.documents is not None:
        columns = (point.documents.bytes, point.documents.tokens, point.documents.nats, point.documents.kl)
        if len({len(column) for column in columns}) != 1:
            raise QuantGolfError("documents with columns of different lengths, expected one entry a document in each")
        for column in columns:
            for entry in column:
                _refuse_number("a document's value", entry)
        if not all(isinstance(size, int) and size >= 0 for size in point.documents.bytes):
            raise QuantGolfError("documents of bytes that are no whole numbers from 0, expected such")
        if sum(point.documents.bytes) <= 0:
            raise QuantGolfError("documents without bytes, expected some text")


def _refuse_number(name: str, value: object, above: float = -math.inf) -> None:
    # Whole numbers of JSON have no end; those above 64 bits are none of bytes or losses.
    sound = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST and value > above
    if not sound:
        least = "" if above == -math.inf else f" above {above:g}"
        raise QuantGolfError(f"{name} {value!r:.60}, expected a finite number{least}")
