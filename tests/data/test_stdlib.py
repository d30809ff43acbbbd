"""The demo's text comes from this Python, by hash, and its parts are disjoint."""

import pytest

from quantgolf.checkpoint import read_demo
from quantgolf.cli import inputs
from quantgolf.cli.inputs import Part, demo_texts
from quantgolf.data import stdlib
from quantgolf.errors import QuantGolfError


def test_texts_are_named_sorted_and_not_blank() -> None:
    texts = stdlib.read_stdlib()
    assert list(texts) == sorted(texts)
    assert "argparse.py" in texts and all(text.strip() for text in texts.values())
    assert not any(part in name.split("/") for name in texts for part in ("test", "tests", "site-packages"))


def test_selection_goes_by_hash() -> None:
    listing = {"a": stdlib.digest("one"), "b": stdlib.digest("two"), "c": stdlib.digest("three")}
    assert stdlib.select(listing, {"a": "one", "b": "changed"}) == (["one"], ["b", "c"])


def test_parts_of_the_card_are_disjoint() -> None:
    parts = read_demo().card["files"]
    assert set(parts) == {"train", "calibration", "validation"}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    assert sum(map(len, parts.values())) == len({sha for part in parts.values() for sha in part.values()})


def test_changed_files_are_counted_and_too_few_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = stdlib.read_stdlib()
    before = demo_texts()
    name = next(name for name in read_demo().card["files"]["validation"] if name in texts)
    monkeypatch.setattr(stdlib, "read_stdlib", lambda: texts | {name: "changed"})
    after = inputs.demo_texts()
    assert after.skipped == before.skipped + 1
    assert len(after.parts[Part.validation]) == len(before.parts[Part.validation]) - 1
    monkeypatch.setattr(stdlib, "read_stdlib", lambda: {name: texts[name]})
    with pytest.raises(QuantGolfError, match=r"expected at least 200,000: run the demo with a CPython"):
        inputs.demo_texts()
