"""Tokenizers of Hugging Face, through their own library, which is an optional extra.

Text is read as `tokenizer(text, add_special_tokens=False)` reads it there: nothing is put around it, and the name of a
special token written in the text is that token.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantgolf.data.pieces import PieceBytes
from quantgolf.data.tokenizer import Tokenizer
from quantgolf.errors import QuantGolfError

if TYPE_CHECKING:
    import tokenizers

REMEDY = "pip install 'quantgolf[hf]'"
BYTE_SPACE = "Ġ"  # how byte-level tokenizers write a space


@dataclass(frozen=True)
class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`."""

    backend: "tokenizers.Tokenizer"

    @classmethod
    def read(cls, path: Path) -> "HuggingFaceTokenizer":
        """Reads a tokenizer.json. BOS is what the tokenizer_config.json or special_tokens_map.json beside it names,
        otherwise what the tokenizer itself puts in front of a text.

        Raises:
            QuantGolfError: not such a file, one that contradicts those beside it, or the library is missing.
        """
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise QuantGolfError(f"tokenizer {path}: cannot be read ({error}), expected a tokenizer.json") from error
        backend = _backend(content, str(path))
        return cls._around(backend, content, _named_bos(path, backend))

    @classmethod
    def read_gguf(cls, path: Path) -> "HuggingFaceTokenizer":
        """The tokenizer inside a GGUF file, as transformers reads it.

        Raises:
            QuantGolfError: transformers cannot read it, or is missing.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise QuantGolfError(
                f"tokenizer {path}: a GGUF file is read with transformers, which is not installed; {REMEDY}"
            ) from error
        try:
            whole = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            content = whole.backend_tokenizer.to_str()
        except Exception as error:  # a foreign or damaged file makes it raise almost anything
            raise QuantGolfError(
                f"tokenizer {path}: transformers cannot read it ({type(error).__name__}: {error}), expected a GGUF "
                "file with a tokenizer; give its tokenizer.json"
            ) from error
        return cls._around(_backend(content, str(path)), content, whole.bos_token_id)

    @classmethod
    def _around(cls, backend: "tokenizers.Tokenizer", content: str, bos: int | None) -> "HuggingFaceTokenizer":
        backend.no_truncation()  # files remember both, and either would change what a byte costs
        backend.no_padding()
        if bos is None:
            bos = _written_bos(backend)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        unknown = _unknown(json.loads(content)["model"], vocabulary)
        return cls(max(vocabulary.values(), default=-1) + 1, bos, unknown, backend)

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def piece_bytes(self) -> PieceBytes:
        """Of byte-level tokenizers: a piece has one character a byte; special tokens have no bytes.

        Raises:
            QuantGolfError: a tokenizer of another kind.
        """
        description = json.loads(self.backend.to_str())
        if not any(part["type"] == "ByteLevel" for part in _parts(description["decoder"])):
            raise QuantGolfError(
                "this tokenizer.json is not byte-level, expected pieces whose bytes can be told; give the shard's "
                "byte counts with --byte-counts"
            )
        prefixed = any(
            part["type"] == "ByteLevel" and part["add_prefix_space"] for part in _parts(description["pre_tokenizer"])
        )
        size = np.zeros(self.size, dtype=np.int64)
        space, silent = np.zeros(self.size, dtype=np.bool_), np.ones(self.size, dtype=np.bool_)
        for piece, index in self.backend.get_vocab(with_added_tokens=True).items():
            space[index] = prefixed and piece.startswith(BYTE_SPACE)
            size[index], silent[index] = len(piece) - int(space[index]), False
        for index, token in self.backend.get_added_tokens_decoder().items():
            size[index] = 0 if token.special else len(token.content.encode("utf-8"))
            space[index], silent[index] = False, token.special
        if self.unknown is not None:
            size[self.unknown], silent[self.unknown] = 0, True
        return PieceBytes(size, space, silent)


def _backend(content: str, source: str) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise QuantGolfError(
            f"tokenizer {source}: a tokenizer.json is read with the tokenizers library, which is not installed; "
            f"{REMEDY}"
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more special
        raise QuantGolfError(
            f"tokenizer {source}: not a Hugging Face tokenizer ({error}); give the tokenizer.json that its "
            "save_pretrained writes"
        ) from error


def _named_bos(path: Path, backend: "tokenizers.Tokenizer") -> int | None:
    """The BOS that the files beside a tokenizer.json name; a file of another name has none beside it."""
    beside = ("tokenizer_config.json", "special_tokens_map.json") if path.name == "tokenizer.json" else ()
    for file in (path.with_name(name) for name in beside):
        if not file.is_file():
            continue
        try:
            token = json.loads(file.read_text(encoding="utf-8")).get("bos_token")
            name = token["content"] if isinstance(token, dict) else token
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise QuantGolfError(f"tokenizer {file}: cannot be read ({error}), expected its JSON object") from error
        if name is None:
            continue
        found = backend.token_to_id(str(name))
        if found is None:
            raise QuantGolfError(
                f"tokenizer {file}: its bos_token {name!r} is not in {path.name}, expected one of its tokens; "
                "give the files of one tokenizer"
            )
        return found
    return None


def _written_bos(backend: "tokenizers.Tokenizer") -> int | None:
    """What the tokenizer itself puts in front of a text."""
    plain, whole = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    return whole[0] if len(whole) > len(plain) and whole[:1] != plain[:1] else None


def _unknown(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    if model.get("type") == "Unigram":
        return model.get("unk_id")
    return vocabulary.get(model.get("unk_token") or "")


def _parts(component: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer or decoder, taken apart where it is a sequence of several."""
    if component is not None:
        yield component
        for part in component.get("pretokenizers", component.get("decoders", ())):
            yield from _parts(part)
