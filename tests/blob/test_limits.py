"""Limits of what a header may say, from both sides: the last number that is taken, and the first that is not."""

import json
from collections.abc import Callable

import pytest

from quantgolf.blob import pack, parse
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.runtime import restore
from quantgolf.types import CodedModel

Container = Callable[..., bytes]
EMPTY = CodedModel((), b"", b"")


def header(dtype: int, storage: bytes) -> bytes:
    """Of one tensor w [2, 6], up to its storage."""
    return bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, dtype]) + storage


def test_the_last_dtype_is_the_last(container: Container) -> None:
    assert parse(container(header(14, bytes([142, 0, 0]))))[1].tensors[0].dtype == "F64"
    for dtype, stored in ((15, 129), (255, 129), (1, 128 + 15)):
        with pytest.raises(FormatError, match=r"names (dtype|storage) (15|255|143)"):
            parse(container(header(dtype, bytes([stored, 0, 0]))))


@pytest.mark.parametrize("text", [b'{"a":NaN}', b'{"a":[-Infinity]}', b'{"a":Infinity}'])
def test_descriptions_hold_no_numbers_that_json_does_not_know(text: bytes, container: Container) -> None:
    with pytest.raises(FormatError, match="is no number JSON knows"):
        parse(container(varint(len(text)) + text + bytes(3)))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1.8e308", "2" + "0" * 308, "-" + "9" * 4000])
def test_descriptions_hold_no_numbers_that_fp64_does_not(number: str, container: Container) -> None:
    text = f'{{"a":[{number}]}}'.encode()
    with pytest.raises(FormatError, match="is beyond what fp64 holds"):
        parse(container(varint(len(text)) + text + bytes(3)))
    if set(number) <= set("-0123456789"):
        with pytest.raises(QuantGolfError, match="cannot be written as JSON"):
            pack(EMPTY, {"a": 10 ** (len(number) - 1) * 2})


def test_the_largest_numbers_are_read_as_they_were() -> None:
    model = {"a": [1.7976931348623157e308, -5e-324, 10**308, -(2**64) - 1]}
    assert parse(pack(EMPTY, model))[0].model == model


@pytest.mark.parametrize("kind", ["list", "dict", "mixed", "wide"])
def test_descriptions_are_so_many_levels_deep_at_most(kind: str, container: Container) -> None:
    for levels in (1, 2, 63, 64, 65, 66, 200):
        model: dict[str, object] = {} if levels == 1 else {"a": 1, "b": nested(kind, levels - 1), "c": 2}
        text = json.dumps(model).encode()
        data = container(varint(len(text)) + text + bytes(3))
        if levels <= 64:
            assert parse(data)[0].model == parse(pack(EMPTY, model))[0].model == model
            continue
        with pytest.raises(FormatError, match="more than 64 levels deep"):
            parse(data)
        with pytest.raises(QuantGolfError, match="more than 64 levels deep"):
            pack(EMPTY, model)


def nested(kind: str, levels: int) -> object:
    found: object = {} if kind == "dict" else []
    for level in range(levels - 1):
        if kind == "wide":
            found = [0, [], "x", found, [1]]
        else:
            found = {"a": found} if kind == "dict" or (kind == "mixed" and level % 2) else [found]
    return found


def test_a_trellis_restarts_after_so_many_rows_at_most(container: Container) -> None:
    for restart in (1, 2**20):
        data = container(header(13, bytes([9, 0, 0])) + varint(8) + varint(restart) + bytes(2))
        assert parse(data)[1].restart == restart


def sections() -> list[tuple[str, bytes, bytes]]:
    """A file with every stream: what a length is of, the header with that length one more or less, the streams."""
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 3, 13, 1]) + bytes([1, 2, 1, 1, 4, 9])
    whole = {"codes": 5, "steps": 4, "small": 3, "exponents": 6, "levels": 7}
    found = []
    for name in whole:
        for more in (-1, 1):
            lengths = whole | {name: whole[name] + more}
            codes, steps, small, exponents, levels = lengths.values()
            found.append((name, header + bytes([codes, steps, small, 1, 1, exponents, levels]), bytes(25)))
    return found


@pytest.mark.parametrize(("name", "header", "streams"), sections())
def test_sections_are_neither_too_long_nor_do_they_leave_anything(
    name: str, header: bytes, streams: bytes, container: Container
) -> None:
    with pytest.raises(FormatError, match=r"asks for|bytes too many"):
        parse(container(header, streams))


def test_the_limit_can_be_raised(container: Container) -> None:
    """A tensor that counts as 256 GiB, and takes none."""
    data = container(bytes([0, 1, 0, 0, 1]) + b"w" + b"\x02" + varint(2**36) + bytes([0, 13, 128 + 13, 0, 0]))
    with pytest.raises(FormatError, match="raise max_decoded_bytes"):
        parse(data)
    assert restore(parse(data, 2**40)[1])["w"].shape == (2**36, 0)
