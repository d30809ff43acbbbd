"""Running sums over every use of every block of every parameter."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from quantgolf.calibrate.place import Corner, Kind, choose, corner, places_of, size_of
from quantgolf.calibrate.track import Piece
from quantgolf.calibrate.uses import Use
from quantgolf.types import ROWS_AT_ONCE, Block

# Rows whose gradients' products are summed: more take 256 MiB and more. Heads of vocabularies gain next to nothing by
# them, 0.005 bit a weight.
MOST_OUTPUTS = 8192


@dataclass
class Sums:
    """Running sums of one kind of use of one block, fp32.

    Attributes:
        size: [N, K].
        row, column: [N] and [K, K]; None where only counted.
        outputs: [N, N], the sum of g gᵀ over visits, g the gradient at the output; None unless `kept`, or only counted.
        fourth: fp64 scalar beside `outputs`, the sum over visits of ‖g‖⁴ - Σ_i g_i⁴, which tells how noisy they are.
        visits: rows of activations.
        gradients: operations whose output leads to the loss.
        kept: whether `outputs` are summed, or would be: uses are linear and made all N outputs each time, which are
            not too many, and nothing else was known of the block.
        calls: operations by name.
    """

    size: tuple[int, int]
    row: Tensor | None = None
    column: Tensor | None = None
    outputs: Tensor | None = None
    fourth: Tensor | None = None
    visits: int = 0
    gradients: int = 0
    kept: bool = False
    calls: dict[str, int] = field(default_factory=dict)

    def make_room(self, device: torch.device | None) -> None:
        """Zeros for everything that is summed."""
        rows, columns = self.size
        self.row = torch.zeros(rows, device=device)
        self.column = torch.zeros(columns, columns, device=device)
        if self.kept:
            self.outputs = torch.zeros(rows, rows, device=device)
            self.fourth = torch.zeros((), dtype=torch.float64, device=device)


def only_linear(sums: Mapping[tuple[Kind, Block], Sums], block: Block) -> bool:
    """Whether a block has no uses of another kind, so that G of its linear uses can serve."""
    others: tuple[Kind, ...] = ("lookup", "crossed")
    return not any((other, block) in sums for other in others)


class Recorder:
    """The sums met so far, and why other parameters were passed over.

    Args:
        only: parameters to sum up; None for all. The others are counted, not summed.
        seen: who watched a forward pass before: how parameters were first used, and whose G is of no use, are known
            from there.
        device: of the sums.
    """

    def __init__(
        self,
        only: Collection[str] | None = None,
        seen: "Recorder | None" = None,
        device: torch.device | None = None,
    ) -> None:
        self.only, self.device = only, device
        self.sums: dict[tuple[Kind, Block], Sums] = {}
        self.passed_over: dict[str, set[str]] = {}
        self.sides: dict[str, tuple[int, bool]] = dict(seen.sides) if seen else {}  # (lead, transposed)
        self._before = dict(seen.sums) if seen else {}
        self._waiting: list[tuple[Tensor, Sums, Callable[[Tensor], None]]] = []
        self._input: tuple[int, int, tuple[int, ...], tuple[int, ...]] | None = None
        self._held: Tensor | None = None
        self._gram: Tensor | None = None
        self._rows: int | None = None

    def wants(self, parameter: str) -> bool:
        """Whether sums of a parameter are kept."""
        return self.only is None or parameter in self.only

    def summed_visits(self) -> int:
        """Rows of activations behind everything that is summed so far."""
        return sum(part.visits for part in self.sums.values() if part.row is not None)

    def meet(self, use: Use, pieces: list[Piece], output: Tensor, operation: str) -> None:
        """Adds what the inputs of a use teach, and has the gradient of `output` add the rest when it comes."""
        if not use.inputs.numel() or (use.kind == "linear" and not self._filled(use.inputs)):
            return  # an expert that no token came to
        for piece in pieces:
            name = piece.home.name
            place = choose(places_of(piece), self.sides.get(name))
            if place is None:
                self.pass_over(name, f"{operation} with parts that are no rows or columns of it")
                continue
            transposed = self.sides.setdefault(name, (place.lead, place.turned))[1]
            crossed = place.turned != transposed
            if crossed and use.kind == "lookup":
                self.pass_over(name, f"{operation} along its inputs")
                continue
            kind: Kind = "crossed" if crossed else use.kind
            sums = self._sums(kind, place.block(transposed), size_of(place, transposed))
            if transposed and not place.whole_rows:
                sums.kept, sums.outputs, sums.fourth = False, None, None
            sums.calls[operation] = sums.calls.get(operation, 0) + 1
            sums.visits += use.inputs.numel() if kind == "lookup" else self._filled(use.inputs)
            if sums.row is not None and sums.column is not None:
                add = self._add(sums, kind, use, piece.rows, corner(place, transposed))
                if not _hooked(output, sums, add):
                    self._waiting.append((output, sums, add))

    def _add(self, sums: Sums, kind: Kind, use: Use, rows: range, into: Corner) -> Callable[[Tensor], None]:
        """Adds to the corner of the row weights [N] and the column matrix [K, K] that this use fills; returns what to
        do with the gradient of its output."""
        assert sums.row is not None and sums.column is not None
        row, column = sums.row[into.rows], sums.column[into.columns, into.columns]
        mine = slice(rows.start, rows.stop)
        if kind == "linear":
            column += self._gram_of(use.inputs)
            return partial(_add_products, sums, row, use, mine)
        if kind == "crossed":
            row += use.inputs.float().square().sum(0)
            return partial(_add_gram, column, use, mine)
        row += torch.bincount(use.inputs.flatten(), minlength=use.shape[0])[mine]
        inside = ((use.inputs >= rows.start) & (use.inputs < rows.stop)).flatten()
        return partial(_add_looked_up, column, use, inside)

    def pass_over(self, name: str, why: str) -> None:
        self.passed_over.setdefault(name, set()).add(why)

    def forget(self) -> None:
        """Ends a forward pass. What an `autograd.Function` computed has its place in the graph only now."""
        for output, sums, add in self._waiting:
            _hooked(output, sums, add)
        self._waiting.clear()
        self._input = self._held = self._gram = self._rows = None

    def _sums(self, kind: Kind, block: Block, size: tuple[int, int]) -> Sums:
        if (kind, block) not in self.sums:
            before = self._before.get((kind, block))
            kept = kind == "linear" and size[0] <= MOST_OUTPUTS and (before is None or before.kept)
            kept = kept and only_linear(self._before, block) and only_linear(self.sums, block)
            self.sums[kind, block] = sums = Sums(size, kept=kept)
            if self.wants(block.parameter):
                sums.make_room(self.device)
        return self.sums[kind, block]

    def _filled(self, x: Tensor) -> int:
        """Rows of x [T, K] that are not zero: those of a padded expert were no visits."""
        if not self._last(x) or self._rows is None:
            self._rows = int(x.detach().any(1).sum())
        return self._rows

    def _gram_of(self, x: Tensor) -> Tensor:
        """x xᵀ summed over rows [T, K], in fp32; the last one is kept, because q, k and v share their input."""
        if not self._last(x) or self._gram is None:
            self._gram = gram(x.detach())
        return self._gram

    def _last(self, x: Tensor) -> bool:
        """Whether x is what was looked at last, unchanged; it is from now on."""
        seen = (x.data_ptr(), 0 if x.is_inference() else x._version, tuple(x.shape), x.stride())
        if seen == self._input:
            return True
        # Holding x keeps its memory, and with it its address, from being taken by another tensor.
        self._input, self._held, self._gram, self._rows = seen, x, None, None
        return False


def _hooked(output: Tensor, sums: Sums, add: Callable[[Tensor], None]) -> bool:
    """Has the gradient of an output call `add`, where one will come. A hook belongs to the value the output has now,
    whatever is done to it in place afterwards."""

    def count_and_add(gradient: Tensor) -> None:
        sums.gradients += 1
        with torch.no_grad():
            add(gradient)

    if output.requires_grad:
        output.register_hook(count_and_add)  # type: ignore[no-untyped-call]
    return output.requires_grad


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ rows in fp32 whatever the autocast state: in bf16 the sum stops being positive definite."""
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.float()
        return rows.T @ rows


def _add_products(sums: Sums, row: Tensor, use: Use, mine: slice, gradient: Tensor) -> None:
    g = use.rows(gradient)[:, mine].float()
    squares = g.square()
    row += squares.sum(0)
    if sums.outputs is None or sums.fourth is None:
        return
    sums.outputs += gram(g)
    for part in torch.split(squares, max(1, ROWS_AT_ONCE // g.shape[1])):
        part = part.double()
        sums.fourth += part.sum(1).square().sum() - part.square().sum()


def _add_gram(column: Tensor, use: Use, mine: slice, gradient: Tensor) -> None:
    column += gram(use.rows(gradient)[:, mine])


def _add_looked_up(column: Tensor, use: Use, inside: Tensor, gradient: Tensor) -> None:
    column += gram(use.rows(gradient)[inside])
