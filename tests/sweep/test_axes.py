"""Axes: what is written into which values, and which products of them make recipes."""

import pytest

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.axes import allocations, axis_of, recipes_of
from quantgolf.sweep.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("max_bytes", "8MB:20MB:4MB", [8_000_000, 12_000_000, 16_000_000, 20_000_000]),
        ("max_bytes", "8MB:11MB:2MB", [8_000_000, 10_000_000]),
        ("max_bytes", "1MB,1.2MB", [1_000_000, 1_200_000]),
        ("max_bytes", "16,000,000", [16_000_000]),
        ("max_bytes", [5000, "1MiB"], [5000, 1 << 20]),
        ("bpw", "2:3:0.25", [2.0, 2.25, 2.5, 2.75, 3.0]),
        ("group_size", "32,64+row,row", ["32", "64+row", "row"]),
        ("act_order", "on,off", [True, False]),
        ("asymmetric", True, [True]),
        ("states", [8, "128"], [8, 128]),
        ("damp", "0.01:0.03:0.01", [0.01, 0.02, 0.03]),
        ("bits", "3:5", ["3", "4", "5"]),
        ("bits", {"mlp": [4, 5], "*": 6}, ["mlp=4,*=6", "mlp=5,*=6"]),
    ],
)
def test_values_of_an_axis(name: str, given: object, expected: list[object]) -> None:
    assert axis_of(name, given) == expected


def test_allocations_multiply_and_one_of_compress_stays_one() -> None:
    assert len(allocations("mlp=4,5,6 attn=5,6,7")) == 9
    assert allocations("mlp=4,5,6 attn=5,6,7") == allocations("mlp=4:6,attn=5:7")
    assert allocations("mlp.*=5,attn.*=6,emb=7") == ["mlp.*=5,attn.*=6,emb=7"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("max_bytes", "20MB:8MB:1MB", "is empty"),
        ("max_bytes", "8MB:20MB", "add the step"),
        ("max_bytes", "1MB,1MB", "1000000 twice"),
        ("max_bytes", "many", "'many' is not understood"),
        ("max_bytes", "1:1000000000:1", "at most 100,000"),
        ("max_bytes", [], "no values"),
        ("states", "eight", "expected 1, 4, 8"),
        ("damp", "nan", "'nan', expected a share"),
        ("damp", "inf", "'inf', expected a share"),
        ("act_order", "maybe", "expected on or off"),
        ("states", True, "True, expected"),
        ("bits", "mlp=4 mlp=5", "pattern twice"),
        ("bits", "mlp=x", "'mlp=x' is no width"),
        ("bits", "=4", "'=4' is no width"),
        ("bits", "9:3", "no values"),
    ],
)
def test_what_is_no_axis_is_refused(name: str, given: object, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        axis_of(name, given)


def test_options_multiply_only_where_they_mean_something() -> None:
    found = recipes_of({"solver": ["slope", "gptq"], "max_bytes": [900, 1000], "states": [8, 128]}, 100)
    assert [(r.solver, r.max_bytes, r.states) for r in found] == [
        ("slope", 900, 8), ("slope", 1000, 8), ("slope", 900, 128), ("slope", 1000, 128),
        ("gptq", 900, 128), ("gptq", 1000, 128),
    ]  # fmt: skip


def test_limits_and_widths_by_hand_are_one_axis() -> None:
    found = recipes_of({"solver": ["slope", "gptq"], "max_bytes": [900], "bits": ["3", "4"]}, 100)
    assert [(r.solver, r.max_bytes, r.bits) for r in found] == [
        ("slope", 900, None), ("gptq", 900, None), ("gptq", None, "3"), ("gptq", None, "4")
    ]  # fmt: skip
    assert recipes_of({"bits": ["3"]}, 100) == [Recipe("gptq", bits="3")]
    assert recipes_of({"bpw": [4.0]}, 100) == [Recipe("slope", max_bytes=50)]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "the grid is empty"),
        ({"solver": ["gptq"]}, "the grid is empty"),
        ({"max_bytes": [9], "group_size": ["32"]}, "--group-size means nothing to --solver slope"),
        ({"max_bytes": [9], "solver": ["gptq"], "states": [8]}, "--states means nothing to --solver gptq"),
        ({"bits": ["4"], "solver": ["slope", "gptq"]}, "give --max-bytes or --bpw too"),
        ({"bits": ["4"], "max_bytes": [9], "solver": ["slope"]}, "--bits means nothing"),
        ({"max_bytes": [9], "solver": ["awq"]}, "'awq', expected rtn"),
        ({"max_bytes": [9], "states": [7]}, "states is 7"),
        ({"max_bytes": [9], "damp": [2.0]}, "damp is 2.0"),
        ({"bits": ["9"]}, "width 9"),
        ({"max_bytes": [9], "solver": ["gptq"], "group_size": ["0"]}, "group-size '0'"),
    ],
)
def test_grids_that_make_no_sense_are_refused(axes: dict[str, list[object]], message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        recipes_of(axes, 100)


def test_each_recipe_is_there_once() -> None:
    assert len(recipes_of({"max_bytes": [9], "bpw": [0.72]}, 100)) == 1
