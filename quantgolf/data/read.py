"""Files of every kind into a corpus; a kind is told by the file's suffix."""

from collections.abc import Sequence
from pathlib import Path

from quantgolf.data.corpus import Corpus, gather
from quantgolf.data.documents import Documents, read_documents
from quantgolf.data.open import open_tokenizer
from quantgolf.data.shards import SUFFIX, read_shards
from quantgolf.data.tokenizer import Tokenizer
from quantgolf.errors import QuantGolfError

Paths = str | Path | Sequence[str | Path]


def read_corpus(
    paths: Paths,
    tokenizer: Tokenizer | str | Path,
    documents: Documents = "lines",
    *,
    bos: bool = True,
    max_tokens: int | None = None,
    text_field: str = "text",
    byte_counts: Paths = (),
) -> Corpus:
    """Reads text or shards.

    Args:
        paths: UTF-8 text; .jsonl files, each line a JSON object with a text field and one document; or golf shards
            (.bin), which `read_shards` describes.
        tokenizer: one, or what `open_tokenizer` opens.
        documents: of plain text. "lines": every line that is not blank, its line break counted but not tokenised, as
            Parameter Golf does; "paragraphs": what lies between blank lines, line breaks inside are tokenised;
            "files": whole files, everything is tokenised.
        bos: whether each document begins with the tokenizer's BOS; take what the model was trained with.
        max_tokens: stop with the document that reaches so many; shards stop at exactly so many.
        text_field: where JSON lines have their text.
        byte_counts: sidecars of shards.

    Raises:
        QuantGolfError: unreadable, without any document, or not what it claims to be; a tokenizer without the BOS
            asked for; text and shards at once, whose bytes are not counted alike.
    """
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = open_tokenizer(tokenizer)
    files, sidecars = _paths(paths), _paths(byte_counts)
    shards = [path for path in files if path.suffix == SUFFIX]
    if shards and len(shards) < len(files):
        raise QuantGolfError(
            f"{len(shards)} of {len(files)} files are shards ({SUFFIX}), expected all or none: their bytes are counted "
            "in different ways, so measure them one by one"
        )
    if sidecars and not shards:
        raise QuantGolfError(f"--byte-counts is given without a shard, expected --data with a {SUFFIX} file")
    if shards:
        return read_shards(shards, sidecars, tokenizer, bos=bos, max_tokens=max_tokens)
    pieces = (piece for path in files for piece in read_documents(path, documents, text_field))
    corpus = gather(pieces, tokenizer, bos, max_tokens)
    if not len(corpus.bytes):
        raise QuantGolfError(
            f"text {', '.join(map(str, files)) or '(no file)'}: 0 documents in it, expected text that is not blank"
        )
    return corpus


def _paths(given: Paths) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]
