"""Bytes of one text agree across tokenizers, to the byte, and what does not is taken apart."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizer_bytes as script
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.data import Tokenizer, corpus_from_texts, open_tokenizer, read_corpus
from quantgolf.errors import QuantGolfError

TEXT = "def f(x):\n    return x  # é\n\n\tand tabs,  spaces\nﬁne ½ 日本語 😀\r\nlast"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    """Without byte pieces, and with SentencePiece's usual normalisation."""
    lines = ["the cat sat on the mat and the dog ran after it " * 3] * 40
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=9,
    )
    return tmp_path / "lossy.model"


def rows(text: Path, lossy: Path, documents: str, capsys: pytest.CaptureFixture[str]) -> dict[str, script.Accounts]:
    script.main([text], [str(lossy)], script.Documents(documents), None, json_output=True)
    found = [script.Accounts(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    return {row.tokenizer: row for row in found}


@pytest.mark.parametrize("documents", ["lines", "paragraphs", "files"])
def test_every_byte_is_accounted_for(
    text: Path, lossy: Path, documents: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(text, lossy, documents, capsys)
    assert len({row.text_bytes + row.uncounted for row in found.values()}) == 1
    assert found["demo"].text_bytes + found["demo"].uncounted == len(TEXT.encode())
    for name in ("demo", "bytes"):
        row = found[name]
        assert row.unknown == 0
        # The contest's rule drops the space a document begins with, which here is the second line's own.
        assert row.elsewhere == (1 if (name, documents) == ("demo", "lines") else 0)
        assert row.piece_bytes == row.text_bytes - row.line_breaks - row.elsewhere
    assert found["demo"].line_breaks == {"lines": 6 - 1, "paragraphs": 1, "files": 0}[documents]
    row = found["lossy.model"]
    assert row.unknown > 0 and row.elsewhere is not None and row.elsewhere > 20


@given(st.text(min_size=1).filter(str.strip).filter(lambda text: not text.startswith((" ", "▁"))))
def test_pieces_agree_with_any_text_to_the_byte(text: str) -> None:
    """Where no piece is unknown, nothing is normalised, and the document does not begin with a space."""
    for tokenizer in (DEMO, BYTES):
        corpus = corpus_from_texts([text], tokenizer, bos=tokenizer.bos is not None)
        assert corpus.unknown == 0
        assert script.shard_bytes(corpus, tokenizer) == int(corpus.bytes[0]) == len(text.encode())


DEMO, BYTES = script.named("demo"), open_tokenizer("bytes")


def test_vocabularies_too_large_for_shards_are_named(tokenizer: Tokenizer, text: Path) -> None:
    class Large(type(tokenizer)):  # type: ignore[misc]
        pass

    large = Large(70_000, 1, 0, tokenizer.processor)  # type: ignore[attr-defined]
    with pytest.raises(QuantGolfError, match="70,000 pieces do not fit into a shard's uint16"):
        script.shard_bytes(read_corpus(text, tokenizer), large)


def test_the_table_is_printed_and_lines_are_appended(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    script.main([text], None, script.Documents.lines, out, json_output=False)
    assert "by pieces" in capsys.readouterr().out
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
