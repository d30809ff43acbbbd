"""Every byte of a text is counted once: by its document, or among those of nobody."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.data import Tokenizer, corpus_from_texts, read_corpus
from quantgolf.data.documents import split
from quantgolf.errors import QuantGolfError

TEXT = "One line.\n\nTwo é.\r\n  \nThree\nfour\n\n\nfive"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("documents", "expected", "sizes"),
    [
        ("lines", ["One line.", "Two é.", "Three", "four", "five"], [10, 9, 6, 5, 4]),
        ("paragraphs", ["One line.", "Two é.", "Three\nfour", "five"], [10, 9, 11, 4]),
        ("files", [TEXT], [len(TEXT.encode())]),
    ],
)
def test_documents_and_their_bytes(
    tmp_path: Path, tokenizer: Tokenizer, documents: str, expected: list[str], sizes: list[int]
) -> None:
    assert documents in ("lines", "paragraphs", "files")
    corpus = read_corpus(write(tmp_path, TEXT), tokenizer, documents)  # type: ignore[arg-type]
    assert corpus.bytes.tolist() == sizes
    assert int(corpus.bytes.sum()) + corpus.uncounted == len(TEXT.encode())
    for index, text in enumerate(expected):
        stream = corpus.tokens[corpus.document == index].tolist()
        assert stream == [tokenizer.bos, *tokenizer.encode(text)]


@given(st.text(alphabet="ab \n\r\té", max_size=60), st.sampled_from(["lines", "paragraphs", "files"]))
def test_no_byte_is_lost(text: str, documents: str) -> None:
    pieces = list(split(text, documents))  # type: ignore[arg-type]
    total = sum(len(piece.encode()) + line_break for piece, line_break in pieces)
    assert total == len(text.encode())


def test_bos_is_as_told_and_unknown_pieces_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, "some text\nmore text\n")
    with_bos, without = read_corpus(path, tokenizer), read_corpus([path], tokenizer, bos=False)
    assert with_bos.bos == tokenizer.bos and without.bos is None
    assert len(with_bos.tokens) == len(without.tokens) + 2
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abc abd acd", "bcd"] * 9), model_writer=model, vocab_size=9, model_type="char",
        bos_id=-1, eos_id=-1, minloglevel=2,
    )  # fmt: skip
    plain = tmp_path / "plain.model"
    plain.write_bytes(model.getvalue())
    assert read_corpus(write(tmp_path, "abc\nxyz abc\n"), plain, bos=False).unknown >= 1
    with pytest.raises(QuantGolfError, match="pass --no-bos"):
        read_corpus(path, plain)


def test_reading_stops_at_whole_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, "a line of text\n" * 50)
    whole = read_corpus(path, tokenizer)
    cut = read_corpus(path, tokenizer, max_tokens=20)
    assert 20 <= len(cut.tokens) < 40
    assert torch.equal(cut.tokens, whole.tokens[: len(cut.tokens)])
    assert cut.tokens[0] == tokenizer.bos and np.array_equal(cut.bytes, whole.bytes[: len(cut.bytes)])


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "0 documents"), (b"\n \n", "0 documents"), (b"ab\xff", "byte 2")]
)
def test_bad_texts_are_refused(tmp_path: Path, tokenizer: Tokenizer, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(QuantGolfError, match=message):
        read_corpus(path, tokenizer)


def test_missing_files_and_foreign_tokenizers_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(QuantGolfError, match="No such file"):
        read_corpus(tmp_path / "none.txt", tokenizer)
    with pytest.raises(QuantGolfError, match="No such file"):
        Tokenizer.load(tmp_path / "none.model")
    path = write(tmp_path, "no tokenizer")
    with pytest.raises(QuantGolfError, match="not a SentencePiece model"):
        Tokenizer.load(path)
    path.write_bytes(b"")
    with pytest.raises(QuantGolfError, match="SentencePiece model"):
        Tokenizer.load(path)
    with pytest.raises(QuantGolfError, match="0 documents"):
        corpus_from_texts([""], tokenizer)
    with pytest.raises(QuantGolfError, match="documents is 'words'"):
        read_corpus(path, tokenizer, "words")  # type: ignore[arg-type]
    with pytest.raises(QuantGolfError, match="character 1 is half a surrogate pair"):
        corpus_from_texts(["a\ud800"], tokenizer)


def jsonl(tmp_path: Path, *lines: str | bytes, name: str = "text.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def test_each_line_of_json_is_a_document(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(
        tmp_path, '{"text": "One\\nline", "id": 1}', "", '{"text": "caf\\u00e9 \\ud83c\\udf89"}', '{"text": "  "}', "  "
    )
    corpus = read_corpus(path, tokenizer, "files")
    expected = corpus_from_texts(["One\nline", "café 🎉"], tokenizer)
    assert torch.equal(corpus.tokens, expected.tokens) and torch.equal(corpus.document, expected.document)
    assert corpus.bytes.tolist() == [8, 5 + 1 + 4]
    assert (corpus.uncounted, corpus.counted) == (2, "utf-8 text")
    assert corpus.lengths.tolist() == [int((corpus.document == d).sum()) for d in (0, 1)]
    other = jsonl(tmp_path, '{"body": "One\\nline"}', name="b.ndjson")
    assert torch.equal(read_corpus(other, tokenizer, text_field="body").tokens, corpus.tokens[corpus.document == 0])
    both = read_corpus([path, write(tmp_path, "a line\n")], tokenizer)
    assert both.bytes.tolist() == [8, 10, 7]


def test_json_lines_are_read_no_further_than_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = jsonl(tmp_path, *['{"text": "enough words for a few tokens"}'] * 5, "not JSON")
    assert len(read_corpus(path, tokenizer, max_tokens=8).bytes) == 1
    with pytest.raises(QuantGolfError, match="line 6 is not JSON"):
        read_corpus(path, tokenizer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', "line 2 is not JSON"),
        (b'{"text": "\xff"}', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"text": null, "body": "x"}', "no text in field 'text' .fields body, text."),
        ("{}", "no text in field 'text'"),
        ('["text"]', "no text in field 'text' .list."),
        ('{"text": "\\ud800"}', "line 2: texts: character 0 is half a surrogate pair"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, tokenizer: Tokenizer, line: str | bytes, message: str) -> None:
    path = jsonl(tmp_path, '{"text": "good"}', line)
    with pytest.raises(QuantGolfError, match=message) as caught:
        read_corpus(path, tokenizer)
    assert "text.jsonl: line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_json_lines_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(QuantGolfError, match="No such file"):
        read_corpus(tmp_path / "none.jsonl", tokenizer)
