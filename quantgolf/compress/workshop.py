"""What files of one checkpoint and one calibration share: a matrix that was solved, predicted or factored for one of
them is there for the next, and no file depends on which were made before."""

from collections.abc import Sequence

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.fixed import FixedWidths, sizes_of
from quantgolf.compress.matrices import NOTHING_TO_QUANTIZE, choose
from quantgolf.compress.result import Progress
from quantgolf.compress.shelf import Shelf
from quantgolf.compress.slope import OneSlope
from quantgolf.encode import Codec
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.solve import SolveOptions, Solver
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Calibration


class Workshop:
    """Makes files of one checkpoint.

    Args:
        checkpoint: what is compressed.
        calibration: of it.
        code_bytes: raw bytes of source files that count towards limits.
        ranks: the processes that share the work; None for this one alone.
        progress: called with (stage, done, total).
        shelf: where solved matrices are kept while the work goes on, and taken from; not for several ranks.

    Raises:
        QuantGolfError: a calibration of another model, or one that saw no matrix; several ranks and a shelf.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration,
        *,
        code_bytes: int = 0,
        ranks: Ranks | None = None,
        progress: Progress | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        if shelf is not None and ranks is not None and ranks.world > 1:
            raise QuantGolfError(f"{ranks.world} ranks cannot share a shelf, expected one process; leave it out")
        self.checkpoint, self.stats = checkpoint, calibration.stats
        self.code_bytes, self.ranks, self.progress = code_bytes, ranks, progress
        self.matrices, self.kept = choose(checkpoint, calibration)
        if not self.matrices:
            raise QuantGolfError(NOTHING_TO_QUANTIZE)
        self.shelf = shelf
        if shelf is not None:
            shelf.open(checkpoint.fingerprint, (calibration.stats[name] for name in self.matrices))
        self._fixed: dict[object, FixedWidths] = {}
        self._slope: tuple[object, OneSlope] | None = None

    def fixed(
        self,
        solver: Solver,
        options: SolveOptions,
        group_sizes: Sequence[int | None] | None = None,
        codec: Codec = "auto",
    ) -> FixedWidths:
        """Files at fixed widths; what they keep is about a file a width."""
        what = solver, options, sizes_of(options, group_sizes), codec
        if what not in self._fixed:
            self._fixed[what] = FixedWidths(
                self.checkpoint, self.matrices, self.kept, self.stats, solver, options, self.code_bytes, self.ranks,
                self.progress, group_sizes, codec, self.shelf,
            )  # fmt: skip
        return self._fixed[what]

    def slope(self, options: SolveOptions, trellis: Trellis) -> OneSlope:
        """Files of one slope. What those of other options kept goes first, because factors take memory."""
        what = options, trellis
        if self._slope is None or self._slope[0] != what:
            self._slope = None
            self._slope = what, OneSlope(
                self.checkpoint, self.matrices, self.kept, self.stats, options, trellis, self.code_bytes, self.ranks,
                self.progress, self.shelf,
            )  # fmt: skip
        return self._slope[1]
