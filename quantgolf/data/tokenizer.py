"""Tokenizers of every kind, with the few facts about them that measuring depends on."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from quantgolf.data.pieces import PieceBytes
from quantgolf.errors import QuantGolfError

SPACE = "▁"  # how SentencePiece writes a space


@dataclass(frozen=True)
class Tokenizer(ABC):
    """Text into tokens.

    Attributes:
        size: number of pieces; every token is below it.
        bos: id of the piece that begins a document; None where there is none.
        unknown: id of the piece that stands for whatever no other piece covers; None where there is none.
    """

    size: int
    bos: int | None
    unknown: int | None

    @staticmethod
    def load(source: str | Path) -> "Tokenizer":
        """The same as `open_tokenizer`."""
        from quantgolf.data.open import open_tokenizer

        return open_tokenizer(source)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without BOS or anything else around it."""

    @abstractmethod
    def piece_bytes(self) -> PieceBytes:
        """Bytes of text behind each piece.

        Raises:
            QuantGolfError: they cannot be told from the pieces.
        """


@dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226)."""

    processor: sentencepiece.SentencePieceProcessor

    @classmethod
    def read(cls, path: Path) -> "SentencePieceTokenizer":
        """Reads a `.model` file.

        Raises:
            QuantGolfError: unreadable, or not a SentencePiece model.
        """
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            size = processor.get_piece_size()
        except OSError as error:
            raise QuantGolfError(f"tokenizer {path}: {error.strerror}, expected a SentencePiece .model file") from error
        except RuntimeError as error:
            raise QuantGolfError(
                f"tokenizer {path}: not a SentencePiece model and not a tokenizer.json; give the .model file, the "
                "tokenizer.json, or the word bytes"
            ) from error
        if not size:
            raise QuantGolfError(f"tokenizer {path}: 0 pieces, expected a trained SentencePiece model")
        bos, unknown = processor.bos_id(), processor.unk_id()
        return cls(size, bos if bos >= 0 else None, unknown if unknown >= 0 else None, processor)

    def encode(self, text: str) -> list[int]:
        pieces: list[int] = self.processor.encode(text)
        return pieces

    def piece_bytes(self) -> PieceBytes:
        """As Parameter Golf counts. A space inside a piece is one byte here; there it would be the three of its
        stand-in `▁`, but the contest's own tokenizers have no such pieces."""
        model, every = self.processor, range(self.size)
        silent = np.array([model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in every])
        space, size = np.zeros(self.size, dtype=np.bool_), np.zeros(self.size, dtype=np.int64)
        for index in np.flatnonzero(~silent).tolist():
            if model.is_byte(index):
                size[index] = 1
                continue
            piece = model.id_to_piece(index)
            space[index] = piece.startswith(SPACE)
            size[index] = len(piece.removeprefix(SPACE).replace(SPACE, " ").encode("utf-8"))
        return PieceBytes(size, space, silent)


@dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as tokens, byte b as b + `offset`."""

    offset: int

    @classmethod
    def plain(cls) -> "ByteTokenizer":
        """256 tokens, each the byte of its value; no BOS."""
        return cls(256, None, None, 0)

    def encode(self, text: str) -> list[int]:
        return [byte + self.offset for byte in text.encode("utf-8")]

    def piece_bytes(self) -> PieceBytes:
        found = np.zeros(self.size, dtype=np.int64)
        found[self.offset : self.offset + 256] = 1
        return PieceBytes(found, np.zeros(self.size, dtype=np.bool_), found == 0)
