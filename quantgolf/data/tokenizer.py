"""SentencePiece models, with the few facts about them that measuring depends on."""

from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from quantgolf.errors import QuantGolfError


@dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model.

    Attributes:
        size: number of pieces.
        bos: id of the piece that begins a document; None where the model has none.
        unknown: id of the piece that stands for whatever no other piece covers; None where the model has none.
    """

    processor: sentencepiece.SentencePieceProcessor
    size: int
    bos: int | None
    unknown: int | None

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a `.model` file.

        Raises:
            QuantGolfError: missing, unreadable, or not a SentencePiece model.
        """
        path = Path(path)
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            size = processor.get_piece_size()
        except OSError as error:
            raise QuantGolfError(f"tokenizer {path}: {error.strerror}, expected a SentencePiece .model file") from error
        except RuntimeError as error:
            raise QuantGolfError(f"tokenizer {path}: not a SentencePiece model; give the .model file") from error
        if not size:
            raise QuantGolfError(f"tokenizer {path}: 0 pieces, expected a trained SentencePiece model")
        bos, unknown = processor.bos_id(), processor.unk_id()
        return cls(processor, size, bos if bos >= 0 else None, unknown if unknown >= 0 else None)

    def encode(self, text: str) -> list[int]:
        """Pieces of a text, without BOS."""
        pieces: list[int] = self.processor.encode(text)
        return pieces
