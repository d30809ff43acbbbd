"""Tokenizers of every kind are told apart, agree with their own libraries, and know their bytes."""

import json
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from quantgolf.checkpoint import read_demo
from quantgolf.data import Tokenizer, corpus_from_texts, open_tokenizer
from quantgolf.data.huggingface import HuggingFaceTokenizer
from quantgolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer
from quantgolf.errors import QuantGolfError

TEXTS = ["the cat sat on the mat", "a\tcaf\u00e9 \U0001f389\n\n  x = 3", " spaces  around "]


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """A byte-level BPE with a special token and one that is not, as the tokenizers library has it."""
    library = pytest.importorskip("tokenizers")
    found = library.Tokenizer(library.models.BPE())
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"],
        show_progress=False,
    )  # fmt: skip
    found.train_from_iterator(["the cat sat on the mat, the cat is fat"] * 9, trainer)
    found.add_tokens(["été"])
    return found


def save(found: Any, folder: Path, **beside: object) -> Path:
    folder.mkdir(exist_ok=True)
    found.save(str(folder / "tokenizer.json"))
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / "tokenizer.json"


def test_kinds_are_told_apart(tmp_path: Path, byte_level: Any) -> None:
    model = read_demo().tokenizer
    assert isinstance(open_tokenizer(model), SentencePieceTokenizer)
    odd = tmp_path / "odd.json5"
    save(byte_level, tmp_path / "hf").rename(odd)
    assert open_tokenizer(odd).size == byte_level.get_vocab_size()
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(QuantGolfError, match=r"a folder without tokenizer\.json or tokenizer\.model"):
        open_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    assert isinstance(Tokenizer.load(folder), SentencePieceTokenizer)
    save(byte_level, folder)
    assert not isinstance(open_tokenizer(folder), SentencePieceTokenizer)
    assert isinstance(open_tokenizer("bytes"), ByteTokenizer) and isinstance(
        open_tokenizer(Path("bytes")), ByteTokenizer
    )
    with pytest.raises(QuantGolfError, match=r"tokenizer bytes: No such file|tokenizer .*bytes: No such file"):
        open_tokenizer("./nothing/bytes")


def test_raw_bytes() -> None:
    tokenizer = open_tokenizer("bytes")
    assert (tokenizer.size, tokenizer.bos, tokenizer.unknown) == (256, None, None)
    assert tokenizer.encode("aé\n") == [97, 0xC3, 0xA9, 10]
    assert tokenizer.piece_bytes().count(np.array(tokenizer.encode("aé\n"))).tolist() == [1, 1, 1, 1]
    with pytest.raises(QuantGolfError, match="pass --no-bos"):
        corpus_from_texts(["a"], tokenizer)


def test_the_byte_tokenizer_of_parameter_golf(tmp_path: Path) -> None:
    description = {
        "tokenizer_type": "pure_byte", "vocab_size": 260,
        "config": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "byte_offset": 4, "byte_count": 256},
    }  # fmt: skip
    path = tmp_path / "fineweb_pure_byte_260.json"
    path.write_text(json.dumps(description))
    tokenizer = open_tokenizer(path)
    assert (tokenizer.size, tokenizer.bos, tokenizer.encode("a\n")) == (260, 1, [101, 14])
    assert tokenizer.piece_bytes().count(np.array([1, 101, 14, 1, 259])).tolist() == [0, 1, 1, 0, 1]
    for change in ({"vocab_size": 256}, {"vocab_size": "260"}, {"config": {"bos_id": 9, "byte_offset": 4}}):
        path.write_text(json.dumps(description | change))
        with pytest.raises(QuantGolfError, match="expected whole numbers with the BOS before the bytes"):
            open_tokenizer(path)
    for broken in (description | {"config": {}}, {"tokenizer_type": "pure_byte"}, description | {"config": 3}):
        path.write_text(json.dumps(broken))
        with pytest.raises(QuantGolfError, match="expected vocab_size, and bos_id and byte_offset"):
            open_tokenizer(path)


def test_hugging_face_text_is_its_tokens_and_nothing_around_them(tmp_path: Path, byte_level: Any) -> None:
    library = pytest.importorskip("tokenizers")
    whole = library.Tokenizer.from_str(byte_level.to_str())
    whole.post_processor = library.processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", whole.token_to_id("<|end|>"))]
    )
    whole.enable_truncation(4)
    whole.enable_padding(length=9)
    tokenizer = open_tokenizer(save(whole, tmp_path))
    for text in TEXTS:
        assert tokenizer.encode(text) == byte_level.encode(text).ids
        assert byte_level.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("x<|end|>")[-1] == tokenizer.bos == byte_level.token_to_id("<|end|>")
    assert tokenizer.size == 1 + max(byte_level.get_vocab().values()) and tokenizer.unknown is None


def test_bos_is_what_the_files_name(tmp_path: Path, byte_level: Any) -> None:
    end = byte_level.token_to_id("<|end|>")
    path = save(byte_level, tmp_path)
    assert open_tokenizer(path).bos is None
    save(byte_level, tmp_path, special_tokens_map={"bos_token": "<|end|>"})
    assert open_tokenizer(path).bos == end
    save(byte_level, tmp_path, tokenizer_config={"bos_token": {"content": "été"}})
    assert open_tokenizer(tmp_path).bos == byte_level.token_to_id("été")
    save(byte_level, tmp_path, tokenizer_config={"bos_token": None})
    assert open_tokenizer(path).bos == end
    save(byte_level, tmp_path, tokenizer_config={"bos_token": "<s>"})
    with pytest.raises(QuantGolfError, match=r"its bos_token '<s>' is not in tokenizer\.json"):
        open_tokenizer(path)
    for content in ("[]", "{", '{"bos_token": {}}'):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(QuantGolfError, match=r"tokenizer_config\.json: cannot be read"):
            open_tokenizer(path)


def test_unknown_pieces_of_hugging_face_are_counted(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    words = library.Tokenizer(library.models.WordLevel({"a": 0, "[UNK]": 1, "b": 5}, unk_token="[UNK]"))
    words.pre_tokenizer = library.pre_tokenizers.Whitespace()
    path = save(words, tmp_path)
    tokenizer = open_tokenizer(path)
    assert (tokenizer.size, tokenizer.unknown) == (6, 1)
    assert corpus_from_texts(["a c b", "d"], tokenizer, bos=False).unknown == 2
    with pytest.raises(QuantGolfError, match=r"is not byte-level.*--byte-counts"):
        tokenizer.piece_bytes()
    unigram = library.Tokenizer(library.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    assert open_tokenizer(save(unigram, tmp_path)).unknown == 0


@given(text=st.text(max_size=30))
def test_byte_level_pieces_have_the_bytes_of_their_text(byte_level: Any, text: str) -> None:
    tokenizer = HuggingFaceTokenizer._around(byte_level, byte_level.to_str(), None)
    counted = tokenizer.piece_bytes().count(np.array(tokenizer.encode(text), dtype=np.int64))
    assert counted.sum() == len(text.replace("<|end|>", "").encode())


def test_a_space_the_tokenizer_adds_is_not_counted(tmp_path: Path, byte_level: Any) -> None:
    library = pytest.importorskip("tokenizers")
    prefixed = library.Tokenizer.from_str(byte_level.to_str())
    prefixed.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = open_tokenizer(save(prefixed, tmp_path))
    ids = np.array([prefixed.token_to_id("<|end|>"), *tokenizer.encode("the cat")])
    assert prefixed.id_to_token(ids[1]).startswith("Ġ")
    assert tokenizer.piece_bytes().count(ids).sum() == len("the cat")


def test_missing_libraries_are_named_with_the_remedy(
    tmp_path: Path, byte_level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, gguf = save(byte_level, tmp_path), tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF....")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        QuantGolfError, match=r"tokenizers library, which is not installed; pip install 'quantgolf\[hf\]"
    ):
        open_tokenizer(path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(QuantGolfError, match=r"transformers, which is not installed; pip install 'quantgolf\[hf\]"):
        open_tokenizer(gguf)


def test_gguf_tokenizers_come_through_transformers(
    tmp_path: Path, byte_level: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF....")

    def from_pretrained(folder: str, *, gguf_file: str) -> object:
        if (folder, gguf_file) != (str(tmp_path), "model.gguf"):
            raise OSError("no such model")
        return SimpleNamespace(backend_tokenizer=byte_level, bos_token_id=7)

    fake = SimpleNamespace(AutoTokenizer=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    tokenizer = open_tokenizer(gguf)
    assert tokenizer.bos == 7 and tokenizer.encode(TEXTS[0]) == byte_level.encode(TEXTS[0]).ids
    gguf.rename(tmp_path / "other.gguf")
    with pytest.raises(QuantGolfError, match=r"transformers cannot read it \(OSError: no such model\)"):
        open_tokenizer(tmp_path / "other.gguf")


@pytest.mark.parametrize("content", [b"{}", b"{", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"[1]"])
def test_bad_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(QuantGolfError, match=r"tokenizer\.json: (not a Hugging Face tokenizer|cannot be read)"):
        open_tokenizer(path)


def trained(tmp_path: Path, **options: Any) -> SentencePieceTokenizer:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "caf\u00e9 \u6f22 the end"] * 20), model_writer=model,
        model_type="bpe", vocab_size=320, byte_fallback=True, hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    path = tmp_path / "trained.model"
    path.write_bytes(model.getvalue())
    return SentencePieceTokenizer.read(path)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_sentencepiece_bytes_by_hand(tmp_path: Path, dummy_prefix: bool) -> None:
    tokenizer = trained(tmp_path, add_dummy_prefix=dummy_prefix, user_defined_symbols=["<sep>"])
    model, bos, unknown = tokenizer.processor, tokenizer.bos, tokenizer.unknown
    assert bos is not None and unknown is not None
    pieces = ["▁the", "the", "▁", "é", "<0xE6>", "<sep>", "漢"]
    the, bare, space, accent, byte, symbol, han = (model.piece_to_id(piece) for piece in pieces)
    assert unknown not in (the, bare, space, accent, byte, symbol, han)
    stream = [bos, the, the, bare, space, accent, byte, the, unknown, the, symbol, the, han, bos, space, the]
    expected = [0, 3, 4, 3, 1, 2, 1, 4, 0, 3, 5, 4, 3, 0, 0, 4]
    assert tokenizer.piece_bytes().count(np.array(stream)).tolist() == expected


def test_sentencepiece_bytes_against_the_rule_written_as_a_loop(tmp_path: Path) -> None:
    """The rule of Parameter Golf, one target at a time; its tokenizers have no space inside a piece."""
    tokenizer = trained(tmp_path, add_dummy_prefix=False)
    model, pieces = tokenizer.processor, tokenizer.piece_bytes()
    stream = np.random.default_rng(0).integers(tokenizer.size, size=4000)
    assert not any("▁" in model.id_to_piece(i)[1:] for i in range(tokenizer.size))
    total = 0
    for previous, target in zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True):
        if model.is_control(target) or model.is_unknown(target) or model.is_unused(target):
            continue
        piece = model.id_to_piece(target)
        if model.is_byte(target):
            total += 1
        elif piece.startswith("▁"):
            silent = model.is_control(previous) or model.is_unknown(previous) or model.is_unused(previous)
            total += len(piece[1:].encode()) + (not silent)
        else:
            total += len(piece.encode())
    assert pieces.count(stream)[1:].sum() == total > 4000


def test_counted_pieces_agree_with_the_text(tokenizer: Tokenizer) -> None:
    """The demo's pieces have runs of spaces inside; each is one byte."""
    for text in ["def f(x):\n        return x  # é\n", "a\tb   c\n\n\n    d"]:
        ids = np.array([tokenizer.bos, *tokenizer.encode(text)])
        assert tokenizer.piece_bytes().count(ids).sum() == len(text.encode())
