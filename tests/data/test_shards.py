"""Golf shards: their documents, their bytes, and every way in which a header can lie."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from quantgolf.data import Tokenizer, corpus_from_texts, open_tokenizer, read_corpus
from quantgolf.errors import QuantGolfError

BOS = 1


def shard(path: Path, values: list[int], magic: int = 20240520, version: int = 1, count: int | None = None) -> Path:
    """Written by hand from the format: 256 little-endian int32, then uint16."""
    header = [magic, version, len(values) if count is None else count] + [0] * 253
    path.write_bytes(struct.pack("<256i", *header) + struct.pack(f"<{len(values)}H", *values))
    return path


def texts_and_stream(tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    texts = ["the first document\n    with two lines", "é", "and a third one"]
    return texts, [token for text in texts for token in (BOS, *tokenizer.encode(text))]


def test_a_shard_is_its_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts, stream = texts_and_stream(tokenizer)
    found = read_corpus(shard(tmp_path / "val.bin", stream), tokenizer)
    expected = corpus_from_texts(texts, tokenizer)
    assert torch.equal(found.tokens.long(), expected.tokens) and found.tokens.dtype == torch.uint16
    assert torch.equal(found.document, expected.document)
    assert found.bytes.tolist() == [len(text.encode()) for text in texts]
    assert (found.bos, found.vocab_size, found.uncounted) == (BOS, 1024, 0)
    assert found.counted == "tokenizer pieces"


def test_bytes_of_the_sidecar_are_taken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens = shard(tmp_path / "val.bin", [BOS, 500, 501, BOS, 502, 502, BOS])
    sidecar = shard(tmp_path / "val_bytes.bin", [0, 3, 0, 0, 7, 65535, 0])
    found = read_corpus(tokens, tokenizer, byte_counts=sidecar)
    assert found.bytes.tolist() == [3, 65542, 0]
    assert found.document.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert found.counted == "byte sidecar"
    plain = read_corpus(tokens, tokenizer, byte_counts=[sidecar], bos=False)
    assert (plain.bytes.tolist(), plain.bos, plain.lengths.tolist()) == ([65545], None, [7])
    cut = read_corpus(tokens, tokenizer, byte_counts=[sidecar], max_tokens=5)
    assert cut.tokens.tolist() == [BOS, 500, 501, BOS, 502] and cut.bytes.tolist() == [3, 7]


def test_documents_run_from_shard_to_shard(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts, stream = texts_and_stream(tokenizer)
    parts = [shard(tmp_path / f"val_{i}.bin", part) for i, part in enumerate((stream[:4], stream[4:6], stream[6:]))]
    found = read_corpus(parts, tokenizer)
    assert found.tokens.tolist() == stream
    assert found.bytes.tolist() == [len(text.encode()) for text in texts]
    assert read_corpus(parts, tokenizer, max_tokens=5).tokens.tolist() == stream[:5]
    (tmp_path / "val_2.bin").unlink()
    assert read_corpus(parts, tokenizer, max_tokens=6).tokens.tolist() == stream[:6]


def test_a_document_that_began_elsewhere_pays_from_its_second_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    _, stream = texts_and_stream(tokenizer)
    pieces = tokenizer.piece_bytes().count(np.array(stream))
    found = read_corpus(shard(tmp_path / "val.bin", stream[2:]), tokenizer)
    assert found.document[0] == 0 and int(found.document.max()) == 2
    begin = stream.index(BOS, 1)
    assert found.bytes[0] == pieces[3:begin].sum() and pieces[2] > 0
    assert found.bytes[1:].tolist() == [2, len("and a third one")]


def test_unknown_pieces_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert read_corpus(shard(tmp_path / "val.bin", [BOS, 0, 500, 0]), tokenizer).unknown == 2


def test_raw_bytes_in_shards(tmp_path: Path) -> None:
    found = read_corpus(shard(tmp_path / "val.bin", list("é!".encode())), "bytes", bos=False)
    assert (found.bytes.tolist(), found.vocab_size, found.bos) == ([3], 256, None)
    assert open_tokenizer("bytes").encode("é!") == found.tokens.tolist()


def test_no_more_is_read_than_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A foreign token behind the cut is not met: the file is 200 MB long and holds two pages."""
    path = shard(tmp_path / "val.bin", [BOS, 500, 501], count=100_000_000)
    with path.open("r+b") as stream:
        stream.seek(1024 + 2 * 100_000_000 - 2)
        stream.write(b"\xff\xff")
    assert read_corpus(path, tokenizer, max_tokens=3).tokens.tolist() == [BOS, 500, 501]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_headers_that_lie_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, good = tmp_path / "val.bin", [BOS, 500, 501]
    whole = shard(path, good).read_bytes()
    cases = [
        (lambda: shard(path, good, magic=20240521), "magic 20240521 and version 1, expected a golf shard"),
        (lambda: shard(path, good, version=2), "magic 20240520 and version 2"),
        (lambda: shard(path, good, count=4), r"counts 4 tokens and the file has 1,030 bytes"),
        (lambda: shard(path, good, count=2), r"counts 2 tokens and the file has 1,030 bytes"),
        (lambda: shard(path, good, count=-3), "counts -3 tokens"),
        (lambda: shard(path, good, count=2**31 - 1), "counts 2,147,483,647 tokens"),
        (lambda: shard(path, []), "counts 0 tokens"),
        (lambda: write(path, whole[:-1]), "has 1,029 bytes"),
        (lambda: write(path, whole + b"\0"), "has 1,031 bytes"),
        (lambda: write(path, whole[:1023]), "1,023 bytes, expected a golf shard with a header of 1,024"),
        (lambda: write(path, b""), "0 bytes, expected a golf shard"),
        (lambda: write(path, b"plain text\n" * 200), "magic 1767992432 and version"),
        (lambda: shard(path, [BOS, 500, 1024]), "token 1,024 at position 2, and the tokenizer has 1,024 pieces"),
        (lambda: shard(path, [500, 501]), r"no BOS \(token 1\) among 2 tokens.*pass --no-bos"),
    ]
    for make, message in cases:
        make()
        with pytest.raises(QuantGolfError, match=message) as caught:
            read_corpus(path, tokenizer)
        assert str(caught.value).startswith(f"shard {path}: ") and "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(QuantGolfError, match=r"val\.bin: No such file"):
        read_corpus(path, tokenizer)


def test_sidecars_have_to_belong(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens, other = shard(tmp_path / "val.bin", [BOS, 500, BOS]), shard(tmp_path / "more.bin", [BOS, 500])
    sidecar = shard(tmp_path / "bytes.bin", [0, 3])
    with pytest.raises(QuantGolfError, match="2 of them for the 3 tokens of"):
        read_corpus(tokens, tokenizer, byte_counts=sidecar)
    with pytest.raises(QuantGolfError, match="names 1 files for 2 shards"):
        read_corpus([tokens, other], tokenizer, byte_counts=sidecar)
    with pytest.raises(QuantGolfError, match="2 bytes for the BOS at token 2, expected 0"):
        read_corpus(tokens, tokenizer, byte_counts=shard(tmp_path / "bytes.bin", [0, 3, 2]))
    with pytest.raises(QuantGolfError, match=r"byte counts .*: magic 7"):
        read_corpus(tokens, tokenizer, byte_counts=shard(tmp_path / "bytes.bin", [0, 3, 0], magic=7))
    text = write(tmp_path / "text.txt", b"words")
    with pytest.raises(QuantGolfError, match="--byte-counts is given without a shard"):
        read_corpus(text, tokenizer, byte_counts=sidecar)
    with pytest.raises(QuantGolfError, match="1 of 2 files are shards"):
        read_corpus([text, tokens], tokenizer)
    with pytest.raises(QuantGolfError, match="pass --no-bos"):
        read_corpus(tokens, "bytes")
