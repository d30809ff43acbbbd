"""Text files taken apart into documents: plain text, and JSON lines with a text field."""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

from quantgolf.data.corpus import utf8_bytes
from quantgolf.errors import QuantGolfError

Documents = Literal["lines", "paragraphs", "files"]
LINE = re.compile(r"[^\n]*\n|[^\n]+")
JSON_LINES = frozenset({".jsonl", ".json-lines", ".jsonlines", ".ndjson"})


def read_documents(path: Path, documents: Documents, text_field: str) -> Iterator[tuple[str, int]]:
    """Documents of a file and the blank text between them, each with the bytes of its line break that is not
    tokenised. A file named .jsonl is read as JSON lines, each one document, whatever `documents` says.

    Raises:
        QuantGolfError: unreadable, not UTF-8, or a line without the text field.
    """
    if path.suffix in JSON_LINES:
        return _json_lines(path, text_field)
    return split(_read(path), documents)


def split(text: str, documents: Documents) -> Iterator[tuple[str, int]]:
    """As `read_documents`, of text in memory.

    Raises:
        QuantGolfError: `documents` is none of the three.
    """
    if documents == "files":
        yield text, 0
    elif documents == "lines":
        yield from map(_without_break, LINE.findall(text))
    elif documents == "paragraphs":
        for blank, lines in groupby(LINE.findall(text), key=lambda line: not line.strip()):
            whole = "".join(lines)
            yield (whole, 0) if blank else _without_break(whole)
    else:
        raise QuantGolfError(f"documents is {documents!r}, expected 'lines', 'paragraphs' or 'files'")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise QuantGolfError(f"text {path}: {error.strerror}, expected a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        raise QuantGolfError(
            f"text {path}: byte {error.start:,} is not UTF-8, expected UTF-8 text; convert it first"
        ) from error


def _without_break(text: str) -> tuple[str, int]:
    """A text without the line break it ends in, and the bytes of that."""
    bare = text.removesuffix("\n")
    bare = bare if bare == text else bare.removesuffix("\r")
    return bare, len(text) - len(bare)


def _json_lines(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
    """The text field of every line that is not blank. Read as it is asked for: these files may be large."""
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _text_of(line, text_field, f"text {path}: line {number:,}"), 0
    except OSError as error:
        raise QuantGolfError(f"text {path}: {error.strerror}, expected a file of JSON lines") from error


def _text_of(line: bytes, text_field: str, where: str) -> str:
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise QuantGolfError(f"{where} is not JSON ({error}), expected one JSON object a line, in UTF-8") from error
    text = found.get(text_field) if isinstance(found, dict) else None
    if not isinstance(text, str):
        held = f"fields {', '.join(sorted(found)[:8])}" if isinstance(found, dict) else type(found).__name__
        raise QuantGolfError(
            f"{where} has no text in field {text_field!r} ({held or 'nothing'}), expected a JSON object that has; "
            "name the field with --text-field"
        )
    try:
        utf8_bytes(text)
    except QuantGolfError as error:
        raise QuantGolfError(f"{where}: {error}") from error
    return text
