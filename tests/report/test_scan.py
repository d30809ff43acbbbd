"""A scan is found whatever its options are called, and its savings are differences of KL over differences of bytes."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from quantgolf.report.pictures import picture
from quantgolf.report.results import Panel, panels_of
from quantgolf.report.scan import scan_of, wider
from quantgolf.report.style import LIGHT
from quantgolf.sweep.point import FrontierPoint, Measured

Make = Callable[..., FrontierPoint]


def scanned(make: Make, method: str = "gptq by hand") -> list[FrontierPoint]:
    """A base and a file for each of its tensors, 8 bits wide there, that saves a tenth; the first one saves nothing."""
    base = make(method, 600_000, 0.1, options={"solver": "gptq", "bits": "4"})
    points = [base]
    assert base.documents is not None
    for index, tensor in enumerate(base.tensors):
        share = 1.05 if index == 0 else 0.9 - 0.01 * index
        documents = replace(base.documents, kl=tuple(share * kl for kl in base.documents.kl))
        changed = tuple(replace(t, bits=8.0) if t is tensor else t for t in base.tensors)
        points.append(
            make(
                "gptq raised",
                650_000 + index,
                0.1 * share,
                tensors=changed,
                documents=documents,
                options={"solver": "gptq", "raised": f"{tensor.name}=8", "bits": "4"},
            )
        )
    return points


def panel_of(points: list[FrontierPoint]) -> Panel:
    (panel,) = panels_of(points)
    return panel


def test_the_scan_of_a_method_is_found_among_other_points(make: Make) -> None:
    points = scanned(make)
    scan = scan_of(panel_of([*points, make("slope", 700_000), make("gptq", 900_000)]))
    assert scan is not None and scan.base == points[0]
    assert [saving.tensors[0].name for saving in scan.savings] == [tensor.name for tensor in points[0].tensors]
    for saving, point in zip(scan.savings, points[1:], strict=True):
        assert point.kl is not None and point.bytes is not None and points[0].documents is not None
        old, new = points[0].documents, point.documents
        assert new is not None and saving.point == point
        slow = (sum(old.kl) - sum(new.kl)) / math.log(2) / sum(old.bytes) / (point.bytes - 600_000) * 1e6
        assert saving.kl.value == pytest.approx(slow)
        assert saving.kl.low is not None and saving.kl.high is not None
        assert saving.kl.low <= saving.kl.value <= saving.kl.high


def test_without_documents_the_difference_of_means_is_taken(make: Make) -> None:
    scan = scan_of(panel_of([replace(point, documents=None) for point in scanned(make)]))
    assert scan is not None and scan.savings[1].kl.low is None
    assert scan.savings[1].kl.value == pytest.approx((0.1 - 0.089) / 0.050001, rel=1e-3)


def test_ordinary_sweeps_are_no_scans(make: Make, sweep: list[FrontierPoint]) -> None:
    assert scan_of(panel_of(sweep)) is None
    assert scan_of(panel_of(scanned(make)[:3])) is None  # two tensors are too few
    for change in ({"solver": "rtn"}, {"group_size": 64}):
        points = scanned(make)
        mixed = [points[0], *(replace(p, options={**p.options, **change}) for p in points[1:])]
        assert scan_of(panel_of(mixed)) is None


def test_a_scan_of_roles_is_found_too(make: Make) -> None:
    base, *_ = scanned(make)
    roles = sorted({tensor.role for tensor in base.tensors})
    points = [base]
    for index, role in enumerate(roles):
        raised = tuple(replace(t, bits=8.0) if t.role == role else t for t in base.tensors)
        points.append(replace(base, key=role, bytes=700_000 + index, tensors=raised, kl=Measured(0.05)))
    scan = scan_of(panel_of(points))
    assert scan is not None and scan.by_role and {saving.name(True) for saving in scan.savings} == set(roles)
    svg = picture("worth", [panel_of(points)], LIGHT, "svg")
    assert svg is not None and svg.decode().count(" to 8 bits: ") == 5 and b"attn.q, 3 tensors" in svg


def test_tensors_that_are_wider(make: Make) -> None:
    base, first, second, *_ = scanned(make)
    assert wider(base, first) == base.tensors[:1] and wider(first, base) == () and wider(first, second) == ()
    renamed = tuple(replace(tensor, name=tensor.name + "x") for tensor in first.tensors)
    assert wider(base, replace(first, tensors=renamed)) == () and wider(base, make(tensors=())) == ()


def test_its_picture_shows_what_was_predicted_and_what_was_measured(make: Make) -> None:
    points = scanned(make)
    svg = picture("worth", [panel_of(points)], LIGHT, "svg")
    assert svg is not None
    text = svg.decode()
    assert text.count("nats a token for each MB") == 13 and text.count("from 4 to 8 bits") == 1
    assert text.count(" to 8 bits: ") == 13
