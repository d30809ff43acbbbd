"""What a file spends its bytes on, by kind, as `compress` and `inspect` show it."""

from rich.table import Table

from quantgolf.cli import show

PAYLOAD = ("levels", "codes")


def side_share(kinds: dict[str, int]) -> float:
    """The part of a file that is neither levels nor codes; code beside it does not count."""
    file_bytes = sum(count for kind, count in kinds.items() if kind != "code")
    return 1 - sum(kinds.get(kind, 0) for kind in PAYLOAD) / file_bytes


def table(kinds: dict[str, int], side: float) -> Table:
    """One row a kind, with its share of all bytes."""
    total = sum(kinds.values())
    rows = [(kind, f"{count:,}", f"{count / total:.2%}") for kind, count in kinds.items()]
    return show.table(f"side data: {side:.2%} of the file", ("kind", "bytes", "share"), rows)
