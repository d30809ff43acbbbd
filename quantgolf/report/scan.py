"""A sensitivity scan, found in the points themselves: files that differ from one other in the width of a single tensor,
or of all tensors of one role, and what those bytes were worth.

The tensors tell it, and not an option's name, so that scans of any program are found.
"""

import json
from dataclasses import dataclass

from quantgolf.report.frontier import paired_difference
from quantgolf.report.results import Panel
from quantgolf.sweep.point import FrontierPoint, Measured, Tensor

FEWEST = 3  # files that differ from one in this way make a scan
OF_WIDTHS = ("bits", "raised", "max_bytes")  # options of `quantgolf sweep` that decide widths alone
WIDER = 0.5  # bits that a tensor has more; with one slope all differ a little


@dataclass(frozen=True)
class Saving:
    """What tensors at a larger width save.

    Attributes:
        tensors: as they are in the base: one, or all of a role.
        point: the file where they are wider.
        kl: that it saves, bits per byte for each MB more, with the interval over documents where both have them.
    """

    tensors: tuple[Tensor, ...]
    point: FrontierPoint
    kl: Measured

    def name(self, by_role: bool) -> str:
        """Of the row of a picture that it belongs in."""
        return self.tensors[0].role if by_role else self.tensors[0].name


@dataclass(frozen=True)
class Scan:
    """The file in which no tensor is wider, and the savings in the order of its tensors.

    Attributes:
        by_role: whether some raise several tensors at once.
    """

    base: FrontierPoint
    savings: tuple[Saving, ...]

    @property
    def by_role(self) -> bool:
        return any(len(saving.tensors) > 1 for saving in self.savings)


def scan_of(panel: Panel) -> Scan | None:
    """The scan of most files among the points, of single tensors before one of roles; None where there is none."""
    known = [point for point in panel.points if point.tensors and point.kl is not None]
    best: Scan | None = None
    for base in known:
        single: dict[str, Saving] = {}
        roles: dict[str, Saving] = {}
        for point in known:
            if maker(point) == maker(base) and (point.bytes or 0) > (base.bytes or 0):
                raised = wider(base, point)
                if len(raised) == 1:
                    single.setdefault(raised[0].name, _saving(raised, base, point))
                if raised and raised == tuple(t for t in base.tensors if t.role == raised[0].role):
                    roles.setdefault(raised[0].role, _saving(raised, base, point))
        for found in (single, roles):
            if len(found) >= FEWEST and (best is None or len(found) > len(best.savings)):
                order = {tensor.name: index for index, tensor in enumerate(base.tensors)}
                best = Scan(base, tuple(sorted(found.values(), key=lambda saving: order[saving.tensors[0].name])))
    return best


def maker(point: FrontierPoint) -> str:
    """What made a file, but for its widths: its options without them, and its method where no option says that."""
    options = {name: value for name, value in point.options.items() if name not in OF_WIDTHS}
    options.setdefault("solver", point.method)
    return json.dumps(options, sort_keys=True)


def wider(base: FrontierPoint, point: FrontierPoint) -> tuple[Tensor, ...]:
    """The tensors that have more bits in `point` than in `base`, as they are in the base; none where some have fewer, a
    little more, or are not the same tensors."""
    bits = {tensor.name: tensor.bits for tensor in point.tensors}
    if len(bits) != len(base.tensors) or any(tensor.name not in bits for tensor in base.tensors):
        return ()
    differ = tuple(tensor for tensor in base.tensors if bits[tensor.name] != tensor.bits)
    return differ if all(bits[tensor.name] - tensor.bits >= WIDER for tensor in differ) else ()


def _saving(tensors: tuple[Tensor, ...], base: FrontierPoint, point: FrontierPoint) -> Saving:
    assert base.kl is not None and point.kl is not None and base.bytes is not None and point.bytes is not None
    rate = 1e6 / (point.bytes - base.bytes)
    if base.documents is None or point.documents is None:
        return Saving(tensors, point, Measured((base.kl.value - point.kl.value) * rate))
    found = paired_difference(base, point)
    low, high = (None if end is None else end * rate for end in (found.low, found.high))
    return Saving(tensors, point, Measured(found.value * rate, low, high))
