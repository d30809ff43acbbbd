"""How a module is asked for logits, whatever its forward looks like.

Contest scripts give the loss alone, `forward(tokens, targets)`; nanoGPT gives all its logits only beside a loss;
Hugging Face wraps logits in an object; others return them as they are. A module that returns a loss is still asked
for logits: they are what it hands to `F.cross_entropy`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantgolf.errors import QuantGolfError

TARGETS = ("target", "targets", "target_ids", "tgt", "y")


@contextmanager
def reading(*modules: nn.Module) -> Iterator[None]:
    """Without gradients, and modules in evaluation mode; every part of them leaves in the mode it came in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter is, or its first buffer where it has none (all its weights may be packed)."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def wants_targets(module: nn.Module) -> bool:
    """Whether `forward` cannot be called with tokens alone."""
    second = _second(module)
    return second is not None and second.default is second.empty


def logits_of(module: nn.Module, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
    """Logits [B, L, V] of `module` for int64 `tokens` [B, L] on its device, in the dtype it computes them in.

    Args:
        module: its forward takes tokens, or tokens and targets.
        tokens: int64 [B, L].
        targets: the next tokens, int64 [B, L]; None lets a module that needs some have the tokens themselves, which
            its logits do not depend on.

    Raises:
        QuantGolfError: what comes back is no logits, and no loss made of logits by `F.cross_entropy`.
    """
    output, logits = _run(module, tokens, targets)
    if logits is None:
        raise _no_logits(output, tokens)
    return logits


def loss_of(module: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Summed loss (nats) of a module that gives no logits: the mean it returns, times the number of targets.

    Raises:
        QuantGolfError: the module returns no number.
    """
    loss = module(tokens, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise QuantGolfError(
            f"the model's forward(tokens, targets) returned {_described(loss)}, expected its mean loss"
        )
    return loss.float().reshape(()) * targets.numel()


def gives_logits(module: nn.Module, tokens: Tensor) -> bool:
    """Whether `logits_of` works for a module; tries it without gradients.

    Raises:
        QuantGolfError: the module returns neither logits nor a loss.
    """
    with torch.no_grad():
        output, logits = _run(module, tokens, None)
    if logits is not None:
        return True
    if wants_targets(module) and isinstance(output, Tensor) and output.numel() == 1:
        return False
    raise _no_logits(output, tokens)


def _second(module: nn.Module) -> inspect.Parameter | None:
    """The parameter of `forward` behind the tokens; None where it takes nothing else, or does not tell."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward written in C, or without a signature
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds]
    return positional[1] if len(positional) > 1 else None


def _run(module: nn.Module, tokens: Tensor, targets: Tensor | None) -> tuple[Any, Tensor | None]:
    """What the module returns, and the logits in it or on the way to it."""
    second = _second(module)
    if second is not None and (second.default is second.empty or second.name in TARGETS):
        # Compiled code would hide its cross-entropy.
        with torch.compiler.set_stance("force_eager"), _CrossEntropy() as met:
            output = module(tokens, tokens if targets is None else targets)
        found = _logits_in(output, tokens)
        if found is None and met.inputs and sum(map(len, met.inputs)) == tokens.numel():
            found = torch.cat(met.inputs).reshape(*tokens.shape, -1)
        if found is not None or second.default is second.empty:
            return output, found
    output = module(tokens)
    return output, _logits_in(output, tokens)


def _logits_in(output: Any, tokens: Tensor) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    candidates = output if isinstance(output, tuple | list) else (output,)
    for found in candidates:
        if isinstance(found, Tensor) and found.ndim == 3 and found.shape[:2] == tokens.shape:
            return found
    return None


def _no_logits(output: Any, tokens: Tensor) -> QuantGolfError:
    return QuantGolfError(
        f"the model's forward(tokens) returned {_described(output)} for tokens {list(tokens.shape)}, expected logits "
        f"[{tokens.shape[0]}, {tokens.shape[1]}, V]; name a factory whose module returns logits, or a loss that it "
        "computes with F.cross_entropy"
    )


def _described(output: Any) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else type(output).__name__


class _CrossEntropy(TorchFunctionMode):
    """While entered, keeps the logits [T, V] of every cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.cross_entropy:
            logits = args[0] if args else (kwargs or {})["input"]
            if logits.ndim == 3:  # classes come second there
                logits = logits.transpose(1, 2)
            self.inputs.append(logits.reshape(-1, logits.shape[-1]))
        return func(*args, **(kwargs or {}))
