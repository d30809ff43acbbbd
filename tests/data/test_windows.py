"""Every token that can be a target is one exactly once, whatever the documents, the length and the stride."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.data import windows
from quantgolf.data.windows import by_length
from quantgolf.errors import QuantGolfError

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@given(lengths, st.integers(1, 40), st.sampled_from(["dense", "isolated"]), st.data())
def test_every_target_once(documents: list[int], length: int, context: str, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    isolated = context == "isolated"
    owner = [index if isolated else 0 for index, tokens in enumerate(documents) for _ in range(tokens)]
    expected = [i for i in range(1, len(owner)) if owner[i] == owner[i - 1]]
    if not expected:
        with pytest.raises(QuantGolfError, match="give more text"):
            windows(documents, length, stride, context)  # type: ignore[arg-type]
        return
    scored = []
    for window in windows(documents, length, stride, context):  # type: ignore[arg-type]
        assert 0 <= window.start < window.stop <= len(owner) - 1
        assert window.stop - window.start <= length
        assert len(set(owner[window.start : window.stop + 1])) == 1
        targets = range(window.start + 1 + window.seen, window.stop + 1)
        if window.start and owner[window.start] == owner[window.start - 1]:
            assert targets[0] - window.start > length - stride
        scored += targets
    assert scored == expected


@given(lengths, st.integers(1, 40), st.integers(1, 40))
def test_grouping_keeps_every_window(documents: list[int], length: int, stride: int) -> None:
    if max(documents) < 2 or stride > length:
        return
    found = windows(documents, length, stride, "isolated")
    groups = by_length(found)
    assert sorted((w for group in groups for w in group), key=lambda w: w.start) == found
    sizes = [{w.stop - w.start for w in group} for group in groups]
    assert all(len(size) == 1 for size in sizes)
    assert [max(size) for size in sizes] == sorted({w.stop - w.start for w in found}, reverse=True)


def test_golden_windows() -> None:
    def spans(*arguments: object) -> list[tuple[int, int, int]]:
        return [(w.start, w.stop, w.seen) for w in windows(*arguments)]  # type: ignore[arg-type]

    assert spans([10], 4) == spans([3, 7], 4) == [(0, 4, 0), (4, 8, 0), (8, 9, 0)]
    assert spans([10], 4, 2) == [(0, 4, 0), (2, 6, 2), (4, 8, 2), (6, 9, 2)]
    assert spans([3, 1, 6], 4, None, "isolated") == [(0, 2, 0), (4, 8, 0), (8, 9, 0)]
    assert spans([3, 1, 6], 4, 2, "isolated") == [(0, 2, 0), (4, 8, 0), (6, 9, 2)]


@pytest.mark.parametrize(
    ("documents", "stride", "context", "message"),
    [
        ([1], None, "dense", "has 1 tokens in 1 documents, expected at least 2 in all"),
        ([], None, "dense", "has 0 tokens"),
        ([1, 1, 1], None, "isolated", "has 3 tokens in 3 documents, expected at least 2 in one of them"),
        ([9], 5, "dense", "stride is 5"),
        ([9], 0, "isolated", "stride is 0"),
        ([9], None, "wide", "context is 'wide', expected 'dense' or 'isolated'"),
    ],
)
def test_bad_windows_are_refused(documents: list[int], stride: int | None, context: str, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        windows(documents, 4, stride, context)  # type: ignore[arg-type]
