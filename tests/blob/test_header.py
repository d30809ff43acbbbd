"""The header, byte for byte: laid out as written, and refused where nothing writes it so."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from quantgolf.blob import parse
from quantgolf.blob.header import write_header
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError
from quantgolf.types import CodedBlock, CodedGroups, CodedModel, CodedTensor

Container = Callable[..., bytes]


def test_declared_sizes_are_checked_before_anything_is_allocated(container: Container) -> None:
    header = varint(0) + varint(1) + varint(0) + varint(0) + varint(1) + b"w" + varint(2) + varint(2**40) * 2
    with pytest.raises(FormatError, match="decoded bytes"):
        parse(container(header + bytes([13, 4]) + varint(0) * 3))
    with pytest.raises(FormatError, match="expected at most 4194304"):
        parse(container(b"", size=2**40))
    with pytest.raises(FormatError, match="the header asks for 1 bytes where 0 are left"):
        parse(container(varint(0) + varint(2**60)))
    with pytest.raises(FormatError, match="the header asks for 1 bytes where 0 are left"):
        parse(container(cut_header((4, 6), 2**60, [], b"")))
    with pytest.raises(FormatError, match="decoded bytes"):
        parse(container(cut_header((2**40, 2**40), 1, [2**40], b"\x44")))


def cut_header(shape: tuple[int, ...], blocks: int, rows: list[int], storage: bytes, lead: int = 1) -> bytes:
    """A header with one tensor w, F32, that is cut; every quantized block has a stream of no bytes."""
    lengths = sum(kind < 128 for kind in storage)
    numbers = (lead, blocks, *rows)
    return (
        bytes([0, 1, 0, 0, 1]) + b"w" + b"".join(map(varint, (len(shape), *shape))) + bytes([13, 1])
        + b"".join(map(varint, numbers)) + storage + bytes(lengths + 2)
    )  # fmt: skip


def test_headers_of_cut_tensors_are_laid_out_as_written(container: Container) -> None:
    blocks = (
        CodedBlock(3, None, 4, b"", transposed=True), CodedBlock(1, "F16", None, b""), CodedBlock(2, None, 5, b""),
    )  # fmt: skip
    coded = CodedModel((CodedTensor("w", (2, 3, 0), "F32", 2, blocks),), b"", b"")
    header = cut_header((2, 3, 0), 3, [3, 1, 2], bytes([68, 139, 5]), lead=2)
    assert write_header(coded, None) == header
    assert parse(container(header))[1] == coded


def test_headers_with_levels_are_laid_out_as_written(container: Container) -> None:
    blocks = (
        CodedBlock(3, None, None, b"", transposed=True, levels=True),
        CodedBlock(1, None, 4, b"abc"),
        CodedBlock(2, None, None, b"", levels=True),
    )
    coded = CodedModel((CodedTensor("w", (6, 2), "F32", 1, blocks),), b"", b"", b"12", b"345", 8, 300)
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 6, 2, 13, 1, 1, 3, 3, 1, 2, 73, 4, 9, 3, 0, 0, 8, 172, 2, 2, 3])
    assert write_header(coded, None) == header
    assert parse(container(header, b"abc12345"))[1] == coded
    whole = CodedModel((CodedTensor("w", (6, 2), "F32", 1, blocks[2:]),), b"", b"", b"", b"", 1, 1)
    whole = replace(whole, tensors=(replace(whole.tensors[0], shape=(2, 6)),))
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, 13, 9, 0, 0, 1, 1, 0, 0])
    assert write_header(whole, None) == header and parse(container(header))[1] == whole


def test_headers_with_diagonals_are_laid_out_as_written(container: Container) -> None:
    upright = CodedBlock(2, None, None, b"", levels=True, diagonal=True)
    blocks = (replace(upright, rows=3, transposed=True), CodedBlock(1, None, None, b"", levels=True), upright)
    coded = CodedModel((CodedTensor("w", (6, 2), "F32", 1, blocks),), b"", b"", b"12", b"345", 8, 300)
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 6, 2, 13, 1, 1, 3, 3, 1, 2, 74, 9, 10, 0, 0, 8, 172, 2, 2, 3])
    assert write_header(coded, None) == header
    assert parse(container(header, b"12345"))[1] == coded
    whole = CodedModel((CodedTensor("w", (2, 6), "F32", 1, (upright,)),), b"", b"", b"", b"", 1, 1)
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, 13, 10, 0, 0, 1, 1, 0, 0])
    assert write_header(whole, None) == header and parse(container(header))[1] == whole
    for dtype in (0, 1, 8):  # BOOL, U8, I64
        with pytest.raises(FormatError, match=r"rows of levels and dtype .*, expected a floating point tensor"):
            parse(container(bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, dtype, 10, 0, 0, 1, 1, 0, 0])))


def test_headers_with_groups_are_laid_out_as_written(container: Container) -> None:
    """Twice the size and whether there are zeros; the base of logarithms -130 as 259; the zeros' bytes at the end."""
    blocks = (
        CodedBlock(3, None, 4, b"ab", transposed=True, groups=CodedGroups(3, True, None)),
        CodedBlock(1, None, 4, b"c"),
        CodedBlock(2, None, 8, b"def", groups=CodedGroups(1, False, -130)),
        CodedBlock(1, None, 2, b"", groups=CodedGroups(2, True, 5)),
    )
    coded = CodedModel((CodedTensor("w", (7, 2), "F32", 1, blocks),), b"12", b"", zeros=b"345")
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes(
        [2, 7, 2, 13, 1, 1, 4, 3, 1, 2, 1, 64 + 16 + 4, 4, 32 + 8, 32 + 2, 7, 2, 131, 2, 5, 10, 2, 1, 3, 0, 2, 0, 3]
    )  # fmt: skip
    assert write_header(coded, None) == header
    assert parse(container(header, b"abcdef12345"))[1] == coded
    levels = CodedBlock(1, None, None, b"", levels=True)
    both = CodedModel((CodedTensor("w", (2, 2), "F32", 1, (levels, blocks[3])),), b"", b"", b"1", b"23", 8, 4, b"45")
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 2, 13, 1, 1, 2, 1, 1, 9, 34, 5, 10, 0, 0, 0, 8, 4, 1, 2, 2])
    assert write_header(both, None) == header
    assert parse(container(header, b"45123"))[1] == both


@pytest.mark.parametrize(
    ("kind", "numbers", "message"),
    [
        (20, [0, 0, 0, 0, 0], r"groups of 0 columns in a matrix \[2, 6\], expected 1 to 6"),
        (20, [14, 0, 0, 0, 0], "groups of 7 columns"),
        (84, [6, 0, 0, 0, 0], r"groups of 3 columns in a matrix \[6, 2\]"),
        (40, [12, 128, 64, 0, 0, 0, 0], None),
        (40, [12, 130, 64, 0, 0, 0, 0], "base of 4097, expected one within ±4096"),
        (40, [12, 129, 64, 0, 0, 0, 0], "base of -4097, expected one within ±4096"),
        (20, [12, 0, 0, 0], "asks for 1 bytes where 0 are left"),
        (4, [0, 0, 0, 0], "1 bytes too many"),
        (52, [0, 0, 0], "names storage"),
        (17, [0, 0, 0], "names storage"),
        (25, [0, 0, 0], "names storage"),
    ],
)
def test_groups_that_nothing_writes_are_refused(
    kind: int, numbers: list[int], message: str | None, container: Container
) -> None:
    data = container(bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, 13, kind, *numbers]))
    if message is None:
        assert parse(data)[1].has_groups
    else:
        with pytest.raises(FormatError, match=message):
            parse(data)


def test_scales_are_counted_before_anything_is_allocated(container: Container) -> None:
    """Groups of one column: 5 bytes of scales and zeros beside the 4 of each weight, which is decoded to fp32."""
    start = bytes([0, 1, 0, 0, 1]) + b"w" + varint(2) + varint(2**20) * 2
    for size, most in ((1, 9 * 2**40), (2**20, 4 * 2**40 + 5 * 2**20)):
        header = start + bytes([11, 20]) + varint(2 * size + 1) + bytes(4)
        parse(container(header), max_decoded_bytes=most)
        with pytest.raises(FormatError, match="decoded bytes"):
            parse(container(header), max_decoded_bytes=most - 1)


@pytest.mark.parametrize("kind", [9, 10, 73, 74])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1), "states 0, expected one of 1, 4, 8, 16, 32, 64, 128, 256"),
        ((2, 1), "states 2, expected"),
        ((48, 1), "states 48, expected"),
        ((8, 0), "restarts after 0 rows"),
        ((8, 2**20 + 1), "restarts after 1048577 rows, expected 1 to 1048576"),
        ((), "asks for"),
    ],
)
def test_trellises_that_nothing_writes_are_refused(
    numbers: tuple[int, ...], message: str, kind: int, container: Container
) -> None:
    numbers = (*numbers, 0, 0) if numbers else ()
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, 13, kind, 0, 0]) + b"".join(map(varint, numbers))
    with pytest.raises(FormatError, match=message):
        parse(container(header))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (cut_header((6, 0), 0, [], b""), "0 blocks"),
        (cut_header((0, 6), 0, [], b""), "0 blocks"),
        (cut_header((6, 0), 2, [2, 3], b"\4\4"), "5 together, expected 1 or more, 6 together"),
        (cut_header((6, 0), 2, [2, 2**62], b"\4\4"), "together, expected 1 or more, 6 together"),
        (cut_header((6, 0), 3, [4, 0, 2], b"\4\x8d\4"), "3 blocks of 0 rows or more"),
        (cut_header((6, 0), 1, [6], b"\4", lead=3), "merges 3 dimensions, expected 0 to 2"),
        (cut_header((6, 0), 2, [2, 4], b"\4\1"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x41"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x0c"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x0b"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x4b"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x2a"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x34"), "names storage"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x8a"), "stored dtype F8_E5M2"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x88"), "stored dtype I64"),
        (cut_header((6, 0), 2, [2, 4], b"\4\xff"), "names storage 255"),
        (cut_header((6, 0), 2, [2, 4], b"\4"), "is damaged|asks for"),
    ],
)
def test_cuts_that_nothing_writes_are_refused(header: bytes, message: str, container: Container) -> None:
    with pytest.raises(FormatError, match=message):
        parse(container(header))


@pytest.mark.parametrize(
    "header",
    [  # in short: no bytes of JSON, 1 tensor, 0 aliases, its name, its shape, dtype, storage, two streams
        varint(2) + b"[]" + varint(0) * 3,
        varint(2) + b"{x" + varint(0) * 3,
        varint(3) + b"NaN" + varint(0) * 3,
        varint(0) + varint(0) * 3 + b"rest",
        varint(0) + varint(1) + varint(0) + varint(3) + varint(0),
        varint(0)
        + varint(1)
        + varint(0)
        + varint(0)
        + varint(1)
        + b"\xff"
        + varint(0)
        + bytes([13, 141])
        + varint(0) * 2,
        varint(0) + varint(1) + varint(0) + varint(0) + varint(1) + b"w" + varint(0) + bytes([99, 141]) + varint(0) * 2,
    ],
)
def test_headers_that_nothing_writes_are_refused(header: bytes, container: Container) -> None:
    with pytest.raises(FormatError):
        parse(container(header))


@pytest.mark.parametrize("kind", [0, 11, 15, 25, 48, 50, 65, 80, 127, 128 + 15, 255])
def test_storages_of_later_versions_are_refused_with_the_remedy(container: Callable[..., bytes], kind: int) -> None:
    """One tensor "w" of [1, 1], F32, with that storage byte."""
    header = varint(0) + varint(1) + varint(0) + varint(0) + varint(1) + b"w" + varint(2) + varint(1) * 2 + b"\x0d"
    with pytest.raises(FormatError, match="upgrade"):
        parse(container(header + bytes([kind]) + varint(0) * 3, b""))
