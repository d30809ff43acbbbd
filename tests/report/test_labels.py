"""Names lie on nothing and on no other name; what spreads them is the least squares solution."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.report.labels import spread
from quantgolf.report.losses import METRICS, draw_loss
from quantgolf.report.results import panels_of
from quantgolf.report.style import LIGHT, canvas, looks
from quantgolf.sweep.point import FrontierPoint


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=9), st.floats(0.01, 0.1))
def test_spreading_is_the_bounded_isotonic_regression(wanted: list[float], size: float) -> None:
    found = spread(wanted, size, 0.0, 1.0)
    # Robertson, Wright and Dykstra 1988: max over starts of min over stops of means; bounds clip it.
    flat = [value - rank * size for rank, value in enumerate(sorted(wanted))]
    n = len(flat)
    slow = [max(min(float(np.mean(flat[a : b + 1])) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]
    slow = [min(max(v, size / 2), 1 - size / 2 - (n - 1) * size) + rank * size for rank, v in enumerate(slow)]
    assert sorted(found) == pytest.approx(slow, abs=1e-9)
    assert all(b - a >= size - 1e-9 for a, b in zip(sorted(found), sorted(found)[1:], strict=False))
    order = sorted(range(n), key=lambda i: (wanted[i], i))
    assert [found[i] for i in order] == sorted(found)


def test_too_many_names_are_spread_over_the_room() -> None:
    found = spread([0.5] * 20, 0.1, 0.0, 1.0)
    assert min(found) == pytest.approx(0.05) and max(found) == pytest.approx(0.95) and len(set(found)) == 20
    assert spread([], 0.1, 0, 1) == []


@pytest.mark.parametrize("metric", METRICS)
def test_sixteen_names_do_not_lie_on_one_another(comparison: list[FrontierPoint], metric: str) -> None:
    panel = panels_of(comparison)[0]
    with canvas(5.2, 5.0, LIGHT) as drawn:
        axes = drawn.axes(0.8, 0.6, 3.3, 4.1)
        draw_loss(drawn, axes, panel, metric, looks(panel.methods, LIGHT), 1.1)
        boxes = {text.get_text(): text.get_window_extent() for text in drawn.figure.texts}
        assert set(boxes) == set(panel.methods) and len(boxes) == 16
        for (a, one), (b, other) in combinations(boxes.items(), 2):
            # The box of letters is lower than the line that is kept free for them.
            assert not (one.padded(-1).overlaps(other.padded(-1))), (a, b)
        across, up = drawn.figure.get_size_inches() * drawn.figure.dpi
        for name, box in boxes.items():
            assert min(box.x0, box.y0) >= 0 and box.x1 <= across and box.y1 <= up, name
