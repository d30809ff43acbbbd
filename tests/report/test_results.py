"""What of a results file becomes a panel, and what is said of the rest."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantgolf.errors import QuantGolfError
from quantgolf.report.results import count_of, panels_of, read_results
from quantgolf.sweep.point import FrontierPoint

Make = Callable[..., FrontierPoint]


def test_a_half_written_last_line_is_left_out_with_a_note(sweep: list[FrontierPoint], tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    half = replace(sweep[0], model="模型").line().encode()
    path.write_bytes("".join(point.line() for point in sweep).encode() + half[: half.index("模".encode()) + 1])
    found = read_results([path])
    assert found.points == tuple(sweep)
    assert len(found.notes) == 1 and f"line {len(sweep) + 1} is left out: it is half written" in found.notes[0]


def test_of_one_key_the_measured_point_counts(make: Make, fail: Make, tmp_path: Path) -> None:
    first, second, third = make(kl=0.1), fail("slope", key=make().key), make(kl=0.2)
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text(second.line() + first.line())
    b.write_text(second.line())
    assert read_results([a, b]).points == (first,)
    b.write_text(third.line())
    assert read_results([a, b]).points == (third,)
    b.write_text(replace(third, text={"fingerprint": "another"}).line())
    assert len(read_results([a, b]).points) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (b'{"name": "golf_s", "kl": 0.1}\n', "without `schema`"),
        (b"[1, 2]\n", "without `schema`"),
        (b"\x89PNG\r\n\x1a\n\x00", "not a line of JSON"),
        (b'{"schema": 99}\n', "schema 99"),
        (b"{" * 5000, "not a line of JSON"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_another_file_is_refused_in_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(QuantGolfError) as caught:
        read_results([path])
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(QuantGolfError, match="expected a file that `quantgolf sweep` wrote"):
            read_results([path])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", "<script>"), ("bytes", -1), ("bytes", True), ("bytes", None),
        ("bytes", 10**400), ("worst", 10**400), ("parameters", 0), ("method", 3),
        ("text", {}), ("text", "prose"), ("kinds", {"codes": "x"}), ("kinds", [1]), ("options", [1]),
        ("status", "maybe"), ("kl", {"value": "x"}), ("kl", {"value": 1.0, "low": 0.5}), ("worst", [1]), ("limit", 0),
        ("tensors", [{"name": "a", "role": "b", "depth": 1.5, "parameters": 1, "bits": 1, "bytes": 1}]),
        ("tensors", [{"name": "a", "role": "b", "depth": None, "parameters": "x", "bits": 1, "bytes": 1}]),
        ("seconds", {"solve": "x"}),
        ("tensors", [{"name": 1, "role": "b", "depth": None, "parameters": 1, "bits": 1, "bytes": 1}]),
        ("documents", {"bytes": [1], "tokens": [1], "nats": [1], "kl": []}),
        ("documents", {"bytes": [0], "tokens": [1], "nats": [1], "kl": [1]}),
        ("documents", {"bytes": [1.5], "tokens": [1], "nats": [1], "kl": [1]}),
        ("documents", {"bytes": ["x"], "tokens": [1], "nats": [1], "kl": [1]}),
    ],
)  # fmt: skip
def test_a_line_of_wrong_types_is_left_out_and_others_go_on(make: Make, tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "sweep.jsonl"
    wrong = {**json.loads(make(size=500_000).line()), field: value}
    path.write_text(json.dumps(wrong) + "\n" + make().line())
    found = read_results([path])
    assert found.points == (make(),) and "line 1 is left out" in found.notes[0] and "expected" in found.notes[0]


def test_numbers_that_are_none_are_left_out(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    line = json.loads(make(size=500_000).line())
    for value in (float("nan"), float("inf")):
        path.write_text(json.dumps({**line, "bpb": value}) + "\n" + make().line())
        assert read_results([path]).points == (make(),)


def test_models_and_texts_have_panels_of_their_own(make: Make, fail: Make) -> None:
    other_text = {"fingerprint": "another text", "tokens": 1, "bytes": 2, "documents": 1}
    points = [
        make(), make("gptq"), make(model="golf", fingerprint="g1"), make(model="golf", fingerprint="g2"),
        make(text=other_text), fail("slope", key="x"),
    ]  # fmt: skip
    panels = panels_of(points)
    assert [len(panel.points) for panel in panels] == [2, 1, 1, 1] and len(panels[0].failed) == 1
    assert len({panel.title for panel in panels}) == 4 and len({panel.name for panel in panels}) == 4
    assert "text another" in panels[3].title and "checkpoint g1" in panels[1].title
    assert panels_of([make()])[0].title == "demo, 2M parameters"


def test_names_are_safe_as_files_and_anchors(make: Make) -> None:
    panels = panels_of([make(model='../../etc/<b>"x"'), make(model="模型", fingerprint="y")])
    for panel in panels:
        assert panel.name.replace("-", "").isalnum() and panel.name.isascii()


def test_nothing_measured_is_refused_with_the_reason(fail: Make) -> None:
    with pytest.raises(QuantGolfError, match="no points"):
        panels_of([])
    with pytest.raises(QuantGolfError, match=r"all 2 points failed.*out of memory"):
        panels_of([fail(error="out of memory"), fail("gptq")])


@pytest.mark.parametrize(
    ("number", "said"),
    [(2_623_504, "2.6M"), (134_515_008, "135M"), (36_000_000, "36M"), (1.24e9, "1.2B"), (512, "512")],
)
def test_counts_are_told_in_few_digits(number: float, said: str) -> None:
    assert count_of(number) == said
