"""Sums of several recorders put together, overlaps resolved, and turned into statistics."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from quantgolf.calibrate.place import Kind
from quantgolf.calibrate.record import Recorder, Sums
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.types import Block, WeightStats, WeightUse

Key = tuple[Kind, Block]


class Totals:
    """Sums of parts of the text, added in the text's order so that who computed them makes no difference."""

    def __init__(self) -> None:
        self.sums: dict[Key, Sums] = {}
        self.passed_over: dict[str, set[str]] = {}

    def add(self, part: Recorder, ranks: Ranks) -> None:
        """Adds the part of every rank, in their order."""
        heads = ranks.gather(
            ([(k, s.size, s.visits, s.gradients, s.calls) for k, s in part.sums.items()], part.passed_over)
        )
        for source, (entries, passed_over) in enumerate(heads):
            for key, size, visits, gradients, calls in entries:
                mine = part.sums[key] if source == ranks.rank else None
                row, column = self._received(key, size, mine, part, ranks, source)
                self._add(key, Sums(size, row, column, visits, gradients, calls))
            for name, why in passed_over.items():
                self.passed_over.setdefault(name, set()).update(why)

    def drop_without_gradient(self) -> None:
        """Passes over what was summed and never got a gradient: what an error of it costs is not known."""
        for (kind, block), part in list(self.sums.items()):
            if part.row is not None and not part.gradients:
                operations = ", ".join(part.calls)
                self.passed_over.setdefault(block.parameter, set()).add(f"{operations} that no gradient reaches")
                del self.sums[kind, block]

    def _received(
        self, key: Key, size: tuple[int, int], mine: Sums | None, part: Recorder, ranks: Ranks, source: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if not part.wants(key[1].parameter):
            return None, None
        if mine is not None:
            row, column = mine.row, mine.column
        else:
            row = torch.empty(size[0], device=part.device)
            column = torch.empty(size[1], size[1], device=part.device)
        assert row is not None and column is not None
        ranks.share([row, column], source)
        return row, column

    def _add(self, key: Key, part: Sums) -> None:
        total = self.sums.get(key)
        if total is None:
            self.sums[key] = part
            return
        if total.row is not None and part.row is not None:
            total.row += part.row
        if total.column is not None and part.column is not None:
            total.column += part.column
        total.visits += part.visits
        total.gradients += part.gradients
        for operation, calls in part.calls.items():
            total.calls[operation] = total.calls.get(operation, 0) + calls


def refined(sums: dict[Key, Sums]) -> dict[Key, Sums]:
    """Blocks of one parameter that overlap (used whole here and by slices there) cut at each other's edges."""
    edges: dict[str, set[int]] = {}
    for _, block in sums:
        edges.setdefault(block.parameter, set()).update((block.start, block.stop))
    found: dict[Key, Sums] = {}
    for (kind, block), part in sums.items():
        inner = sorted(edge for edge in edges[block.parameter] if block.start <= edge <= block.stop)
        for start, stop in itertools.pairwise(inner):
            cut = Block(block.parameter, block.lead, start, stop, block.transposed)
            span = slice(start - block.start, stop - block.start)
            size, row, column = part.size, part.row, part.column
            if block.transposed:
                size = (size[0], stop - start)
                column = None if column is None else column[span, span]
            else:
                size = (stop - start, size[1])
                row = None if row is None else row[span]
            other = found.get((kind, cut))
            if other is None:
                found[kind, cut] = Sums(size, row, column, part.visits, part.gradients, dict(part.calls))
                continue
            calls = {op: other.calls.get(op, 0) + part.calls.get(op, 0) for op in {**other.calls, **part.calls}}
            found[kind, cut] = Sums(
                size,
                _sum(other.row, row),
                _sum(other.column, column),
                other.visits + part.visits,
                other.gradients + part.gradients,
                calls,
            )
    return found


def statistics(sums: dict[Key, Sums], names: dict[Block, str], tokens: int) -> dict[str, WeightStats]:
    """Statistics by matrix name of everything summed; the sums are used up.

    Raises:
        QuantGolfError: values that are not finite.
    """
    uses: dict[Block, list[WeightUse]] = {}
    for (kind, block), part in sums.items():
        if part.row is None or part.column is None:
            continue
        if not (part.row.isfinite().all() and part.column.isfinite().all()):
            raise QuantGolfError(
                f"calibration of {names[block]} ({kind}) gave values that are not finite, expected finite activations "
                "and gradients: run the model in fp32, on other calibration text if that does not help"
            )
        row, column = (part.visits, tokens) if kind == "linear" else (tokens, part.visits)
        uses.setdefault(block, []).append(WeightUse(kind, part.row / row, part.column / column, part.visits))
        part.row = part.column = None
    return {name: WeightStats(name, tuple(uses[block]), tokens) for block, name in names.items() if block in uses}


def ordered(blocks: Iterable[Block], shapes: dict[str, tuple[int, ...]]) -> dict[Block, str]:
    """The names of blocks, in the model's order."""
    place = {name: index for index, name in enumerate(shapes)}
    found = sorted(set(blocks), key=lambda block: (place[block.parameter], block.start))
    return {block: block.name(shapes[block.parameter]) for block in found}


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else first + second
