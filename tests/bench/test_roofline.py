"""Arithmetic of the roofline, and the goals of issue 5 by case."""

from typing import Any

import pytest
import torch

from quantgolf.bench.roofline import Ceilings, goal, measured_ceilings, operations, product_bytes


def test_the_slower_of_bytes_and_operations_decides() -> None:
    ceilings = Ceilings(bandwidth=1e12, rate=1e15)
    assert ceilings.seconds(2e6) == 2e-6
    assert ceilings.seconds(2e6, 1e9) == 2e-6
    assert ceilings.seconds(2e6, 1e10) == 1e-5


def test_a_product_moves_weights_and_activations_once() -> None:
    assert product_bytes(16, 512, 2048, 1000) == 1000 + 2 * 16 * (512 + 2048)
    assert product_bytes(1, 2, 3, 0, item=4) == 20
    assert operations(2, 3, 5) == 60


def test_ceilings_count_what_is_read_and_written(fake: Any) -> None:
    found = measured_ceilings(fake(0.01), torch.device("cpu"), nbytes=1000, square=8)
    # The fake clock says 0.01 or 0.012 s a call.
    assert found.bandwidth == pytest.approx(2 * 1000 / 0.01, rel=0.2)
    assert found.rate == pytest.approx(2 * 8**3 / 0.01, rel=0.2)


@pytest.mark.parametrize("op, kind, bits, m, n, state, wanted", [
    ("product", "steps", 8, 1, 8192, "flushed", 1.8), ("product", "steps", 3, 1, 8192, "flushed", 3.6),
    ("product", "steps", 7, 1, 8192, "flushed", None), ("product", "steps", 4, 1, 8192, "warm", None),
    ("product", "steps", 4, 1, 4096, "flushed", None), ("product", "groups", 4, 1, 8192, "flushed", None),
    ("product", "steps", 4, 16, 8192, "flushed", 2.7), ("product", "steps", 6, 16, 8192, "flushed", None),
    ("product", "steps", 4, 64, 8192, "flushed", None), ("product", "steps", 5, 1024, 512, "warm", 0.75),
    ("product", "steps", 5, 4096, 512, "warm", None), ("product", "steps", 5, 8192, 512, "warm", 0.95),
    ("materialised", "steps", 5, 4, 512, "warm", 0.95), ("unpack", "steps", 4, 0, 8192, "flushed", None),
])  # fmt: skip
def test_goals_are_those_of_the_issue(
    op: str, kind: str, bits: int, m: int, n: int, state: str, wanted: float | None
) -> None:
    found = goal(op, kind, bits, m, n, n, state, lambda: 3.0)
    assert found == (None if wanted is None else pytest.approx(wanted))


def test_sixteen_rows_have_no_goal_before_one_row_was_measured() -> None:
    assert goal("product", "steps", 4, 16, 8192, 8192, "flushed", lambda: None) is None
