"""Colours tell methods apart for every eye and on both backgrounds; names are drawable whatever they hold."""

from itertools import combinations

import numpy as np
import pytest

from quantgolf.report.style import DARK, LIGHT, MARKERS, Theme, dark_swaps, looks, plain, short

# Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB.
EYES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "usual": np.eye(3),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    x, y, z = XYZ @ rgb.clip(0, 1) / np.array([0.9505, 1, 1.089])
    f = [np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("eye", EYES)
def test_any_two_colours_are_apart_for_every_eye(theme: Theme, eye: str) -> None:
    seen = [lab(np.array(EYES[eye]) @ linear(colour)) for colour in theme.series]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 10


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_stand_out_from_their_background(theme: Theme) -> None:
    def luminance(colour: str) -> float:
        return float(XYZ[1] @ linear(colour))

    for colour in (*theme.series, theme.ink, theme.muted):
        dark, light = sorted((luminance(colour), luminance(theme.background)))
        assert (light + 0.05) / (dark + 0.05) >= 4.2, colour


def test_every_light_colour_has_one_dark_one() -> None:
    swaps = dark_swaps()
    assert len(swaps) == len(set(swaps.values())) == 12


def test_ours_look_alike_everywhere_and_others_differ() -> None:
    few, many = looks(["slope", "rtn"], LIGHT), looks(["slope", "rtn", *(f"m{i}" for i in range(30))], LIGHT)
    assert few["slope"] == many["slope"] and few["rtn"] == many["rtn"]
    assert len({(look.colour, look.marker) for look in many.values()}) >= 2 + 6 * len(MARKERS) // 2
    assert len({(look.colour, look.marker) for look in looks([f"m{i}" for i in range(16)], LIGHT).values()}) == 16


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb\tc", "a b c"), ("x" * 50, "x" * 29 + "…"), ("$\\frac{1}{2}$", "$\\frac{1}{2}$"), ("模型", "??"),
        ("a\x00b", "a\ufffdb"), ("\ud800", "\ufffd"),
    ],
)  # fmt: skip
def test_names_become_drawable(name: str, shown: str) -> None:
    assert short(name) == shown


def test_plain_text_can_be_written_anywhere() -> None:
    text = plain("".join(map(chr, range(0x300))) + "\ud800\udfff\uffff")
    text.encode()
    assert not set(text) & set(map(chr, [0, 7, 27, 127])) and "\n" in text
