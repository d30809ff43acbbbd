"""The file as bytes: it returns, it stays the same for ever, and no change to it goes unnoticed."""

import json
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.blob import MAGIC, pack, parse
from quantgolf.blob.container import check_envelope
from quantgolf.blob.header import WORDS
from quantgolf.encode import Entry, encode_model, zstd
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.runtime import restore
from quantgolf.types import CodedModel, QTensor, Steps

GOLDEN = Path(__file__).parent / "golden_v0.qg"
DESCRIPTION = {"family": "golf", "config": {"dim": 8}}


def small_model() -> CodedModel:
    codes = (torch.arange(6 * 16) * 7 % 15 - 7).to(torch.int8).reshape(6, 16)
    rows = torch.linspace(0.01, 0.02, 6).half()
    return encode_model(
        [
            Entry("blocks.0.up.weight", torch.zeros(6, 16), QTensor(codes, Steps(rows), 4)),
            Entry("blocks.0.scale", torch.linspace(0.5, 1.5, 16)),
            Entry("emb.weight", torch.zeros(6, 4, 4).half(), QTensor(codes, Steps(rows), 5), aliases=("head.weight",)),
            Entry("steps", torch.tensor([3, 4])),
        ]
    )


def with_checksum(content: bytes) -> bytes:
    return content + blake2b(content, digest_size=8).digest()


def container(header: bytes, streams: bytes = b"", size: int | None = None) -> bytes:
    """A file whose envelope and checksum are right, whatever the header says."""
    packed = zstd.compress(header, WORDS)
    body = varint(len(header) if size is None else size) + varint(len(packed)) + packed + streams
    return with_checksum(MAGIC + b"\0" + varint(len(body) + 8) + body)


def test_files_return() -> None:
    coded = small_model()
    for model in (DESCRIPTION, None):
        data = pack(coded, model)
        header, back = parse(data)
        assert back == coded and header.model == model and header.version == 0
        assert pack(back, header.model) == data


def test_golden_file_reads_for_ever() -> None:
    """Version 0 was frozen with this file: its bytes have to parse to the same tensors, and to be written again."""
    data = GOLDEN.read_bytes()
    header, coded = parse(data)
    assert header.model == DESCRIPTION
    assert coded == small_model()
    assert pack(small_model(), DESCRIPTION) == data
    expected = json.loads(GOLDEN.with_suffix(".json").read_text())
    assert {name: tensor.double().flatten().tolist() for name, tensor in restore(coded).items()} == expected


def test_every_changed_byte_is_noticed() -> None:
    data = pack(small_model(), DESCRIPTION)
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


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_changed_bytes_with_a_mended_checksum_end_in_an_error_or_a_model(position: int, value: int) -> None:
    """A forger can mend the checksum; nothing but FormatError may come of it."""
    content = bytearray(pack(small_model(), DESCRIPTION)[:-8])
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


def test_limits_can_be_lowered() -> None:
    data = pack(small_model(), None)
    parse(data, max_decoded_bytes=1000)
    with pytest.raises(FormatError, match="raise max_decoded_bytes"):
        parse(data, max_decoded_bytes=500)


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
