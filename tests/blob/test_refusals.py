"""What is refused besides changed files: models that nothing may write, and files that are not read to their end."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantgolf.blob import MAGIC, pack, parse, read_blob
from quantgolf.errors import FormatError, QuantGolfError
from quantgolf.types import CodedBlock, CodedModel, CodedTensor

KEPT = CodedTensor("w", (), "U8", 0, (CodedBlock(1, "U8", None, b""),))


def test_models_that_do_not_hold_together_are_not_written() -> None:
    with pytest.raises(FormatError, match="w has shape"):
        pack(CodedModel((replace(KEPT, shape=(1,) * 17),), b"", b""), None)
    with pytest.raises(FormatError, match=r"w has shape \[-1\], expected up to 16 sizes from 0"):
        pack(CodedModel((replace(KEPT, shape=(-1,)),), b"", b""), None)


@pytest.mark.parametrize(
    "stray", [{"levels": b"x"}, {"exponents": b"x"}, {"states": 1}, {"restart": 1}, {"zeros": b"x"}], ids=str
)
def test_streams_that_belong_to_no_tensor_are_not_written(stray: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="expected none of them"):
        pack(CodedModel((KEPT,), b"", b"", **stray), None)


def test_descriptions_are_no_longer_than_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 2**22 - len(b'\0\0\0\0{"a":""}\0\0\0')
    for length in (room, room + 1):
        model, coded = {"a": "x" * length}, CodedModel((), b"", b"")
        if length == room:
            assert parse(pack(coded, model))[0].model == model
        else:
            with pytest.raises(
                FormatError, match="header takes 4194305 bytes, expected at most 4194304; shorten names"
            ):
                pack(coded, model)


def test_names_and_blocks_are_no_more_than_a_reader_takes() -> None:
    most = 2**17
    many = replace(KEPT, aliases=tuple(f"{at:x}" for at in range(most)))
    just = CodedModel((replace(many, aliases=many.aliases[:-1]),), b"", b"")
    assert parse(pack(just, None))[1] == just
    with pytest.raises(FormatError, match="131073 names, expected at most 131072"):
        pack(CodedModel((many,), b"", b""), None)
    blocks = (CodedBlock(1, "U8", None, b""),) * (most + 1)
    with pytest.raises(FormatError, match="131073 blocks, expected at most 131072"):
        pack(CodedModel((CodedTensor("w", (most + 1,), "U8", 1, blocks),), b"", b""), None)


def test_names_are_no_longer_than_a_reader_takes() -> None:
    for name, bytes_of in (("n" * 1024, 1024), ("é" * 512, 1024), ("n" * 1025, 1025), ("é" * 513, 1026)):
        coded = CodedModel((replace(KEPT, name=name),), b"", b"")
        if bytes_of == 1024:
            assert parse(pack(coded, None))[1] == coded
        else:
            with pytest.raises(QuantGolfError, match=f"takes {bytes_of} bytes, expected at most 1024; rename it"):
                pack(coded, None)


@pytest.mark.parametrize("start", [b"PK\3\4", MAGIC + b"\xff", MAGIC + b"\1\5"])
def test_files_of_another_kind_are_told_before_they_are_read(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(100_000_000)  # which takes no room on the disk
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="large: "):
            read_blob(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
