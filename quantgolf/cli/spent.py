"""What a file spends its bytes on, by kind, as `compress` and `inspect` show it."""

from rich.table import Table

from quantgolf.blob.container import DIGEST_BYTES
from quantgolf.cli import show
from quantgolf.types import CodedModel

PAYLOAD = ("levels", "codes")


def by_kind(coded: CodedModel, file_bytes: int, code_bytes: int = 0) -> dict[str, int]:
    """Bytes of a file by kind, in its order, and those of the code that counts with it; together all that counts.

    Tables of frequencies count with what they code, the magic and the version with the header.
    """
    found = {
        "levels": len(coded.levels),
        "codes": sum(len(block.codes) for tensor in coded.tensors for block in tensor.blocks),
        "exponents": len(coded.exponents),
        "steps": len(coded.steps),
        "small tensors": len(coded.small),
        "header": file_bytes - len(coded.streams()) - DIGEST_BYTES,
        "checksum": DIGEST_BYTES,
        "code": code_bytes,
    }
    return {kind: count for kind, count in found.items() if count}


def side_share(kinds: dict[str, int]) -> float:
    """The part of a file that is neither levels nor codes; code beside it does not count."""
    file_bytes = sum(count for kind, count in kinds.items() if kind != "code")
    return 1 - sum(kinds.get(kind, 0) for kind in PAYLOAD) / file_bytes


def table(kinds: dict[str, int], side: float) -> Table:
    """One row a kind, with its share of all bytes."""
    total = sum(kinds.values())
    rows = [(kind, f"{count:,}", f"{count / total:.2%}") for kind, count in kinds.items()]
    return show.table(f"side data: {side:.2%} of the file", ("kind", "bytes", "share"), rows)
