"""The file as bytes: it returns, it stays the same for ever, and no change to it goes unnoticed."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.blob import MAGIC, VERSION, pack, parse
from quantgolf.blob.container import DRAFT, check_envelope
from quantgolf.blob.header import write_header
from quantgolf.encode.varint import varint
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.runtime import restore

GOLDEN = Path(__file__).parent / "golden"
STATES = [f"states{states}" for states in (128, 16, 32, 4, 64)]
NAMES = ["codes", "diagonals", "groups", "kept", "lanes", "large", "levels", "spreads", *STATES, "tuned"]
SMALL = [name for name in NAMES if name not in ("lanes", "large")]
DESCRIPTION = {"family": "golf", "config": {"dim": 8}}


def test_every_golden_file_is_known(goldens: ModuleType) -> None:
    drafts = {f"{name}_v0.qg" for name in ("codes", "diagonals", "groups", "levels")}
    assert {path.name for path in GOLDEN.glob("*.qg")} == {f"{name}_v{VERSION}.qg" for name in NAMES} | drafts
    assert sorted(goldens.MAKERS) == NAMES and goldens.DESCRIPTION == DESCRIPTION


@pytest.mark.parametrize("name", NAMES)
def test_files_return(goldens: ModuleType, name: str) -> None:
    coded = goldens.MAKERS[name]()
    for model in (DESCRIPTION, None):
        data = pack(coded, model)
        header, back = parse(data)
        assert back == coded and header.model == model and header.version == VERSION
        assert pack(back, header.model) == data


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_reads_for_ever(goldens: ModuleType, name: str) -> None:
    """The bytes of this file have to parse to the same tensors, and the same libzstd has to write them again."""
    golden = GOLDEN / f"{name}_v{VERSION}.qg"
    data = golden.read_bytes()
    assert parse(data)[0].model == DESCRIPTION
    assert goldens.tensors_of(data) == json.loads(golden.with_suffix(".json").read_text())
    if zstandard.ZSTD_VERSION == (1, 5, 7):
        assert parse(data)[1] == goldens.MAKERS[name]() and pack(goldens.MAKERS[name](), DESCRIPTION) == data


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*_v0.qg")), ids=lambda path: path.stem)
def test_drafts_of_the_first_version_are_files_of_it(path: Path) -> None:
    data = path.read_bytes()
    header, coded = parse(data)
    assert header.version == DRAFT and header.model == DESCRIPTION
    expected = json.loads(path.with_suffix(".json").read_text())
    assert {name: tensor.double().flatten().tolist() for name, tensor in restore(coded).items()} == expected
    assert parse(path.with_name(path.name.replace("_v0", "_v1")).read_bytes())[1] == coded


@pytest.mark.parametrize("name", SMALL)
def test_every_changed_byte_is_noticed(goldens: ModuleType, name: str) -> None:
    data = pack(goldens.MAKERS[name](), DESCRIPTION)
    for position in range(len(data)):
        for value in {0, 255, data[position] ^ 1, data[position] ^ 128, (data[position] + 1) % 256} - {data[position]}:
            with pytest.raises(FormatError):
                parse(data[:position] + bytes([value]) + data[position + 1 :])


def test_every_cut_and_every_surplus_is_noticed(goldens: ModuleType) -> None:
    data = pack(goldens.small_model(), None)
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


@given(st.data(), st.sampled_from(SMALL))
@settings(deadline=None, max_examples=400)
def test_changed_headers_with_a_good_checksum_end_in_an_error_or_a_model(
    goldens: ModuleType, container: Callable[..., bytes], data: st.DataObject, name: str
) -> None:
    """Headers that are nearly right get further than noise: one to three bytes of the unpacked header change."""
    coded = goldens.MAKERS[name]()
    header = bytearray(write_header(coded, DESCRIPTION))
    for position in data.draw(st.lists(st.integers(0, len(header) - 1), min_size=1, max_size=3)):
        header[position] = data.draw(st.integers(0, 255))
    with suppress(FormatError):
        _, changed = parse(container(bytes(header), coded.streams()), max_decoded_bytes=10**6)
        restored = restore(changed)
        assert {t.name: t.shape for t in changed.tensors} == {t.name: restored[t.name].shape for t in changed.tensors}
        assert parse(pack(changed, None))[1] == changed


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(SMALL))
@settings(deadline=None, max_examples=400)
def test_changed_bytes_with_a_mended_checksum_end_in_an_error_or_a_model(
    goldens: ModuleType, position: int, value: int, name: str
) -> None:
    """A forger can mend the checksum; nothing but FormatError may come of it."""
    content = bytearray(pack(goldens.MAKERS[name](), DESCRIPTION)[:-8])
    content[position % len(content)] = value
    try:
        _, coded = parse(bytes(content) + blake2b(content, digest_size=8).digest())
        restore(coded)
    except FormatError:
        pass


def test_limits_can_be_lowered(goldens: ModuleType) -> None:
    data = pack(goldens.small_model(), None)
    parse(data, max_decoded_bytes=3200)
    with pytest.raises(FormatError, match="raise max_decoded_bytes"):
        parse(data, max_decoded_bytes=2000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a quantgolf file"),
        (b"PK\x03\x04 zip", "starts with b'PK"),
        (MAGIC + bytes([VERSION + 1]) + bytes(20), "version 2 is newer than this reader's 1; upgrade"),
        (MAGIC + bytes([VERSION]) + varint(500) + bytes(20), "truncated: declares 500 more bytes, has 20"),
        (MAGIC + bytes([VERSION]) + varint(5) + bytes(5), "damaged"),
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
def test_descriptions_json_cannot_hold_are_refused(goldens: ModuleType, model: dict[str, object]) -> None:
    with pytest.raises(QuantGolfError, match="cannot be written as JSON"):
        pack(goldens.small_model(), model)


def test_names_utf8_cannot_hold_are_refused(goldens: ModuleType) -> None:
    coded = goldens.small_model()
    broken = replace(coded, tensors=(replace(coded.tensors[0], name="\ud800"), *coded.tensors[1:]))
    with pytest.raises(QuantGolfError, match="rename it"):
        pack(broken, None)
