"""The reliability page is its results', and its results have no failure."""

from pathlib import Path

import pytest
from reliability_page import PROMISES, page
from reliability_rows import Row, read

from quantgolf.errors import QuantGolfError

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_one_of_the_committed_results() -> None:
    rows = read()
    assert (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == page(rows)
    assert {row["promise"] for row in rows} == set(PROMISES)
    assert all(row["failures"] == 0 < row["tried"] for row in rows)


def test_the_last_line_of_a_case_counts_and_other_promises_are_refused(tmp_path: Path) -> None:
    for failures in (3, 1):
        Row("Numbers", "a | b", "python x.py", 10, 5, failures, 1.0, {"worst": 1e-9}).append(tmp_path / "r")
    (found,) = read(tmp_path / "r")
    assert found["failures"] == 1
    assert "| a / b | 10 | 5 | 1 | 1 | worst 1e-09 |" in page([found])
    with pytest.raises(QuantGolfError, match="no row"):
        (tmp_path / "r").write_text("{}\n")
        read(tmp_path / "r")
    with pytest.raises(QuantGolfError, match="Numbers lie"):
        page([found | {"promise": "Numbers lie"}])
