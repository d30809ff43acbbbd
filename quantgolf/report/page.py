"""One HTML page of all points: pictures, tables and what they were measured on, in a single file that asks nothing of
any network.

Names in a results file are anybody's: everything goes through the template's escaping but our own style, script and
pictures, and the page forbids itself any other script.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from quantgolf.evaluate.interval import RESAMPLES
from quantgolf.report.frontier import ABOUT_EQUAL, Paired, frontier, paired
from quantgolf.report.losses import note_of
from quantgolf.report.pictures import TITLES, facts, picture
from quantgolf.report.results import Panel, Results
from quantgolf.report.style import LIGHT, dark_swaps, looks, plain
from quantgolf.report.svg import dark_rules, inline
from quantgolf.sweep.point import FrontierPoint, Measured

HERE = Path(__file__).parent / "assets"
SEED = 0

GLOSSARY = (
    ("file bytes", "the complete file as it lies on disk, and the code that counts with it; after xz is the same file "
     "packed by xz -9e"),
    ("bits per parameter", "bits of the complete file for each number of the checkpoint"),
    ("BPB", "loss in bits for each byte of text; ΔBPB is how much that is above the float model's, on the same text"),
    ("KL", "how far the predictions are from the float model's, in bits for each byte of text"),
    ("top-1", "share of tokens whose likeliest prediction is that of the float model"),
    ("worst document", "KL of the document that loses most"),
    ("intervals", f"95%, by a paired bootstrap over documents with {RESAMPLES:,} resamples; with one document there is "
     "none"),
    ("frontier", "no other file for the same limit, or a smaller one, has less KL; such points are marked and in bold"),
    ("above the best", f"KL minus that of the best point whose file is within {ABOUT_EQUAL:.0%} of this one's bytes, "
     f"document by document, with its 95% interval (seed {SEED}); an interval above zero is a difference that another "
     "choice of documents would hardly undo"),
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of the table of points."""

    name: str
    number: bool = True
    hint: str = ""
    sorted: bool = False


@dataclass(frozen=True)
class Cell:
    """What a table shows, what it is sorted by, and what stands small below it."""

    text: str
    value: str
    small: str = ""
    number: bool = True


COLUMNS = (
    Column("method\nand options", number=False),
    Column("frontier", number=False, hint="no other file for the same limit, or a smaller one, has less KL"),
    Column("file\nbytes", sorted=True),
    Column("after\nxz"),
    Column("bits per\nparameter"),
    Column("BPB"),
    Column("ΔBPB"),
    Column("KL, bits\nper byte"),
    Column("KL above\nthe best", hint="of about as many bytes, document by document"),
    Column("top-1"),
    Column("worst\ndocument", hint="KL of the document that loses most, bits per byte"),
)


def page(results: Results, panels: Sequence[Panel], sources: Sequence[str]) -> bytes:
    """The report as a file's bytes, the same for the same results.

    Args:
        sources: names of the results files, as a reader should see them.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (HERE / "page.css").read_text(encoding="utf-8") + dark_rules(dark_swaps())
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    dates = sorted({point.date[:10] for point in results.points if point.date})
    text = environment.get_template("page.html").render(
        title=plain(title_of(panels)),
        sources=[plain(source) for source in sources],
        dates="" if not dates else dates[0] if len(dates) == 1 else f"{plain(dates[0])} to {plain(dates[-1])}",
        notes=[plain(note) for note in results.notes],
        panels=[_panel(panel, panels) for panel in panels],
        glossary=GLOSSARY,
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    return text.encode()


def title_of(panels: Sequence[Panel]) -> str:
    """`24 points of demo`: how much of what."""
    count = sum(len(panel.points) for panel in panels)
    models = list(dict.fromkeys(panel.first.model for panel in panels))
    named = ", ".join(models[:-1]) + " and " + models[-1] if len(models) > 1 else models[0]
    return f"{count} measured {'point' if count == 1 else 'points'} of {named}"


def shared_options(points: Sequence[FrontierPoint]) -> dict[str, Any]:
    """Options that all points have with one value; with a single point none, since nothing was varied."""
    if len(points) < 2:
        return {}
    first = points[0].options
    return {
        name: value
        for name, value in first.items()
        if all(name in point.options and _spelled(point.options[name]) == _spelled(value) for point in points)
    }


def _panel(panel: Panel, panels: Sequence[Panel]) -> dict[str, Any]:
    shared = shared_options((*panel.points, *panel.failed))
    on = {point.key for point in frontier(panel.points)}
    differences = paired(panel, SEED)
    colours = looks({method for each in panels for method in each.methods}, LIGHT)
    rows: list[dict[str, Any]] = [
        {
            "on": point.key in on,
            "colour": colours[point.method].colour,
            "cells": _cells(point, point.key in on, shared, differences.get(point.key)),
        }
        for point in panel.points
    ]
    # Columns that no point fills are left out.
    filled = [index for index in range(len(COLUMNS)) if any(row["cells"][index].text for row in rows)]
    for row in rows:
        row["cells"] = [row["cells"][index] for index in filled]
    pictures = []
    for name, title in TITLES.items():
        svg = picture(name, [panel], LIGHT, "svg", among=panels, words=False) if panel.points else None
        if svg is not None:
            note = f" {note_of([panel])}" if name == "frontier" else ""
            label = plain(f"{title}: {panel.title}")
            pictures.append({"title": f"{title}.{note}", "svg": Markup(inline(svg.decode(), label))})
    return {
        "title": plain(panel.title),
        "name": panel.name,
        "facts": plain(facts(panel))[:1].upper() + plain(facts(panel))[1:],
        "summary": plain(_summary(panel, on)),
        "pictures": pictures,
        "shared": plain(_options(shared)),
        "rows": rows,
        "columns": [COLUMNS[index] for index in filled],
        "failed": [
            {"method": plain(p.method), "options": plain(_options(p.options, shared)), "error": plain(p.error)}
            for p in panel.failed
        ],
        "provenance": [(plain(name), plain(value)) for name, value in _provenance(panel)],
    }


def _cells(point: FrontierPoint, on: bool, shared: Mapping[str, Any], difference: Paired | None) -> list[Cell]:
    assert point.bytes is not None and point.bpw is not None
    options = plain(_options(point.options, (*shared, *_said(point))))
    return [
        Cell(plain(point.method), plain(f"{point.method} {options}"), options, number=False),
        Cell("●" if on else "", "0" if on else "1", number=False),
        Cell(f"{point.bytes:,}", str(point.bytes), "" if point.limit is None else f"of {point.limit:,}"),
        Cell("", "") if point.xz_bytes is None else Cell(f"{point.xz_bytes:,}", str(point.xz_bytes)),
        Cell(f"{point.bpw:.3f}", repr(point.bpw)),
        _number(point.bpb, ".4f"),
        _measured(point.delta_bpb, "+.4f"),
        _measured(point.kl, ".4f"),
        _paired(difference),
        _number(point.top1, ".2%"),
        _number(point.worst, ".4f"),
    ]


def _number(value: float | None, form: str) -> Cell:
    return Cell("", "") if value is None else Cell(format(value, form), repr(value))


def _measured(measured: Measured | None, form: str, small: str = "") -> Cell:
    if measured is None:
        return Cell("", "")
    # Losses of a good file are small: no fewer than two digits of them.
    fine = form.replace("4f", "2e") if 0 < abs(measured.value) < 0.0005 else form
    if measured.low is not None and measured.high is not None:
        small = f"{_signed(measured.low, fine)} to {_signed(measured.high, fine)}{small}"
    return Cell(_signed(measured.value, fine), repr(measured.value), small)


def _signed(value: float, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}", value < 0)


def _paired(difference: Paired | None) -> Cell:
    if difference is None:
        return Cell("", "")
    if difference.kl is None:
        return Cell("best", "0")
    return _measured(difference.kl, "+.4f", f"\nagainst {plain(difference.best.method)}")


def _summary(panel: Panel, on: set[str]) -> str:
    parts = []
    for method in sorted({point.method for point in panel.points if point.key in on}):
        own = [point.key in on for point in panel.points if point.method == method]
        parts.append(f"{method} {sum(own)} of {len(own)}")
    return f"Points on the frontier of KL: {', '.join(parts)}." if parts else ""


def _said(point: FrontierPoint) -> list[str]:
    """Options that the method and the limit say already."""
    said = []
    if point.method.startswith(str(point.options.get("solver", "\n"))):
        said.append("solver")
    if point.limit is not None and point.options.get("max_bytes") == point.limit:
        said.append("max_bytes")
    return said


def _options(options: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    left_out = set(without)
    return ", ".join(f"{name}={_spelled(value)}" for name, value in options.items() if name not in left_out)


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _provenance(panel: Panel) -> list[tuple[str, str]]:
    points = (*panel.points, *panel.failed)
    first = panel.first
    found = [("checkpoint", f"{first.model}, {first.parameters:,} numbers, fingerprint {first.fingerprint}")]
    found.append(("text", ", ".join(f"{name} {_spelled(value)}" for name, value in first.text.items())))
    found.append(("machine", "; ".join(dict.fromkeys(point.machine for point in points if point.machine))))
    versions: dict[str, list[str]] = {}
    for point in points:
        for name, version in point.versions.items():
            versions.setdefault(name, []).append(str(version))
    said = ", ".join(f"{name} {' and '.join(sorted(set(own)))}" for name, own in sorted(versions.items()))
    found.append(("versions", said))
    seconds: dict[str, float] = {}
    for point in points:
        for stage, took in point.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + took
    found.append(("time", ", ".join(f"{stage} {took:,.0f} s" for stage, took in seconds.items())))
    return [(name, value) for name, value in found if value]
