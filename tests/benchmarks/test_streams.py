"""Streams of codes: every layout comes back, orders are orders, entropy is entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from recipe import streams
from recipe.streams import (
    Layout,
    choose,
    entropy_bytes,
    fold,
    lay,
    packed_order,
    similar_rows,
    unfold,
    unlay,
    unpacked_order,
)

from quantgolf.errors import FormatError

Codes = NDArray[np.int8]
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
matrices = st.lists(shapes.flatmap(lambda shape: arrays(np.int8, shape)), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(matrices, st.integers(0, 7))
def test_every_layout_comes_back(codes: list[Codes], number: int) -> None:
    layout = Layout.of(number)
    assert layout.number() == number
    found = unlay(lay(codes, layout), [each.shape for each in codes], layout)
    assert all(np.array_equal(a, b) for a, b in zip(found, codes, strict=True))


def test_transposed_streams_run_down_the_columns() -> None:
    codes = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int8)
    assert lay([codes], Layout(transposed=True)) == bytes([1, 4, 2, 5, 3, 6])
    assert lay([-codes], Layout(transposed=False, folded=True)) == bytes([1, 3, 5, 7, 9, 11])


def test_folding_is_one_to_one() -> None:
    every = np.arange(-128, 128).astype(np.int8)
    assert sorted(fold(every)) == list(range(256)) and np.array_equal(unfold(fold(every)), every)


@settings(max_examples=100, deadline=None)
@given(shapes.flatmap(lambda shape: arrays(np.int8, shape)))
def test_rows_are_sorted_greedily(codes: Codes) -> None:
    order, left = [0], list(range(1, len(codes)))
    while left:
        nearest = min(left, key=lambda row: int(np.abs(codes[row].astype(int) - codes[order[-1]].astype(int)).sum()))
        order.append(nearest)
        left.remove(nearest)
    assert similar_rows(codes).tolist() == order


@settings(max_examples=100, deadline=None)
@given(st.permutations(list(range(37))), st.integers(1, 37))
def test_orders_come_back(order: list[int], rows: int) -> None:
    kept = np.array([row for row in order if row < rows])
    assert unpacked_order(packed_order(kept), rows).tolist() == kept.tolist()


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(FormatError, match="names one twice"):
        unpacked_order(packed_order(np.array([0, 1, 1, 3])), 4)


def test_streams_of_another_length_are_refused() -> None:
    with pytest.raises(FormatError, match="has 3 bytes, expected 4"):
        unlay(b"abc", [(2, 2)], Layout())


def test_layouts_are_chosen_by_what_they_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SAMPLE", 1 << 14)
    rng = np.random.default_rng(0)
    down = rng.integers(-30, 30, (1, 64)) + rng.integers(0, 2, (256, 64))  # two values in every column
    down = down.astype(np.int8)
    assert choose([down], ("none", "brotli")).layout.transposed
    assert not choose([down.T.copy()], ("none", "brotli")).layout.transposed
    kinds = rng.integers(-30, 30, (4, 64)).astype(np.int8)
    alike = kinds[rng.integers(0, 4, 256)]
    noisy = alike + rng.integers(0, 2, alike.shape).astype(np.int8)
    assert choose([noisy], ("none", "brotli")).layout.sorted
    noise = rng.integers(-128, 128, (64, 64)).astype(np.int8)
    assert choose([noise], ("none", "brotli")).coder == "none"


def test_entropy() -> None:
    assert entropy_bytes(np.array([4, 4, 0, 8])) == pytest.approx(16 * 1.5 / 8)
    assert entropy_bytes(np.array([5])) == 0 and entropy_bytes(np.zeros(3)) == 0
