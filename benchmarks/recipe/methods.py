"""Every method as one small function: a checkpoint, its calibration and a limit into a file's bytes and a module."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

from torch import nn

from quantgolf.checkpoint import Checkpoint, fill
from quantgolf.compress import Tuning, compress
from quantgolf.solve import Solver
from quantgolf.types import Calibration

from .coders import FOR_CODES
from .file import decode
from .fit import fit
from .solve import Recipe, Roles


class Made(NamedTuple):
    """A file, the module with the weights that were read back from it, and what there is to tell."""

    data: bytes
    module: nn.Module
    notes: dict[str, Any]


Method = Callable[[Checkpoint, Calibration, int], Made]


def recipe(
    which: Recipe,
    roles: Roles | None = None,
    coders: Sequence[str] = FOR_CODES,
    say: Callable[[str], None] = lambda line: None,
) -> Method:
    """The recipe, tuned to the limit by its own knob; arguments as `fit`."""

    def made(source: Checkpoint, learned: Calibration, max_bytes: int) -> Made:
        fitted = fit(source, learned, which, max_bytes, roles=roles, coders=coders, say=say)
        module = deepcopy(source.module)
        fill(module, decode(fitted.data), "the recipe's file", share=True)
        notes = {
            "factor": fitted.factor,
            "low_rank": fitted.low_rank.way,
            "low_rank_tensors": list(fitted.low_rank.names),
            "streams": {stream: asdict(choice) for stream, choice in fitted.choices.items()},
            "predicted_nats": fitted.loss,
            "solves": fitted.solves,
            "encodes": fitted.encodes,
        }
        return Made(fitted.data, module, notes)

    return made


def ours(solver: Solver | Literal["slope"] = "slope", tuning: Tuning | None = None, code_bytes: int = 0) -> Method:
    """quantgolf's one slope, with or without tuning, or one of its solvers at fixed widths; `code_bytes` of the limit
    are its decoder's."""

    def made(source: Checkpoint, learned: Calibration, max_bytes: int) -> Made:
        result = compress(
            source, learned, max_bytes=max_bytes, solver=solver, tuning=tuning, code_bytes=code_bytes, guard=False
        )
        notes: dict[str, Any] = {"predicted_nats": sum(report.loss for report in result.reports.values())}
        if code_bytes:
            notes["code_bytes"] = code_bytes
        if result.tuning is not None:
            notes["tuning"] = asdict(result.tuning)
        return Made(result.data, result.module(deepcopy(source.module)), notes)

    return made
