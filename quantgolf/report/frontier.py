"""Which points no other beats, which are worth a picture of their own, and paired differences at about equal bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantgolf.errors import QuantGolfError
from quantgolf.evaluate.interval import per_byte
from quantgolf.report.results import Panel
from quantgolf.sweep.point import FrontierPoint, Measured

# Files of a byte budget differ by what they leave of it: fixed widths by up to 0.7% on the demo.
ABOUT_EQUAL = 0.02


@dataclass(frozen=True)
class Paired:
    """A point beside the best one of about as many bytes.

    Attributes:
        best: that point; the point itself where none beats it.
        kl: KL of the point minus that of the best, bits per byte, with the interval over documents that both share;
            None for the best itself.
    """

    best: FrontierPoint
    kl: Measured | None


def frontier(points: Sequence[FrontierPoint], metric: str = "kl") -> list[FrontierPoint]:
    """The points that no other one beats: none is as small and loses as little, and is smaller or loses less.

    A file that comes near its limit is as large as that (see `size_of`): which of two solvers left a few bytes more of
    it says nothing about either.

    Args:
        points: measured ones; those without the metric are never among them.
        metric: "kl" or "delta_bpb".

    Returns:
        By bytes; of equal points all.
    """
    known = sorted(
        (p for p in points if loss_of(p, metric) is not None), key=lambda p: (size_of(p), _loss(p, metric), p.key)
    )
    found: list[FrontierPoint] = []
    for point in known:
        equal = found and (size_of(found[-1]), _loss(found[-1], metric)) == (size_of(point), _loss(point, metric))
        if not found or equal or _loss(point, metric) < _loss(found[-1], metric):
            found.append(point)
    return found


def chosen(panel: Panel, most: int) -> list[FrontierPoint]:
    """At most so many points of the frontier that tell of their tensors, from the smallest file to the largest.

    Where none of the frontier does, all points that do are chosen from.
    """
    on = [point for point in frontier(panel.points) if point.tensors]
    on = on or [point for point in panel.points if point.tensors]
    if len(on) <= most:
        return on
    return [on[round(index)] for index in np.linspace(0, len(on) - 1, most)]


def rivals(panel: Panel, most: int) -> list[FrontierPoint]:
    """The best point of each of the `most` best methods at about equal bytes, where most methods have one.

    Only points whose tensors have a predicted loss; by KL, the best first.
    """
    known = [point for point in panel.points if point.kl is not None and priced(point)]
    groups = []
    for point in known:
        best: dict[str, FrontierPoint] = {}
        for other in sorted(about_as_large(point, known), key=lambda p: _loss(p, "kl")):
            best.setdefault(other.method, other)
        groups.append(list(best.values()))
    if not groups:
        return []
    largest = max(map(len, groups))
    fullest = [group for group in groups if len(group) == largest]
    return fullest[len(fullest) // 2][:most]


def priced(point: FrontierPoint) -> bool:
    """Whether some tensor of it has a predicted loss."""
    return any(tensor.loss is not None and tensor.loss > 0 and tensor.bytes > 0 for tensor in point.tensors)


def about_as_large(point: FrontierPoint, points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points whose bytes are within `ABOUT_EQUAL` of this one's, itself among them."""
    assert point.bytes is not None
    return [p for p in points if p.bytes is not None and abs(p.bytes - point.bytes) <= ABOUT_EQUAL * point.bytes]


def paired(panel: Panel, seed: int = 0) -> dict[str, Paired]:
    """For each point with documents, by key, how far its KL is from the best one's of about as many bytes.

    Points of one panel are of one text; documents of other bytes would mean otherwise.

    Raises:
        QuantGolfError: they are.
    """
    known = [point for point in panel.points if point.documents is not None]
    found = {}
    for point in known:
        best = min(about_as_large(point, known), key=lambda p: (sum(p.documents.kl) if p.documents else 0, p.key))
        found[point.key] = Paired(best, None if best is point else paired_difference(point, best, seed))
    return found


def size_of(point: FrontierPoint) -> int:
    """The limit that a file was made for where it leaves no more of it than `ABOUT_EQUAL`, its bytes otherwise."""
    assert point.bytes is not None
    near = point.limit is not None and (1 - ABOUT_EQUAL) * point.limit <= point.bytes <= point.limit
    return point.limit if near and point.limit is not None else point.bytes


def loss_of(point: FrontierPoint, metric: str) -> Measured | None:
    """`point.kl` or `point.delta_bpb`."""
    return point.kl if metric == "kl" else point.delta_bpb


def _loss(point: FrontierPoint, metric: str) -> float:
    measured = loss_of(point, metric)
    assert measured is not None
    return measured.value


def paired_difference(point: FrontierPoint, best: FrontierPoint, seed: int = 0) -> Measured:
    """KL of `point` minus that of `best`, both with documents, bits per byte, with its 95% interval.

    Raises:
        QuantGolfError: documents of different bytes.
    """
    assert point.documents is not None and best.documents is not None
    if point.documents.bytes != best.documents.bytes:
        raise QuantGolfError(
            f"points {point.key} and {best.key} have documents of different bytes under one text fingerprint, expected "
            "the same: measure both on one text"
        )
    nats = np.asarray(point.documents.kl, dtype=np.float64) - np.asarray(best.documents.kl, dtype=np.float64)
    return Measured.of(per_byte(nats, np.asarray(point.documents.bytes, dtype=np.int64), seed))
