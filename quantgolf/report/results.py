"""Results files into panels: the points of one model on one text, which may share a picture and a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.lines import read_lines
from quantgolf.sweep.point import FrontierPoint


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
        reasons, lines = list[str](), read_lines(path)
        for line in lines:
            if isinstance(line.found, str):
                reasons.append(f"{path} line {line.number} is left out: {line.found}")
                continue
            point = line.found
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
