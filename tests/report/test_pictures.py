"""Pictures hold every point, say what they show where pointed at, need nothing from outside, and are the same twice."""

import re
from collections.abc import Callable
from itertools import combinations
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text

from quantgolf.report.demo import demo_picture
from quantgolf.report.pictures import TITLES, facts, picture
from quantgolf.report.results import panels_of
from quantgolf.report.style import DARK, LIGHT, Canvas, Theme
from quantgolf.report.svg import SVG, XLINK
from quantgolf.sweep.point import FrontierPoint, Measured

Make = Callable[..., FrontierPoint]


def drawn(points: list[FrontierPoint], name: str, theme: Theme = LIGHT, adaptive: bool = True) -> str:
    found = picture(name, panels_of(points), theme, "svg", adaptive=adaptive)
    assert found is not None
    return found.decode()


def tips(svg: str) -> list[str]:
    return [title.text or "" for title in ElementTree.fromstring(svg).iter(f"{{{SVG}}}title")]


@pytest.mark.parametrize(("name", "theme"), [*((name, DARK) for name in TITLES), ("frontier", LIGHT)])
def test_all_colours_are_the_theme_s(sweep: list[FrontierPoint], name: str, theme: Theme) -> None:
    svg = drawn(sweep, name, theme, adaptive=False)
    known = {theme.background, theme.ink, theme.muted, theme.faint, *theme.series}
    assert set(re.findall(r"#[0-9a-fA-F]{6}", svg)) <= known
    root = ElementTree.fromstring(svg)
    text = [group for group in root.iter(f"{{{SVG}}}g") if "-text_" in group.get("id", "")]
    assert len(text) > 5
    for group in text:  # matplotlib leaves out the fill of black text, and it could not turn light
        assert any("fill: #" in part.get("style", "") for part in group.iter()), group.get("id")


@pytest.mark.parametrize("name", TITLES)
def test_an_svg_stands_alone(sweep: list[FrontierPoint], name: str) -> None:
    svg = drawn(sweep, name)
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and all(each.startswith(f"demo-{name}-") for each in ids if each)
    links = re.findall(r'(?:href="|url\()#([^")]*)', svg)
    assert links and set(links) <= set(ids)
    assert set(re.findall(r"https?://[^\"' <]*", svg)) <= {SVG, XLINK}
    assert "<script" not in svg and "<image" not in svg and "DOCTYPE" not in svg
    assert "@media screen and (prefers-color-scheme:dark)" in svg
    assert "@media" not in drawn(sweep, name, adaptive=False)


def test_every_measured_point_is_in_the_frontier_s_picture(comparison: list[FrontierPoint]) -> None:
    some = [point for point in comparison if point.model != "golf"]
    said = tips(drawn(some, "frontier"))
    assert len(said) == 2 * len(some)
    for point in some:
        mine = [tip for tip in said if tip.startswith(point.method) and f"{point.bytes:,} bytes" in tip]
        assert len(mine) >= 2 and (point.xz_bytes is None or f"{point.xz_bytes:,} bytes after xz" in mine[0])


def test_bars_add_up_to_the_file(sweep: list[FrontierPoint]) -> None:
    said = [tip.split("\n") for tip in tips(drawn(sweep, "bytes"))]
    for file in {lines[2] for lines in said}:
        counts = [int(lines[1].split(" ")[0].replace(",", "")) for lines in said if lines[2] == file]
        size = next(p.bytes for p in sweep if p.method == "slope" and f"slope, {(p.bytes or 0) / 1e6:.3g} MB" == file)
        # By tensor and by kind of stream, and once more what is neither levels nor codes.
        assert size is not None and sum(counts) == pytest.approx(2 * size + 0.04 * size, rel=1e-4)


def test_depth_and_worth_show_every_tensor(sweep: list[FrontierPoint]) -> None:
    said = tips(drawn(sweep, "depth"))
    assert len(said) == 4 * 13 and "emb, outside of layers\n4.00 bits\nslope, 0.4 MB" in said
    said = tips(drawn(sweep, "worth"))
    assert len(said) == 2 * 13 and any(tip.startswith("blocks.1.attn.q.weight, attn.q") for tip in said)


def test_many_tensors_share_a_row_by_role(make: Make) -> None:
    point = make()
    many = tuple(t for i in range(10) for t in make(kl=0.01 * (i + 1)).tensors)
    assert len(tips(drawn([make(tensors=many)], "worth"))) == 130
    height = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', drawn([make(tensors=many)], "worth"))
    lower = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', drawn([point], "worth"))
    assert height and lower and float(height[1]) < float(lower[1])


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_points_give_the_same_bytes_whatever_the_user_s_settings(make: Make, kind: str) -> None:
    panels = panels_of([make(), make("gptq", kl=0.05)])
    first = picture("frontier", panels, LIGHT, kind)  # type: ignore[arg-type]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None, "text.usetex": False}):
        assert picture("frontier", panels, LIGHT, kind) == first  # type: ignore[arg-type]
    assert first is not None


@pytest.mark.parametrize("name", TITLES)
def test_nothing_lies_on_a_word_or_outside(
    sweep: list[FrontierPoint], comparison: list[FrontierPoint], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Canvas] = []
    monkeypatch.setattr("quantgolf.report.pictures.saved", lambda drawn, *_, **__: kept.append(drawn) or b"")
    for points in (sweep, comparison[:25]):
        picture(name, panels_of(points), LIGHT, "svg")
        figure = kept[-1].figure
        figure.draw_without_rendering()
        room = figure.bbox.padded(1)
        words = [
            (text.get_text(), text.get_window_extent().padded(-1))
            for text in figure.findobj(Text)
            if text.get_text() and text.get_visible() and text.get_window_extent().width > 0
        ]
        words = [(word, box) for word, box in words if room.overlaps(box)]
        for word, box in words:
            assert room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1), word
        for (word, box), (other, another) in combinations(words, 2):
            assert not box.overlaps(another), (word, other)
        for line in figure.findobj(Line2D):
            if line.get_visible() and not line.get_clip_on():
                box = line.get_window_extent()
                assert room.contains(box.x0, box.y0) and room.contains(box.x1, box.y1)


def test_hostile_names_are_text(make: Make) -> None:
    name = '</title><script>alert(1)</script> & "$x^{$" \x00\ud800'
    points = [make(name, options={name: name}, model=name, kinds={name: 5}), make(name, 500_000)]
    for each in TITLES:
        svg = drawn(points, each)
        ElementTree.fromstring(svg)
        assert "<script" not in svg and any("<script>alert(1)</script>" in tip for tip in tips(svg))


def test_odd_points_are_drawn(make: Make, fail: Make) -> None:
    cases = [
        [make()],
        [make(kl=0.0, delta_bpb=Measured(-0.01, -0.02, 0.0))],
        [make(delta_bpb=Measured(0.0)), make("gptq", delta_bpb=Measured(-0.2, -0.3, 0.1))],
        [make(delta_bpb=None), fail()],
        [make(size=1, kl=1e-12), make("x", size=10**12, kl=50.0)],
        [make(limit=900_000), make("gptq", limit=900_000)],
    ]
    for points in cases:
        svg = drawn(points, "frontier")
        assert tips(svg)


def test_what_no_point_tells_has_no_picture(make: Make) -> None:
    panels = panels_of([make(tensors=(), kinds={})])
    assert picture("bytes", panels, LIGHT, "svg") is None
    assert picture("depth", panels, LIGHT, "svg") is None
    assert picture("worth", panels, LIGHT, "svg") is None
    assert facts(panels[0]) == (
        "measured on 3,200 tokens, 8,000 bytes, 8 documents of text; float model 1.2000 bits per byte"
    )


def test_the_demo_s_picture() -> None:
    row = {"bytes": 1_048_000, "bpb": 1.25, "delta_bpb": {"value": 0.06, "low": 0.05, "high": 0.09}}
    one = {**row, "delta_bpb": {"value": 0.06, "low": None, "high": None}}
    document = {"max_bytes": 1_049_401, "fp16_bytes": 5_247_008, "float_bpb": 1.1875}
    for methods in ({"slope": row, "gptq": row}, {"slope": one}):
        data = demo_picture({**document, "methods": methods}, LIGHT)
        assert data.startswith(b"\x89PNG") and data == demo_picture({**document, "methods": methods}, LIGHT)
