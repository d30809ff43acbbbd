"""Which of many points are worth having."""

from collections.abc import Callable, Sequence

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import FrontierPoint


def front(points: Sequence[FrontierPoint], value: Callable[[FrontierPoint], float | None]) -> set[str]:
    """Keys of the points that none beats: as few bytes and less loss, or fewer bytes and as little."""
    best, found = float("inf"), set()
    rows = [(p.bytes or 0, v, p.key) for p in points if p.status == "done" and (v := value(p)) is not None]
    for _, loss, key in sorted(rows):
        if loss < best:
            best = loss
            found.add(key)
    return found


def best_of(points: Sequence[FrontierPoint], within: int | None = None) -> FrontierPoint:
    """The measured point of the least KL, and of the fewest bytes among equals.

    Raises:
        QuantGolfError: there is none, or none within so many bytes.
    """
    rows = [(p.kl.value, p.bytes, p.key, p) for p in points if p.kl is not None and p.bytes is not None]
    fit = [row for row in rows if within is None or row[1] <= within]
    if not fit:
        what = f"no point fits {within:,} bytes, the smallest has {min(row[1] for row in rows):,}" if rows else ""
        raise QuantGolfError(f"{what or 'no point was measured'}, expected one to pick")
    return min(fit)[3]
