"""What matplotlib's SVG lacks: hover texts, ids of their own, colours that follow the reader's setting, nothing beside
the picture."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
REFERENCE = re.compile(r"url\(#([^)]*)\)")


def finish(svg: str, name: str, tips: Mapping[str, str], swaps: Mapping[str, str]) -> str:
    """A picture's text, ready to be written or to stand on a page.

    Args:
        svg: as matplotlib writes it; trusted, unlike the `tips`.
        name: put before all ids and what refers to them.
        tips: hover text by id; becomes the `title` of that element, which is marked with the class `tip`.
        swaps: colours for a dark screen by the colours of the picture. A rule for each, since a variable in a `style`
            would be lost on readers that are no browsers.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        own = element.get("id", "")
        if own in tips:
            element.set("class", "tip")
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = tips[own]
            element.insert(0, title)
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, REFERENCE.sub(rf"url(#{name}-\1)", value))
    if swaps:
        style = ElementTree.Element(f"{{{SVG}}}style")
        style.text = dark_rules(swaps)
        root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def dark_rules(swaps: Mapping[str, str]) -> str:
    """CSS that turns every fill and stroke of a light colour into its dark one on a dark screen, not on paper."""
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in swaps.items()
        for part in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme:dark){{{rules}}}"


def inline(svg: str, label: str) -> str:
    """The same picture as part of an HTML page: no namespaces, no size of its own, no rules, and a name for those who
    cannot see it."""
    svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height|version)="[^"]*"', "", head)
    return f'{head} role="group" aria-label={quoteattr(label)}>{rest}'
