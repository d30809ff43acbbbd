"""How every picture looks: two themes, colours that tell methods apart for colour-blind eyes too, and saving that gives
the same bytes for the same input."""

import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D

from quantgolf.report.svg import finish

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")
SMALL, TEXT, TITLE = 8.0, 8.5, 10.0  # points
DPI = 200
LONGEST = 30  # characters of a name in a picture; pages and hover texts have all of it

FONT = "DejaVu Sans"  # comes with matplotlib, so that letters are as wide everywhere

RC = {
    "font.family": [FONT],
    "font.size": TEXT,
    "text.parse_math": False,  # names in a results file may hold a dollar sign
    "axes.unicode_minus": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "quantgolf",
    "pdf.fonttype": 42,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Theme:
    """Colours of a picture, as hexadecimal text; `series` tell methods, roles and kinds apart."""

    background: str
    ink: str
    muted: str
    faint: str
    series: tuple[str, ...]


# Any two of one theme's series are at least 10 apart in CIE L*a*b* for protan, deutan and tritan eyes (Machado et al.
# 2009), and have a contrast of 4.2 or more with the background. All colours of a theme differ: `finish` swaps by them.
LIGHT = Theme(
    "#ffffff", "#1b2026", "#5a6370", "#e2e5e9",
    ("#0f4fa8", "#c4540a", "#0a7d57", "#c73e93", "#1b80b8", "#5a4300", "#8a1038", "#4f5864"),
)  # fmt: skip
DARK = Theme(
    "#14181d", "#e8ebef", "#a5aebb", "#333a43",
    ("#5795ff", "#ff8f3d", "#22b58b", "#f29bd6", "#86d5fb", "#f0dc82", "#f2566f", "#98a1b0"),
)  # fmt: skip

# The methods of this package look alike in every picture; others take what is left.
OURS = {"slope": 0, "gptq": 1, "rtn": 2, "gptq_lite": 3}


@dataclass(frozen=True)
class Look:
    """Colour and marker of one method, role or kind."""

    colour: str
    marker: str


@dataclass
class Canvas:
    """A figure, its theme, and what its parts say when they are pointed at."""

    figure: Figure
    theme: Theme
    tips: dict[str, str] = field(default_factory=dict)

    def tip(self, artist: Artist, text: str) -> None:
        """Gives a part of the picture its hover text."""
        name = f"tip-{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = text

    def line(self, axes: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> Line2D:
        """A line or marks in data. Unlike `Axes.plot` it leaves the limits, which every picture sets, and their
        bookkeeping alone: half of the time of a picture of marks."""
        line = Line2D(x, y, **style)
        axes.add_artist(line)
        return line

    def axes(self, left: float, bottom: float, width: float, height: float, title: str = "") -> Axes:
        """Axes at a place in inches, with the grid and the frame all pictures share."""
        across, up = self.figure.get_size_inches()
        axes = self.figure.add_axes((left / across, bottom / up, width / across, height / up))
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(self.theme.muted)
        axes.spines[["left", "bottom"]].set_linewidth(0.8)
        axes.tick_params(which="both", colors=self.theme.muted, labelcolor=self.theme.ink, labelsize=SMALL, width=0.8)
        axes.tick_params(which="minor", length=0)
        axes.set_axisbelow(True)
        if title:
            axes.set_title(short(title, longest=60), loc="left", fontsize=TEXT, color=self.theme.ink, pad=8)
        return axes


@contextmanager
def canvas(width: float, height: float, theme: Theme) -> Iterator[Canvas]:
    """A figure of so many inches, drawn and saved within, whatever the user's own settings are."""
    with matplotlib.style.context(["default", RC]):
        yield Canvas(Figure(figsize=(width, height), dpi=DPI, facecolor=theme.background), theme)


def saved(drawn: Canvas, kind: Literal["png", "svg", "pdf"], *, name: str, adaptive: bool = False) -> bytes:
    """The picture as a file's bytes, the same for the same picture.

    Args:
        name: begins all its ids, so that several SVGs may stand on one page.
        adaptive: an SVG drawn light turns dark with its reader's setting.
    """
    stream = io.BytesIO()
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }[kind]
    drawn.figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata, facecolor=drawn.theme.background)
    if kind != "svg":
        return stream.getvalue()
    tips = {part: plain(text) for part, text in drawn.tips.items()}
    return finish(stream.getvalue().decode(), name, tips, dark_swaps() if adaptive else {}).encode()


def dark_swaps() -> dict[str, str]:
    """Colours of the dark theme by those of the light one."""
    return dict(zip(_colours(LIGHT), _colours(DARK), strict=True))


def looks(names: Iterable[str], theme: Theme) -> dict[str, Look]:
    """A look for each name: ours have their own colours, others those left in order, with another marker each round."""
    ordered = sorted(set(names), key=lambda name: (OURS.get(name, len(OURS)), name))
    taken = {OURS[name] for name in ordered if name in OURS}
    free = [index for index in range(len(theme.series)) if index not in taken]
    places, rest = {}, [name for name in ordered if name not in OURS]
    for index, name in enumerate(rest):
        # A colour comes again only when all are taken, and then with another marker.
        lap, place = divmod(index, len(free))
        places[name] = (free[place], lap * 3 + place + 1)
    return {
        name: Look(theme.series[OURS[name]], "o")
        if name in OURS
        else Look(theme.series[places[name][0]], MARKERS[places[name][1] % len(MARKERS)])
        for name in ordered
    }


def short(name: str, longest: int = LONGEST) -> str:
    """A name as a picture shows it: one line, not too long, of letters that the font has."""
    name = " ".join(plain(name).split())
    known = get_font(findfont(FontProperties(family=[FONT]))).get_charmap()
    name = "".join(c if ord(c) in known else "?" for c in name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def plain(text: str) -> str:
    """Text without what XML and UTF-8 cannot hold: control characters and lone surrogates."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cn") and c not in "\n\t" else c for c in text)


def format_of(path: Path) -> Literal["png", "svg", "pdf"] | None:
    """The kind of picture a file's name asks for."""
    kinds: dict[str, Literal["png", "svg", "pdf"]] = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
    return kinds.get(path.suffix.lower())


def _colours(theme: Theme) -> tuple[str, ...]:
    return (theme.background, theme.ink, theme.muted, theme.faint, *theme.series)
