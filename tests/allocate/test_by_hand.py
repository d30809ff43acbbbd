import pytest

from quantgolf.allocate import parse_bits, widths_by_hand
from quantgolf.errors import QuantGolfError

NAMES = ["emb.weight", "blocks.0.attn.q.weight", "blocks.0.mlp.up.weight", "blocks.10.mlp.up.weight"]


def test_patterns_match_runs_of_parts_and_the_first_wins() -> None:
    widths = widths_by_hand(parse_bits("blocks.0.mlp=4, mlp.*=5,attn.*=6,emb=7"), NAMES)
    assert list(widths.values()) == [7, 6, 4, 5]
    assert set(widths_by_hand(parse_bits("3"), NAMES).values()) == {3}


@pytest.mark.parametrize("text", ["", "mlp", "mlp=", "=4", "mlp=4.5", "mlp=-4", "mlp=1", "mlp=9", "mlp=4,,emb=5"])
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(QuantGolfError, match="bits: "):
        parse_bits(text)


def test_uncovered_names_and_idle_patterns_are_refused() -> None:
    with pytest.raises(QuantGolfError, match=r"no pattern matches emb\.weight"):
        widths_by_hand(parse_bits("mlp=4,attn=5"), NAMES)
    with pytest.raises(QuantGolfError, match="head decides no weight"):
        widths_by_hand(parse_bits("head=8,*=4"), NAMES)
    with pytest.raises(QuantGolfError, match="emb decides no weight"):
        widths_by_hand(parse_bits("*=4,emb=8"), NAMES)
