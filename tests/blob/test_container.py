"""The file as bytes: it returns, it stays the same for ever, and no change to it goes unnoticed."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.blob import MAGIC, pack, parse
from quantgolf.blob.container import check_envelope
from quantgolf.blob.header import WORDS, write_header
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model, zstd
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedBlock, CodedModel, CodedTensor, Exponents

GOLDEN = Path(__file__).parent / "golden_v0.qg"
GOLDEN_LEVELS = GOLDEN.with_stem("golden_levels_v0")
DESCRIPTION = {"family": "golf", "config": {"dim": 8}}


@cache
def small_model() -> CodedModel:
    """Weights that are one matrix, a bank with a slice that stays, transposed ones, a convolution and small tensors."""
    codes = (torch.arange(6 * 16) * 7 % 15 - 7).to(torch.int8).reshape(6, 16)
    rows = torch.linspace(0.01, 0.02, 16).half()

    def quantized(bits: int, name: str, lead: int, start: int, stop: int, transposed: bool = False) -> Quantized:
        return Quantized(
            Block(name, lead, start, stop, transposed), rows[: 16 if transposed else 6], bits,
            encode_codes(codes.T if transposed else codes),
        )  # fmt: skip

    bank = [quantized(4 + at, "bank", 2, 6 * at, 6 * at + 6, transposed=at == 3) for at in (0, 1, 3)]
    return encode_model(
        [
            Entry("blocks.0.up.weight", torch.zeros(6, 16), (quantized(4, "blocks.0.up.weight", 1, 0, 6),)),
            Entry("blocks.0.scale", torch.linspace(0.5, 1.5, 16)),
            Entry("emb.weight", torch.zeros(6, 16).half(), (quantized(5, "emb.weight", 1, 0, 6),), ("head.weight",)),
            Entry("steps", torch.tensor([3, 4])),
            Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, tuple(bank)),
            Entry("c_attn.weight", torch.zeros(6, 16), (quantized(4, "c_attn.weight", 1, 0, 6, transposed=True),)),
            Entry("conv.weight", torch.zeros(6, 4, 2, 2).bfloat16(), (quantized(6, "conv.weight", 1, 0, 6),)),
        ]
    )


@cache
def leveled_model() -> CodedModel:
    """Levels beside codes: a whole matrix, a transposed one, a bank with a slice of codes and one that stays."""
    trellis = Trellis(8, 4)

    def leveled(name: str, lead: int, start: int, stop: int, n: int, k: int, transposed: bool = False) -> Leveled:
        targets = (torch.arange(n * k).reshape(n, k) * 37 % 101 - 50).double().numpy() / 8
        targets[-1, -1] = 400.0
        levels = np.stack([trellis.quantize(targets[:, j]) for j in range(k)], axis=1)
        row, column = torch.arange(n).short() * 3 % 7 - 30, torch.arange(k).short() * 5 % 9 + 2
        return Leveled(
            Block(name, lead, start, stop, transposed), Exponents(row, column, -21), torch.from_numpy(levels)
        )

    codes = encode_codes((torch.arange(96) % 15 - 7).to(torch.int8).reshape(6, 16))
    bank = (
        leveled("bank", 2, 0, 6, 6, 16),
        Quantized(Block("bank", 2, 6, 12), torch.linspace(0.01, 0.02, 6).half(), 4, codes),
        leveled("bank", 2, 18, 24, 16, 6, transposed=True),
    )
    entries = [
        Entry("emb.weight", torch.zeros(20, 8).half(), (leveled("emb.weight", 1, 0, 20, 20, 8),), ("head.weight",)),
        Entry("gain", torch.linspace(0.5, 1.5, 16)),
        Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, bank),
        Entry("c_fc.weight", torch.zeros(5, 9), (leveled("c_fc.weight", 1, 0, 5, 9, 5, transposed=True),)),
    ]
    return encode_model(entries, trellis)


def with_checksum(content: bytes) -> bytes:
    return content + blake2b(content, digest_size=8).digest()


def container(header: bytes, streams: bytes = b"", size: int | None = None) -> bytes:
    """A file whose envelope and checksum are right, whatever the header says."""
    packed = zstd.compress(header, WORDS)
    body = varint(len(header) if size is None else size) + varint(len(packed)) + packed + streams
    return with_checksum(MAGIC + b"\0" + varint(len(body) + 8) + body)


@pytest.mark.parametrize("make", [small_model, leveled_model])
def test_files_return(make: Callable[[], CodedModel]) -> None:
    coded = make()
    for model in (DESCRIPTION, None):
        data = pack(coded, model)
        header, back = parse(data)
        assert back == coded and header.model == model and header.version == 0
        assert pack(back, header.model) == data


@pytest.mark.parametrize(("golden", "make"), [(GOLDEN, small_model), (GOLDEN_LEVELS, leveled_model)])
def test_golden_file_reads_for_ever(golden: Path, make: Callable[[], CodedModel]) -> None:
    """The bytes of this file have to parse to the same tensors, and to be written again."""
    data = golden.read_bytes()
    header, coded = parse(data)
    assert header.model == DESCRIPTION
    assert coded == make()
    assert pack(make(), DESCRIPTION) == data
    expected = json.loads(golden.with_suffix(".json").read_text())
    assert {name: tensor.double().flatten().tolist() for name, tensor in restore(coded).items()} == expected


@pytest.mark.parametrize("make", [small_model, leveled_model])
def test_every_changed_byte_is_noticed(make: Callable[[], CodedModel]) -> None:
    data = pack(make(), DESCRIPTION)
    for position in range(len(data)):
        for value in {0, 255, data[position] ^ 1, data[position] ^ 128, (data[position] + 1) % 256} - {data[position]}:
            with pytest.raises(FormatError):
                parse(data[:position] + bytes([value]) + data[position + 1 :])


def test_every_cut_and_every_surplus_is_noticed() -> None:
    data = pack(small_model(), None)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            parse(data[:length])
    with pytest.raises(FormatError, match="damaged"):
        parse(data + b"\0")


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_hostile_headers_with_a_good_checksum_end_in_an_error_or_a_model(header: bytes) -> None:
    with suppress(FormatError):
        parse(container(header))


@given(st.data(), st.sampled_from([small_model, leveled_model]))
@settings(deadline=None, max_examples=400)
def test_changed_headers_with_a_good_checksum_end_in_an_error_or_a_model(
    data: st.DataObject, make: Callable[[], CodedModel]
) -> None:
    """Headers that are nearly right get further than noise: one to three bytes of the unpacked header change."""
    coded = make()
    header = bytearray(write_header(coded, DESCRIPTION))
    for position in data.draw(st.lists(st.integers(0, len(header) - 1), min_size=1, max_size=3)):
        header[position] = data.draw(st.integers(0, 255))
    with suppress(FormatError):
        _, changed = parse(container(bytes(header), coded.streams()), max_decoded_bytes=10**6)
        restored = restore(changed)
        assert {t.name: t.shape for t in changed.tensors} == {t.name: restored[t.name].shape for t in changed.tensors}
        assert parse(pack(changed, None))[1] == changed


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from([small_model, leveled_model]))
@settings(deadline=None, max_examples=400)
def test_changed_bytes_with_a_mended_checksum_end_in_an_error_or_a_model(
    position: int, value: int, make: Callable[[], CodedModel]
) -> None:
    """A forger can mend the checksum; nothing but FormatError may come of it."""
    content = bytearray(pack(make(), DESCRIPTION)[:-8])
    content[position % len(content)] = value
    try:
        _, coded = parse(with_checksum(bytes(content)))
        restore(coded)
    except FormatError:
        pass


def test_declared_sizes_are_checked_before_anything_is_allocated() -> None:
    header = varint(0) + varint(1) + varint(0) + varint(0) + varint(1) + b"w" + varint(2) + varint(2**40) * 2
    with pytest.raises(FormatError, match="decoded bytes"):
        parse(container(header + bytes([13, 4]) + varint(0) * 3))
    with pytest.raises(FormatError, match="expected at most 4194304"):
        parse(container(b"", size=2**40))
    with pytest.raises(FormatError, match=r"declares \d+ tensors"):
        parse(container(varint(0) + varint(2**60)))
    with pytest.raises(FormatError, match=r"declares \d+ blocks"):
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


def test_headers_of_cut_tensors_are_laid_out_as_written() -> None:
    blocks = (
        CodedBlock(3, None, 4, b"", transposed=True), CodedBlock(1, "F16", None, b""), CodedBlock(2, None, 5, b""),
    )  # fmt: skip
    coded = CodedModel((CodedTensor("w", (2, 3, 0), "F32", 2, blocks),), b"", b"")
    header = cut_header((2, 3, 0), 3, [3, 1, 2], bytes([68, 139, 5]), lead=2)
    assert write_header(coded, None) == header
    assert parse(container(header))[1] == coded


def test_headers_with_levels_are_laid_out_as_written() -> None:
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


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1), "states 0, expected one of 1, 4, 8, 16, 32"),
        ((2, 1), "states 2, expected"),
        ((64, 1), "states 64, expected"),
        ((8, 0), "restarts after 0 rows"),
        ((8, 2**20 + 1), "restarts after 1048577 rows, expected 1 to 1048576"),
        ((), "asks for"),
    ],
)
def test_trellises_that_nothing_writes_are_refused(numbers: tuple[int, ...], message: str) -> None:
    numbers = (*numbers, 0, 0) if numbers else ()
    header = bytes([0, 1, 0, 0, 1]) + b"w" + bytes([2, 2, 6, 13, 9, 0, 0]) + b"".join(map(varint, numbers))
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
        (cut_header((6, 0), 2, [2, 4], b"\4\1"), "bits 1, expected"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x41"), "bits 1, expected"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x24"), "bits 36, expected"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x0a"), "bits 10, expected"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x4a"), "bits 10, expected"),
        (cut_header((6, 0), 2, [2, 4], b"\4\x88"), "stored dtype I64"),
        (cut_header((6, 0), 2, [2, 4], b"\4\xff"), "names dtype 127"),
        (cut_header((6, 0), 2, [2, 4], b"\4"), "is damaged|asks for"),
    ],
)
def test_cuts_that_nothing_writes_are_refused(header: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(container(header))


def test_limits_can_be_lowered() -> None:
    data = pack(small_model(), None)
    parse(data, max_decoded_bytes=3200)
    with pytest.raises(FormatError, match="raise max_decoded_bytes"):
        parse(data, max_decoded_bytes=2000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a quantgolf file"),
        (b"PK\x03\x04 zip", "starts with b'PK"),
        (MAGIC + b"\x01" + bytes(20), "version 1 is newer"),
        (MAGIC + b"\0" + varint(500) + bytes(20), "truncated: declares 500 more bytes, has 20"),
        (MAGIC + b"\0" + varint(5) + bytes(5), "damaged"),
    ],
)
def test_foreign_and_cut_files_say_what_they_are(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(data)
    with pytest.raises(FormatError, match=message):
        check_envelope(data[:16], len(data))


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
def test_headers_that_nothing_writes_are_refused(header: bytes) -> None:
    with pytest.raises(FormatError):
        parse(container(header))


def test_streams_have_to_be_there() -> None:
    header = varint(0) + varint(0) + varint(4) + varint(0)
    assert parse(container(header, b"abcd"))[1].steps == b"abcd"
    with pytest.raises(FormatError):
        parse(container(header, b"abc"))
    with pytest.raises(FormatError, match="too many"):
        parse(container(header, b"abcde"))


@pytest.mark.parametrize("model", [{"a": float("nan")}, {"a": {1, 2}}, {"a": Path("x")}])
def test_descriptions_json_cannot_hold_are_refused(model: dict[str, object]) -> None:
    with pytest.raises(QuantGolfError, match="cannot be written as JSON"):
        pack(small_model(), model)


def test_names_utf8_cannot_hold_are_refused() -> None:
    coded = small_model()
    broken = replace(coded, tensors=(replace(coded.tensors[0], name="\ud800"), *coded.tensors[1:]))
    with pytest.raises(QuantGolfError, match="rename it"):
        pack(broken, None)
