"""Calibration of models whose weights and statistics do not fit together: groups of layers, one pass over the text
each, their statistics written to disk before the next.

What lies behind a group's first layer is all that its pass keeps for backward, so that passes get cheaper towards
the end of the model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from quantgolf.calibrate import collect, survey
from quantgolf.calibrate.report import NEVER_USED
from quantgolf.calibrate.store import Origin, Writer, read_calibration, text_digest
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.matrices import Matrices
from quantgolf.compress.memory import resident_bytes
from quantgolf.compress.pipeline import counter
from quantgolf.compress.rehearse import held_sizes, rehearse, statistics_bytes
from quantgolf.compress.result import Progress
from quantgolf.errors import QuantGolfError
from quantgolf.ranks import Ranks
from quantgolf.types import Calibration, ParameterReport

SPARE = 0.1  # of the limit: with 0.03 SmolLM2-135M took 5% more than it


def calibrate_to(
    folder: Path,
    checkpoint: Checkpoint,
    batches: Sequence[tuple[Tensor, Tensor]],
    settings: dict[str, object],
    *,
    memory: int | None = None,
    overwrite: bool = False,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrates into a folder of statistics, which exists whole or not at all.

    Args:
        folder: where `read_calibration` will find them; every rank has to see it.
        checkpoint: from `open_checkpoint`.
        batches: from `batches_of`.
        settings: what made the batches, kept with the statistics; `seed` is the labels'.
        memory: bytes the process may take; statistics are then summed in as many passes over the text as that asks
            for. None sums all in one.
        overwrite: replace statistics that lie there.
        ranks: the processes that share the text; None for this one alone.
        progress: called with (stage, done, total).

    Raises:
        QuantGolfError: a folder that cannot be written, a limit too small for one parameter, and as `collect`.
    """
    ranks = ranks or Ranks()
    seed = int(str(settings["seed"]))
    groups: list[list[str] | None] = [None]
    if memory is not None:
        # Processes differ in what they hold: the first one's plan is everybody's.
        groups = list(ranks.gather(plan_groups(checkpoint, batches, memory))[0])
    writer = Writer(folder, overwrite) if ranks.writes else None
    try:
        count = counter(progress, "calibrating", batches, passes=len(groups))
        reports: dict[str, ParameterReport] = {}
        for group in groups:
            part = collect(checkpoint.module, batches, seed=seed, only=group, ranks=ranks, progress=count)
            # Each pass knows best of the parameters it summed.
            reports |= {r.name: r for r in part.parameters if group is None or r.name in group or r.name not in reports}
            if writer is not None:
                writer.add(part.stats)
        if writer is not None:
            part = replace(part, parameters=tuple(reports[report.name] for report in part.parameters))
            writer.finish(part, Origin(checkpoint.fingerprint, text_digest(list(batches)), settings))
        ranks.gather(None)
    finally:
        if writer is not None:
            writer.discard()
    return read_calibration(folder, checkpoint.fingerprint)[0]


def plan_groups(checkpoint: Checkpoint, batches: Sequence[tuple[Tensor, Tensor]], memory: int) -> list[list[str]]:
    """Parameters in the model's order, in groups whose statistics fit into `memory` beside everything else.

    Raises:
        QuantGolfError: one parameter alone takes more.
    """
    seen, held = survey(checkpoint.module, batches[0][0][:1]), resident_bytes()
    taken = held + rehearse(checkpoint.module, seen, batches[0]).activation_bytes
    room = int(memory * (1 - SPARE)) - taken
    sizes = sizes_by_parameter(Matrices(checkpoint, seen.blocks), seen)
    # What the first window did not meet may be met later; those go last, in a group of their own. What it met in a
    # way that is not followed has most likely nothing to sum, and is worth no pass.
    unseen = {report.name: report.why for report in seen.parameters if report.status == "not seen"}
    late = [name for name, why in unseen.items() if why == NEVER_USED]
    needs = {name: statistics_bytes(parts) for name, parts in sizes.items()}
    largest = max(needs, key=needs.__getitem__, default=None)
    if largest is not None and needs[largest] > room:
        # Another run may start with a little more in memory than this one has.
        enough = int(1.03 * (taken + needs[largest]) / (1 - SPARE))
        raise QuantGolfError(
            f"a memory of {memory:,} bytes is too small: the process takes {taken:,} with the activations of one "
            f"batch, and the statistics of {largest} {needs[largest]:,}; give --memory {enough} or more, or a smaller "
            "--length"
        )
    groups: list[list[str]] = []
    used = room + 1
    for name, need in needs.items():
        if used + need > room:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += need
    groups = groups or [[]]
    groups[-1] += [name for name, why in unseen.items() if why != NEVER_USED]
    return [*groups, late] if late else groups


def sizes_by_parameter(matrices: Matrices, seen: Calibration) -> dict[str, list[tuple[int, ...]]]:
    """`held_sizes` of each matrix of each parameter."""
    sizes: dict[str, list[tuple[int, ...]]] = {}
    for name, block in matrices.blocks.items():
        sizes.setdefault(block.parameter, []).extend(held_sizes({name: matrices.size(name)}, seen))
    return sizes
