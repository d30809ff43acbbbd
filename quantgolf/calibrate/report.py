"""What calibration saw of each parameter, in words."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from quantgolf.calibrate.capture import parameters_of
from quantgolf.calibrate.record import Sums
from quantgolf.calibrate.totals import Key
from quantgolf.types import Block, ParameterReport

Status = Literal["captured", "partly", "followed in part"]
NEVER_USED = "the forward pass was never seen to use it"


def report(
    model: nn.Module, sums: Mapping[Key, Sums], passed_over: Mapping[str, set[str]]
) -> tuple[ParameterReport, ...]:
    """One report for each parameter of the model, in its order; a tied one by the first of its names."""
    met: dict[str, list[tuple[Block, Sums]]] = {}
    for (_, block), part in sums.items():
        met.setdefault(block.parameter, []).append((block, part))
    found = []
    for name, parameter in parameters_of(model).items():
        shape, parts = tuple(parameter.shape), met.get(name, [])
        others = ", ".join(sorted(passed_over.get(name, ())))
        if not parts and (sum(size > 1 for size in shape) < 2 or not parameter.is_floating_point()):
            found.append(ParameterReport(name, shape, "small", (), 0, "it is no matrix"))
        elif not parts:
            unseen = f"used only in {others}, which is not followed" if others else NEVER_USED
            if parameter.numel() and not parameter.is_contiguous():
                unseen = "its elements do not lie in memory in order, so that its uses cannot be told"
            found.append(ParameterReport(name, shape, "not seen", (), 0, unseen))
        else:
            lead = parts[0][0].lead
            missing = _gaps(parts, parameter.shape[:lead].numel())
            why = [f"rows {missing} were never used"] * bool(missing)
            why += [f"also used in {others}, which is not followed"] * bool(others)
            visits: dict[Block, int] = {}
            for block, part in parts:
                visits[block] = visits.get(block, 0) + part.visits
            status: Status = "followed in part" if others else "partly" if missing else "captured"
            found.append(ParameterReport(name, shape, status, _uses(parts), min(visits.values()), ", and ".join(why)))
    return tuple(found)


def _uses(parts: list[tuple[Block, Sums]]) -> tuple[str, ...]:
    calls: dict[str, int] = {}
    for _, part in parts:
        for operation, count in part.calls.items():
            calls[operation] = calls.get(operation, 0) + count
    rows = sum(part.visits for _, part in parts)
    return (*(f"{operation} ×{count:,}" for operation, count in calls.items()), f"{rows:,} rows")


def _gaps(parts: list[tuple[Block, Sums]], rows: int) -> str:
    """The ranges of rows that no block covers: `0-31, 64-95`."""
    gaps, at = [], 0
    for start, stop in sorted({(block.start, block.stop) for block, _ in parts}):
        if start > at:
            gaps.append(f"{at}-{start - 1}")
        at = max(at, stop)
    if at < rows:
        gaps.append(f"{at}-{rows - 1}")
    return ", ".join(gaps)
