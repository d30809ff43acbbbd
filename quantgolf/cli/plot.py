"""`quantgolf plot`: measured points into pictures, or into one page that holds them all."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quantgolf.blob import write_blob
from quantgolf.cli import apart, inputs, show
from quantgolf.errors import QuantGolfError
from quantgolf.report import DARK, LIGHT, TITLES, page, panels_of, picture, read_results
from quantgolf.report.results import Panel
from quantgolf.report.style import Theme, format_of

UNTOLD = "no measured point tells what it shows, expected points with their tensors, as `quantgolf sweep` writes them"
PAGES, REPORT = (".html", ".htm"), "report.html"


class Colours(StrEnum):
    """For what background pictures are made."""

    auto = "auto"
    light = "light"
    dark = "dark"


def plot_verb(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS…", help="JSON lines of sweeps and benchmarks.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="A folder for all pictures and the page; or .html for the page alone, or .png, .svg or .pdf for one "
            "picture: bytes, depth or worth where that is the file's name, else the frontier. Replaces what is there.",
        ),
    ],
    theme: Annotated[
        Colours,
        typer.Option(
            "--theme",
            help="light or dark pictures; auto: an SVG follows its reader's setting, a folder gets each PNG twice. The "
            "page always follows it.",
        ),
    ] = Colours.auto,
    json: inputs.JsonOption = False,
) -> None:
    """Draw what is lost over bytes, where bytes go, bits against depth and loss per byte, from measured points."""
    kind, is_page = format_of(out), out.suffix.lower() in PAGES
    if out.suffix and not (kind or is_page or out.is_dir()):
        raise QuantGolfError(
            f"output {out}: {out.suffix} is no picture and no page, expected .html, .png, .svg, .pdf or a folder; give "
            "another with --out"
        )
    drawn_as = [f"{name}{end}" for name in TITLES for end in (".svg", ".png", "-dark.png")]
    outputs = [out] if kind or is_page else [out / name for name in (*drawn_as, REPORT)]
    apart.refuse_same({"--out": outputs}, {"RESULTS": results})
    found = read_results(results)
    panels = panels_of(found.points)
    files: list[Path] = []
    missing: list[str] = []
    if is_page:
        write_blob(out, page(found, panels, [path.name for path in results]), overwrite=True)
        files.append(out)
    elif kind:
        name = out.stem if out.stem in TITLES else "frontier"
        drawn = picture(name, panels, _theme(theme), kind, adaptive=theme is Colours.auto)
        if drawn is None:
            raise QuantGolfError(f"no picture {name}: {UNTOLD}; draw the frontier")
        write_blob(out, drawn, overwrite=True)
        files.append(out)
    else:
        make_folder(out)
        for name in TITLES:
            pictures = list(all_of(name, panels, theme))
            if not pictures:
                missing.append(name)
            for file, data in pictures:
                write_blob(out / file, data, overwrite=True)
                files.append(out / file)
        write_blob(out / REPORT, page(found, panels, [path.name for path in results]), overwrite=True)
        files.append(out / REPORT)
    document = {
        "files": [str(file) for file in files],
        "points": sum(len(panel.points) for panel in panels),
        "failed": sum(len(panel.failed) for panel in panels),
        "panels": [panel.title for panel in panels],
        "not_drawn": missing,
        "notes": list(found.notes),
    }
    if json:
        show.print_json(document)
        return
    console = show.console(False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for name in missing:
        console.print(f"no picture {name}: {UNTOLD}")
    failed = f", {document['failed']} failed" if document["failed"] else ""
    console.print(f"{document['points']} points{failed}: {', '.join(map(str, files))}", markup=False)


def all_of(name: str, panels: tuple[Panel, ...], theme: Colours) -> Iterator[tuple[str, bytes]]:
    """File names and bytes of one picture in a folder; nothing where no panel has what it shows."""
    svg = picture(name, panels, _theme(theme), "svg", adaptive=theme is Colours.auto)
    if svg is None:
        return
    yield f"{name}.svg", svg
    themes = {"": LIGHT, "-dark": DARK} if theme is Colours.auto else {"": _theme(theme)}
    for suffix, each in themes.items():
        png = picture(name, panels, each, "png")
        assert png is not None
        yield f"{name}{suffix}.png", png


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuantGolfError(
            f"output folder {out}: {error.strerror}, expected one to write to; give another with --out"
        ) from error


def _theme(theme: Colours) -> Theme:
    return DARK if theme is Colours.dark else LIGHT
