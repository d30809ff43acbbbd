"""Ticks are few, lie in their range, and are numbers one says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from quantgolf.report.ticks import bytes_axis, log_ticks, loss_axis, spoken, unit_of


@given(st.floats(1e-9, 1e9), st.floats(1.05, 1e9), st.integers(3, 8))
def test_ticks_lie_within_and_are_few(low: float, times: float, most: int) -> None:
    found = log_ticks(low, low * times, most)
    assert 1 <= len(found) <= most + 1 or times < 1.2
    assert all(low <= tick <= low * times for tick in found) and found == sorted(found)


def test_known_ranges() -> None:
    assert log_ticks(0.002, 0.7, 7) == pytest.approx([0.003, 0.01, 0.03, 0.1, 0.3])
    assert log_ticks(0.7, 1.7, 6) == pytest.approx([0.8, 1.0, 1.2, 1.4, 1.6])
    assert log_ticks(1e-9, 1e9, 7)[0] >= 1e-9


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0001, "0.0001"), (0.00003, "0.00003"), (1.5, "1.5"), (-0.002, "−0.002"), (0, "0"), (2e-8, "2e-08")],
)
def test_numbers_are_spoken_plainly(value: float, said: str) -> None:
    assert spoken(value) == said


@pytest.mark.parametrize(("most", "unit"), [(16e6, "MB"), (721_000, "MB"), (20_000, "kB"), (2e9, "GB"), (300, "bytes")])
def test_units_of_bytes(most: float, unit: str) -> None:
    assert unit_of(most)[0] == unit


def test_a_loss_of_either_sign_has_zero_on_its_axis() -> None:
    axes = Figure().add_subplot()
    low = loss_axis(axes, [-0.0008, 0.005, 0.006, 0.03, 0.2])
    assert axes.get_yscale() == "symlog" and low < -0.001 and 0.0 in axes.get_yticks()
    assert sum(tick < 0 for tick in axes.get_yticks()) == 1, "of a short part, where it begins alone"
    axes = Figure().add_subplot()
    assert loss_axis(axes, [0.01]) > 0 and axes.get_yscale() == "log"
    axes = Figure().add_subplot()
    loss_axis(axes, [0.0, 0.0])
    bytes_axis(axes, [500.0])
    assert axes.get_xlabel() == "complete file, bytes" and axes.get_xlim()[0] < 500 < axes.get_xlim()[1]
