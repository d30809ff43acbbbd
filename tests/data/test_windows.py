"""Every token but the first is a target exactly once, whatever the length and the stride."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.data import windows
from quantgolf.errors import QuantGolfError


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_every_target_once(tokens: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    scored = []
    for window in windows(tokens, length, stride):
        assert 0 <= window.start < window.stop <= tokens - 1
        assert window.stop - window.start <= length
        targets = range(window.start + 1 + window.seen, window.stop + 1)
        if window.start:
            assert targets[0] - window.start > length - stride
        scored += targets
    assert scored == list(range(1, tokens))


def test_golden_windows() -> None:
    assert [(w.start, w.stop, w.seen) for w in windows(10, 4)] == [(0, 4, 0), (4, 8, 0), (8, 9, 0)]
    assert [(w.start, w.stop, w.seen) for w in windows(10, 4, 2)] == [(0, 4, 0), (2, 6, 2), (4, 8, 2), (6, 9, 2)]


@pytest.mark.parametrize(
    ("tokens", "stride", "message"), [(1, None, "has 1 tokens"), (9, 5, "stride is 5"), (9, 0, "stride is 0")]
)
def test_bad_windows_are_refused(tokens: int, stride: int | None, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        windows(tokens, 4, stride)
