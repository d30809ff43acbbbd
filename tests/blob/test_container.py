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
from quantgolf.blob.header import write_header
from quantgolf.encode import Entry, Leveled, Quantized, encode_codes, encode_model
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.runtime import restore
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, CodedModel, Exponents, Groups

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


TRELLIS = Trellis(8, 4)


def leveled(
    name: str, lead: int, start: int, stop: int, n: int, k: int, transposed: bool = False, diagonal: bool = False
) -> Leveled:
    targets = (torch.arange(n * k).reshape(n, k) * 37 % 101 - 50).double().numpy() / 8
    targets[-1, -1] = 400.0
    i, j = np.arange(n)[:, None], np.arange(k)
    coded = i, (j - i) % k if diagonal else j + 0 * i
    levels = np.empty((n, k), dtype=np.int32)
    levels[coded] = np.stack([TRELLIS.quantize(column) for column in targets[coded].T], axis=1)
    row, column = torch.arange(n).short() * 3 % 7 - 30, torch.arange(k).short() * 5 % 9 + 2
    block, scales = Block(name, lead, start, stop, transposed), Exponents(row, column, -21)
    return Leveled(block, scales, torch.from_numpy(levels), diagonal)


@cache
def leveled_model() -> CodedModel:
    """Levels beside codes: a whole matrix, a transposed one, a bank with a slice of codes and one that stays."""
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
    return encode_model(entries, TRELLIS)


@cache
def diagonal_model() -> CodedModel:
    """Levels along diagonals, of wide, tall and transposed matrices, beside others down columns and codes."""
    codes = encode_codes((torch.arange(96) % 15 - 7).to(torch.int8).reshape(6, 16))
    bank = (
        leveled("bank", 2, 0, 6, 6, 16, diagonal=True),
        Quantized(Block("bank", 2, 6, 12), torch.linspace(0.01, 0.02, 6).half(), 4, codes),
        leveled("bank", 2, 12, 18, 6, 16),
        leveled("bank", 2, 18, 24, 16, 6, transposed=True, diagonal=True),
    )
    entries = [
        Entry("emb.weight", torch.zeros(20, 8).half(), (leveled("emb.weight", 1, 0, 20, 20, 8, diagonal=True),)),
        Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, bank),
        Entry(
            "c_fc.weight", torch.zeros(5, 9), (leveled("c_fc.weight", 1, 0, 5, 9, 5, transposed=True, diagonal=True),)
        ),
    ]
    return encode_model(entries, TRELLIS)


def grouped(
    block: Block, n: int, k: int, bits: int, size: int, zeros: bool = False, logarithmic: bool = False
) -> Quantized:
    """Scales and zeros that reach both ends of what they may be, and codes that do as well."""
    at, half = torch.arange(n * -(-k // size)).reshape(n, -1), 2 ** (bits - 1)
    scale = (at * 5 % 37 - 200).short() if logarithmic else (at % 7 / 512 + 0.01).half()
    if logarithmic:
        scale[0, 0], scale[-1, -1] = 1904, -1904
    zero = (at * 3 % (2 * half) - half).to(torch.int8) if zeros else None
    codes = torch.arange(n * k).reshape(n, k) * 11 % (2 * half - (not zeros)) - half + (not zeros)
    return Quantized(block, Groups(scale, zero, size), bits, encode_codes(codes.to(torch.int8)))


@cache
def grouped_model() -> CodedModel:
    """Groups of every kind and width, whole, transposed and in a bank, beside steps of rows and levels."""
    bank = (
        grouped(Block("bank", 2, 0, 6), 6, 16, 4, 7),
        Quantized(
            Block("bank", 2, 6, 12), torch.linspace(0.01, 0.02, 6).half(), 4, encode_codes(torch.eye(6, 16).char())
        ),
        grouped(Block("bank", 2, 18, 24, transposed=True), 16, 6, 5, 4, zeros=True),
    )
    return encode_model(
        [
            Entry("emb.weight", torch.zeros(6, 9).half(), (grouped(Block("emb.weight", 1, 0, 6), 6, 9, 8, 1, True),)),
            Entry("gain", torch.linspace(0.5, 1.5, 16)),
            Entry("bank", torch.arange(384).reshape(4, 6, 16) / 8, bank),
            Entry("up", torch.zeros(5, 9), (grouped(Block("up", 1, 0, 5, True), 9, 5, 2, 5, True, True),)),
            Entry("down", torch.zeros(5, 9), (grouped(Block("down", 1, 0, 5), 5, 9, 5, 3, True, True),)),
            Entry("rows", torch.zeros(5, 9), (grouped(Block("rows", 1, 0, 5), 5, 9, 3, 9, False, True),)),
            Entry("c_fc.weight", torch.zeros(5, 9), (leveled("c_fc.weight", 1, 0, 5, 9, 5, transposed=True),)),
            *(Entry(f"w{bits}", torch.zeros(2, 3), (grouped(Block(f"w{bits}", 1, 0, 2), 2, 3, bits, 2, True),))
              for bits in (6, 7)),
        ],
        TRELLIS,
    )  # fmt: skip


HERE = Path(__file__).parent
GOLDEN = {
    small_model: HERE / "golden_v0.qg",
    leveled_model: HERE / "golden_levels_v0.qg",
    diagonal_model: HERE / "golden_diagonals_v0.qg",
    grouped_model: HERE / "golden_groups_v0.qg",
}
MAKERS = list(GOLDEN)


@pytest.mark.parametrize("make", MAKERS)
def test_files_return(make: Callable[[], CodedModel]) -> None:
    coded = make()
    for model in (DESCRIPTION, None):
        data = pack(coded, model)
        header, back = parse(data)
        assert back == coded and header.model == model and header.version == 0
        assert pack(back, header.model) == data


@pytest.mark.parametrize("make", MAKERS)
def test_golden_file_reads_for_ever(make: Callable[[], CodedModel]) -> None:
    """The bytes of this file have to parse to the same tensors, and to be written again."""
    golden = GOLDEN[make]
    data = golden.read_bytes()
    header, coded = parse(data)
    assert header.model == DESCRIPTION
    assert coded == make()
    assert pack(make(), DESCRIPTION) == data
    expected = json.loads(golden.with_suffix(".json").read_text())
    assert {name: tensor.double().flatten().tolist() for name, tensor in restore(coded).items()} == expected


@pytest.mark.parametrize("make", MAKERS)
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
def test_hostile_headers_with_a_good_checksum_end_in_an_error_or_a_model(
    container: Callable[..., bytes], header: bytes
) -> None:
    with suppress(FormatError):
        parse(container(header))


@given(st.data(), st.sampled_from(MAKERS))
@settings(deadline=None, max_examples=400)
def test_changed_headers_with_a_good_checksum_end_in_an_error_or_a_model(
    container: Callable[..., bytes], data: st.DataObject, make: Callable[[], CodedModel]
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


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(MAKERS))
@settings(deadline=None, max_examples=400)
def test_changed_bytes_with_a_mended_checksum_end_in_an_error_or_a_model(
    position: int, value: int, make: Callable[[], CodedModel]
) -> None:
    """A forger can mend the checksum; nothing but FormatError may come of it."""
    content = bytearray(pack(make(), DESCRIPTION)[:-8])
    content[position % len(content)] = value
    try:
        _, coded = parse(bytes(content) + blake2b(content, digest_size=8).digest())
        restore(coded)
    except FormatError:
        pass


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


def test_streams_have_to_be_there(container: Callable[..., bytes]) -> None:
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
