import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.errors import QuantGolfError
from quantgolf.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16MB", 16_000_000),
        ("16mb", 16_000_000),
        ("16MiB", 16_777_216),
        ("1.7 MB", 1_700_000),
        ("0.1kb", 100),
        ("16_000_000", 16_000_000),
        ("16,000,000", 16_000_000),
        ("1.5KiB", 1536),
        ("7b", 7),
        (" 2GB ", 2 * 10**9),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "16M", "16 apples", "-3", "0", "0MB", "1.5", "1e6", "1..5MB", "nan"])
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(QuantGolfError, match="size "):
        parse_size(text)


@given(st.integers(1, 10**15))
def test_plain_and_grouped_bytes_agree(size: int) -> None:
    assert parse_size(str(size)) == parse_size(f"{size:,}") == parse_size(f"{size:_}") == size
