"""A tokenizer by what the user calls it: a file, a folder, or the word `bytes`."""

import json
from pathlib import Path

from quantgolf.data.huggingface import HuggingFaceTokenizer
from quantgolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from quantgolf.errors import QuantGolfError

BYTES = "bytes"
HUGGING_FACE, SENTENCE_PIECE = "tokenizer.json", "tokenizer.model"
GGUF = b"GGUF"


def open_tokenizer(source: str | Path) -> Tokenizer:
    """Opens a tokenizer, told by its name and its first bytes.

    Args:
        source: a SentencePiece .model file; a Hugging Face tokenizer.json, or a folder that holds either of the two
            under its usual name; a GGUF file with its tokenizer; the JSON of Parameter Golf's byte tokenizer; or the
            word `bytes` (`./bytes` for a file of that name).

    Raises:
        QuantGolfError: missing, unreadable, none of these, or in need of a library that is not installed.
    """
    if str(source) == BYTES:
        return ByteTokenizer.plain()
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in (HUGGING_FACE, SENTENCE_PIECE) if (path / name).is_file()]
        if not found:
            raise QuantGolfError(f"tokenizer {path}: a folder without {HUGGING_FACE} or {SENTENCE_PIECE}, expected one")
        path = found[0]
    try:
        with path.open("rb") as stream:
            start = stream.read(len(GGUF))
    except OSError as error:
        raise QuantGolfError(
            f"tokenizer {path}: {error.strerror}, expected a SentencePiece .model, a tokenizer.json, or the word bytes"
        ) from error
    if start == GGUF:
        return HuggingFaceTokenizer.read_gguf(path)
    if path.suffix == ".json" or start.startswith(b"{"):
        return _golf_bytes(path) or HuggingFaceTokenizer.read(path)
    return SentencePieceTokenizer.read(path)


def _golf_bytes(path: Path) -> ByteTokenizer | None:
    """The byte tokenizer that Parameter Golf's exporter describes; None where the file is something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("tokenizer_type") != "pure_byte":
        return None
    try:
        size, bos, offset = found["vocab_size"], found["config"]["bos_id"], found["config"]["byte_offset"]
    except (KeyError, TypeError) as error:
        raise QuantGolfError(
            f"tokenizer {path}: {error} is missing, expected vocab_size, and bos_id and byte_offset in config"
        ) from error
    if not all(type(value) is int for value in (size, bos, offset)) or not 0 <= bos < offset <= size - 256:
        raise QuantGolfError(
            f"tokenizer {path}: vocab_size {size}, bos_id {bos} and byte_offset {offset}, expected whole numbers with "
            "the BOS before the bytes and room for 256 of them"
        )
    return ByteTokenizer(size, bos, None, offset)
