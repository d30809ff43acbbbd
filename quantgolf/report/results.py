"""Results files into panels: the points of one model on one text, which may share a picture and a table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import FrontierPoint, Measured

MOST = 1e18  # of any number in a point


@dataclass(frozen=True)
class Results:
    """What several files hold: their sound points in order, and a line about every one that was left out."""

    points: tuple[FrontierPoint, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """The points of one model on one text.

    Attributes:
        title: the model and its parameters, and what tells it from other panels of that name.
        name: `title` as part of a file name or an anchor: letters, digits and hyphens.
        points: the measured ones, by bytes.
        failed: the others, in the files' order.
    """

    title: str
    name: str
    points: tuple[FrontierPoint, ...]
    failed: tuple[FrontierPoint, ...]

    @property
    def first(self) -> FrontierPoint:
        """A point that says what is common to all: model, text, parameters."""
        return (self.points or self.failed)[0]

    @property
    def methods(self) -> tuple[str, ...]:
        """Of the measured points, by name."""
        return tuple(sorted({point.method for point in self.points}))


def read_results(paths: Sequence[Path]) -> Results:
    """Reads files of JSON lines, those of several sweeps as well.

    Of one key on one model and text the last measured point counts, or the last failed one where none was measured.
    Lines that are no points, such as a last one that a killed process left half written, are left out with a note.

    Raises:
        QuantGolfError: a file that cannot be read or holds no point at all.
    """
    found: dict[tuple[str, str, str], FrontierPoint] = {}
    notes: list[str] = []
    for path in paths:
        text, reasons = _text(path), list[str]()
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        last = max((number for number, _ in lines), default=0)
        for number, line in lines:
            try:
                point = FrontierPoint.read(line)
                refuse_unsound(point)
            except (QuantGolfError, RecursionError) as error:
                half = number == last and len(reasons) + 1 < len(lines) and not text.endswith("\n")
                why = "it is half written, as a killed process leaves it" if half else str(error)
                reasons.append(f"{path} line {number} is left out: {why}")
                continue
            place = (point.fingerprint, text_of(point), point.key)
            if place not in found or point.status == "done" or found[place].status != "done":
                found[place] = point
        if len(reasons) == len(lines):
            why = "it is empty" if not lines else reasons[0].partition(": ")[2]
            raise QuantGolfError(f"results {path}: no point in it ({why}); give a file that `quantgolf sweep` wrote")
        notes += reasons
    return Results(tuple(found.values()), tuple(notes))


def panels_of(points: Iterable[FrontierPoint]) -> tuple[Panel, ...]:
    """Points by model and text, in the order in which these first appear.

    Raises:
        QuantGolfError: no points, or none that was measured.
    """
    groups: dict[tuple[str, str], list[FrontierPoint]] = {}
    for point in points:
        groups.setdefault((point.fingerprint, text_of(point)), []).append(point)
    if not groups:
        raise QuantGolfError("no points to draw, expected at least one; run `quantgolf sweep` first")
    if all(point.status != "done" for group in groups.values() for point in group):
        count = sum(map(len, groups.values()))
        reason = next(iter(groups.values()))[0].error
        raise QuantGolfError(f"all {count} points failed, expected a measured one; the first says: {reason}")
    titles = [group[0].model for group in groups.values()]
    checkpoints = {(group[0].model, group[0].fingerprint) for group in groups.values()}
    panels = []
    for index, ((fingerprint, text), group) in enumerate(groups.items()):
        first = group[0]
        title = f"{first.model}, {count_of(first.parameters)} parameters"
        if sum(model == first.model for model, _ in checkpoints) > 1:
            title += f", checkpoint {fingerprint[:8]}"
        if titles.count(first.model) > 1:
            title += f", text {text[:8]}"
        done = sorted((p for p in group if p.status == "done"), key=lambda p: (p.bytes or 0, p.method, p.key))
        slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in first.model)[:40].strip("-") or "model"
        name = f"{slug}-{index + 1}" if len(groups) > 1 else slug
        panels.append(Panel(title, name, tuple(done), tuple(p for p in group if p.status != "done")))
    return tuple(panels)


def text_of(point: FrontierPoint) -> str:
    """The fingerprint of what a point was measured on."""
    return str(point.text["fingerprint"])


def count_of(number: float) -> str:
    """`2.6M`: a count for people, in three digits at most."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number >= 100 * size else f"{number / size:.2g}{unit}"
    return f"{number:g}"


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


def _text(path: Path) -> str:
    try:
        # What a killed process left may end within a letter.
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise QuantGolfError(
            f"results {path}: {error.strerror}, expected a file that `quantgolf sweep` wrote"
        ) from error
