"""Every byte of a text is counted once: by its document, or among those of nobody."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.data import Tokenizer, corpus_from_texts, read_corpus, refuse_misfit
from quantgolf.data.corpus import _split
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig

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
    pieces = list(_split(text, documents))  # type: ignore[arg-type]
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


@pytest.mark.parametrize(("vocabulary", "fits"), [(1024, True), (1088, True), (1000, False), (2048, False)])
def test_vocabularies_have_to_fit_up_to_padding(tokenizer: Tokenizer, vocabulary: int, fits: bool) -> None:
    text = corpus_from_texts(["hello"], tokenizer)
    model = Golf(GolfConfig(vocab_size=vocabulary, dim=8, layers=1, heads=1, kv_heads=1))
    if fits:
        refuse_misfit(model, text, 512)
    else:
        with pytest.raises(QuantGolfError, match=f"1,024 pieces and the model {vocabulary:,} logits"):
            refuse_misfit(model, text, 512)


def test_modules_without_logits_are_refused(tokenizer: Tokenizer) -> None:
    text = corpus_from_texts(["hello"], tokenizer)

    class Pair(torch.nn.Linear):
        def forward(self, tokens: torch.Tensor) -> object:
            return (tokens, tokens)

    with pytest.raises(QuantGolfError, match="returned tuple"):
        refuse_misfit(Pair(2, 2), text, 512)

    class Short(Golf):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            if tokens.shape[1] > 3:
                raise IndexError("no position 3")
            return super().forward(tokens)

    longer = corpus_from_texts(["abc " * 9], tokenizer)
    with pytest.raises(QuantGolfError, match=r"failed on a window of \d+ tokens .*; give a smaller --length"):
        refuse_misfit(Short(GolfConfig(dim=8, layers=1, heads=1, kv_heads=1)), longer, 9)
    with pytest.raises(QuantGolfError, match="failed on one token"):
        refuse_misfit(torch.nn.Linear(2, 2), text, 512)
