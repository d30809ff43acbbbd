"""The guard: what a solver chose is measured on text that its statistics have not seen, beside the plain plan of the
same width everywhere, and the better one is kept. A plan that learned its text by heart, or whose model of the loss
does not hold for this network, loses here and not at the user's."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from quantgolf.checkpoint import Checkpoint
from quantgolf.checkpoint.call import gives_logits
from quantgolf.compress.fixed import FixedWidths
from quantgolf.compress.heldout import HeldOut
from quantgolf.compress.result import Compressed, Guarded, Judged, Progress, stage
from quantgolf.compress.targets import Promise
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import evaluate_against
from quantgolf.ranks import Ranks
from quantgolf.solve import Solver

Judge = Callable[[Compressed], Judged]


def unjudgeable(checkpoint: Checkpoint) -> str | None:
    """Why results of this checkpoint cannot be compared with it on text; None where they can."""
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=next(checkpoint.module.parameters()).device)
    try:
        if gives_logits(checkpoint.module, tokens):
            return None
    except QuantGolfError:
        raise
    except Exception:  # whatever the user's own code raises on two tokens; a whole window may do
        return None
    return "the model gives its loss and no logits, which KL needs"


def judge_on(
    held_out: HeldOut, checkpoint: Checkpoint, ranks: Ranks | None = None, progress: Progress | None = None
) -> Judge:
    """A function that measures a result against the float model. With several ranks one measures and all know."""

    def judge(result: Compressed) -> Judged:
        return (ranks or Ranks()).spread([1.0], lambda _: _judged(result, held_out, checkpoint, progress))[0]

    return judge


def guarded(
    result: Compressed,
    own: Judged,
    solver: Solver | Literal["slope"],
    fixed: FixedWidths,
    judge: Judge,
    max_bytes: int,
    promise: Promise | None = None,
) -> Compressed:
    """The better of a result and the widest uniform width that fits, with `guard` and `held_out` saying which and why.

    Args:
        result: to be guarded, and `own`, what was measured of it.
        solver: that made it.
        fixed: solves the uniform plan; what it has solved for the result is not solved again.
        judge: measures it.
        max_bytes: of file and code, for the uniform plan.
        promise: that the uniform plan has to keep too; None for none.
    """
    kept = len(result.data) - len(result.coded.levels) - _code_bytes(result)
    uniform = fixed.uniform(max_bytes, kept)
    if uniform is None:
        return replace(result, held_out=own, guard=Guarded(solver, fixed.solver, own.kl, None, None, None, solver))
    bits = next(iter(uniform.plan.bits.values()))
    if uniform.data == result.data:
        verdict = Guarded(solver, fixed.solver, own.kl, bits, len(uniform.data), own.kl, solver)
        return replace(result, held_out=own, guard=verdict)
    other = judge(uniform)
    better = other.kl < own.kl and (promise is None or other.value(promise.kind) <= promise.most)
    verdict = Guarded(solver, fixed.solver, own.kl, bits, len(uniform.data), other.kl, "uniform" if better else solver)
    return replace(uniform if better else result, held_out=other if better else own, guard=verdict)


def _judged(result: Compressed, held_out: HeldOut, checkpoint: Checkpoint, progress: Progress | None) -> Judged:
    reference = checkpoint.module
    module = result.module(None if result.header.model is not None else _copied(reference))
    module.to(next(reference.parameters()).device)
    measured, base = evaluate_against(
        module, reference, held_out.text, length=held_out.length, context=held_out.context,
        progress=stage(progress, "held-out text"),
    )  # fmt: skip
    assert measured.kl_bpb is not None
    unit: Literal["byte", "token"] = "token" if held_out.text.counted == "none: self-generated" else "byte"
    return Judged(measured.kl_bpb, measured.bpb - base.bpb, int(measured.tokens.sum()), int(measured.bytes.sum()), unit)


def _copied(module: nn.Module) -> nn.Module:
    """Another module of the same kind, to be filled."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever copying the user's own objects raises
        raise QuantGolfError(
            f"the module cannot be copied ({type(error).__name__}: {error}), expected one that copy.deepcopy takes, to "
            "measure the result beside it; mend it or pass --no-guard"
        ) from error


def _code_bytes(result: Compressed) -> int:
    return sum(len(block.codes) for tensor in result.coded.tensors for block in tensor.blocks)
