"""The function mode that sees every use of every parameter, and the state a model is in while it looks.

No module types are needed: operations are caught wherever they are called, and a weight is recognised by the memory
it lies in.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantgolf.calibrate.record import Recorder
from quantgolf.calibrate.track import Tracker, wrapped
from quantgolf.calibrate.uses import read_uses

# Functions written in Python whose inner operations are looked at instead of themselves.
NOT_REENTRANT = "_checkpoint_without_reentrant_generator"  # what runs around a checkpointed function
TRANSPARENT: set[Callable[..., Any]] = {F.multi_head_attention_forward}
# In place, though no single underscore ends their names; and those that change no numbers.
CHANGES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
HARMLESS = {"requires_grad_", "detach_"}
# They look at a tensor's shape, dtype and device, not at its numbers: at those of any, or of what comes second.
PATTERNS = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
            "new_empty", "new_full", "new_tensor"}  # fmt: skip
AFTER = {"to", "type_as", "expand_as", "view_as", "reshape_as"}


class Capture(TorchFunctionMode):
    """While entered, tells `recorder` of every use of `parameters` (name, weight)."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], recorder: Recorder) -> None:
        super().__init__()
        self.parameters = dict(parameters)
        self.tracker, self.recorder = Tracker(self.parameters.items()), recorder
        self._before: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in TRANSPARENT:
            with patch.object(F, "has_torch_function", lambda _: False), self:
                return func(*args, **kwargs)
        operation = getattr(func, "__name__", str(func))
        self._before_change(func, operation, args, kwargs)
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) and not _holds_tensors(output):
            return output
        knows = self.tracker.knows
        known = [value for value in _tensors_in((*args, *kwargs.values())) if knows(value)]
        if not known or operation in PATTERNS or (operation in AFTER and not knows(args[0])):
            return output
        operation = operation.strip("_")
        with torch.inference_mode(False), torch.no_grad():
            if any(map(wrapped, _tensors_in((*args, *kwargs.values())))):
                uses, operation = [], f"{operation} under torch.func"
            else:
                uses = read_uses(func, args, kwargs, knows)
            found = [(use, self.tracker.pieces(use.weight, use.shape)) for use in uses]
            if not found and self.tracker.follow(func, args, kwargs, output):
                return output
        met = {piece.home.name for _, pieces in found for piece in pieces}
        for name in {name for tensor in known for name in self.tracker.names_of(tensor)} - met:
            self.recorder.pass_over(name, operation)
        if not found:
            return output
        differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if differentiable and not output.requires_grad and any(map(self.recorder.wants, met)):
            # The graph begins at the first weight to learn of, so that nothing before it has to be kept. The copy is
            # no leaf: the model may change it in place.
            output = output.detach().requires_grad_().clone()
        with torch.inference_mode(False), torch.no_grad():
            for use, pieces in found:
                self.recorder.meet(use, pieces, output, operation)
        return output

    def _before_change(
        self, function: Callable[..., Any], operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A copy of a parameter that is changed in place is another tensor from then on. A parameter itself is
        remembered as it was, to be put back after the forward pass."""
        changed = args[0] if args else None
        if function is F.embedding and (kwargs.get("max_norm") is not None or (len(args) > 3 and args[3] is not None)):
            changed = args[1] if len(args) > 1 else kwargs.get("weight")
        elif not operation.endswith("_") or (operation.endswith("__") and operation not in CHANGES):
            return
        if operation in HARMLESS or not isinstance(changed, Tensor) or not self.tracker.knows(changed):
            return
        home = self.tracker.home_of(changed)
        if home is not None:
            self._before.setdefault(home, self.parameters[home].detach().clone())
            return
        for name in self.tracker.names_of(changed):
            self.recorder.pass_over(name, operation.strip("_"))
        self.tracker.drop(changed)

    def forget(self) -> None:
        """Ends a forward pass."""
        self.tracker.forget()
        self.recorder.forget()

    def restore(self) -> None:
        """Gives parameters that the model changed in place the values they had."""
        with torch.no_grad():
            for name, value in self._before.items():
                self.parameters[name].copy_(value)
        self._before.clear()


def _holds_tensors(output: object) -> bool:
    return isinstance(output, tuple | list) and any(isinstance(item, Tensor) for item in output)


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from (item for item in value if isinstance(item, Tensor))


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by the first of its names, one that shares another's memory left out."""
    found: dict[object, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        place = (parameter.data_ptr(), parameter.shape, parameter.stride()) if parameter.numel() else name
        found.setdefault(place, (name, parameter))
    return dict(found.values())


def weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters that may hold weights: floating point ones of two dimensions or more."""
    return [(name, p) for name, p in parameters_of(model).items() if p.ndim >= 2 and p.is_floating_point()]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients of parameters, compiled and checkpointed parts run plainly; all as before after.

    Parameters do not ask for gradients meanwhile, so that none are computed for them: only those of the outputs
    are wanted.
    """
    modes = [(module, module.training) for module in model.modules()]
    asking = [p for p in model.parameters() if p.requires_grad]
    memory = [(p, p.data) for p in model.parameters()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules() if module._buffers]
    values = [(buffer, buffer.clone()) for _, own in buffers for buffer in own.values() if buffer is not None]
    with ExitStack() as stack:
        # Reentrant checkpointing runs forward without gradients, and refuses to give those of anything inside; the
        # other kind compares the operations of forward with those of its second run, which nobody looks at.
        stack.enter_context(patch.object(torch.utils.checkpoint.CheckpointFunction, "apply", _call))
        if hasattr(torch.utils.checkpoint, NOT_REENTRANT):
            stack.enter_context(patch.object(torch.utils.checkpoint, NOT_REENTRANT, _nothing_around))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=sorted(_cuda_devices(model))))
        try:
            model.eval()
            for parameter in asking:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, data in memory:
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
            for parameter in asking:
                parameter.requires_grad_(True)
            for module, training in modes:
                module.training = training
            for current, own in buffers:
                current.clear()
                current.update(own)
            with torch.no_grad():
                for buffer, value in values:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def _call(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
    return function(*args)


def _nothing_around(*_args: Any, **_options: Any) -> Iterator[None]:
    yield


def _cuda_devices(model: nn.Module) -> set[int]:
    return {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
