"""Says no to a budget that nothing can meet, before any text is read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantgolf.allocate import widths_by_hand
from quantgolf.calibrate import weights as capturable
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress.assembly import Assembly
from quantgolf.compress.budget import unreachable
from quantgolf.compress.candidates import Candidates
from quantgolf.solve import WIDTHS, SolveOptions, Solver
from quantgolf.types import WeightStats, WeightUse

# Without text every input channel counts alike, which moves the clips and with them the size: by up to 2.2% on the
# demo and the golf model at 2 bits.
MARGIN = 0.04


def refuse_unreachable(
    checkpoint: Checkpoint,
    max_bytes: int,
    *,
    rules: Sequence[tuple[str, int]] | None = None,
    solver: Solver = "gptq",
    code_bytes: int = 0,
) -> None:
    """Refuses a budget that no widths (or not those of `rules`) can meet, within `MARGIN` of certainty.

    What lies within the margin is decided after calibration. Budgets so large that any codes fit cost no time.

    Raises:
        BudgetError: the smallest file takes more; `nearest` is a size that surely suffices.
        QuantGolfError: rules that do not fit the checkpoint's names.
    """
    weights = {name: checkpoint.tensors[name].float() for name, _ in capturable(checkpoint.module)}
    bits = dict.fromkeys(weights, WIDTHS[0]) if rules is None else widths_by_hand(rules, weights)
    whole = sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if name not in bits)
    packed = sum(weights[name].numel() * width for name, width in bits.items()) // 8
    if max_bytes >= code_bytes + whole + packed + sum(4 * len(weight) for weight in weights.values()) + 4096:
        return
    stats = {name: uniform(name, weight) for name, weight in weights.items()}
    # GPTQ chooses its clips as GPTQ-lite does where all columns count alike.
    stand_in: Solver = "rtn" if solver == "rtn" else "gptq_lite"
    size = len(Assembly(checkpoint, Candidates(weights, stats, stand_in, SolveOptions())).file(bits))
    if code_bytes + size * (1 - MARGIN) > max_bytes:
        raise unreachable(max_bytes, code_bytes + int(size * (1 + MARGIN)), bits)


def uniform(name: str, weight: Tensor) -> WeightStats:
    """Statistics that know nothing: every row and every column of a weight [N, K] counts one."""
    use = WeightUse("linear", torch.ones(weight.shape[0]), torch.eye(weight.shape[1]), visits=1)
    return WeightStats(name, (use,), tokens=1)
