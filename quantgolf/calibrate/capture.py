"""Which weight met which activations: a function mode, so that a model needs no particular module types.

`F.linear` and `F.embedding` are caught wherever they are called, `nn.Linear` or not; a weight is recognised by
being one of the model's parameters. So a head tied to the embedding, `F.linear(x, emb.weight)`, is simply a
second use of the same weight.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class Sums:
    """Running sums of one use of one weight; `collect` turns them into a `WeightUse`."""

    kind: Literal["linear", "lookup"]
    row: Tensor
    column: Tensor
    visits: int = 0


@dataclass
class Visit:
    """One call that used a weight: the sums it belongs to and the output whose gradient is still to come."""

    sums: Sums
    output: Tensor


@dataclass
class Recorder:
    """The sums of every (weight, kind of use) met so far, and the visits of the forward pass under way."""

    sums: dict[tuple[str, str], Sums] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    _input: Tensor | None = None
    _gram: Tensor | None = None

    def linear(self, name: str, weight: Tensor, x: Tensor, output: Tensor) -> None:
        """Adds x xᵀ; the gradient of `output` follows in `backward`."""
        sums = self._sums("linear", name, weight)
        sums.column += self._gram_of(x)
        sums.visits += x.numel() // x.shape[-1]
        self.visits.append(Visit(sums, output))

    def lookup(self, name: str, weight: Tensor, tokens: Tensor, output: Tensor) -> None:
        """Adds how often each row was read; the gradient of `output` follows in `backward`."""
        sums = self._sums("lookup", name, weight)
        sums.row += torch.bincount(tokens.flatten(), minlength=len(weight))
        sums.visits += tokens.numel()
        self.visits.append(Visit(sums, output))

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` (summed over tokens, nats) at the outputs of this forward pass."""
        visits, self.visits = self.visits, []
        self._input = self._gram = None
        gradients = torch.autograd.grad(loss, [visit.output for visit in visits], allow_unused=True)
        for visit, gradient in zip(visits, gradients, strict=True):
            if gradient is None:  # an output that did not reach the loss: its gradient is zero
                continue
            g = gradient.flatten(0, -2).float()
            if visit.sums.kind == "linear":
                visit.sums.row += g.square().sum(0)
            else:
                visit.sums.column += gram(g)

    def _sums(self, kind: Literal["linear", "lookup"], name: str, weight: Tensor) -> Sums:
        if (name, kind) not in self.sums:
            rows, columns = weight.shape
            zeros = torch.zeros
            self.sums[name, kind] = Sums(
                kind, zeros(rows, device=weight.device), zeros(columns, columns, device=weight.device)
            )
        return self.sums[name, kind]

    def _gram_of(self, x: Tensor) -> Tensor:
        """x xᵀ summed over positions, in fp32; the last one is kept, because q, k and v share their input."""
        if self._gram is None or x is not self._input:
            self._input, self._gram = x, gram(x.detach().flatten(0, -2).float())
        return self._gram


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ rows in fp32 whatever the autocast state: in bf16 the sum stops being positive definite."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows.T @ rows


class Capture(TorchFunctionMode):
    """While entered, tells `recorder` of every use of `parameters` (name, weight) in linear and embedding calls."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], recorder: Recorder) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in parameters}
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not F.linear and func is not F.embedding:
            return output
        x, weight = (*args, *(kwargs or {}).values())[:2]
        name = self.names.get(id(weight))
        if name is None:
            return output
        if not output.requires_grad:  # frozen parameters: the graph starts at the first weight met
            output.requires_grad_()
        with torch.no_grad():
            record = self.recorder.linear if func is F.linear else self.recorder.lookup
            record(name, weight, x, output)
        return output


def weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters that can be quantized: matrices, each storage once, by the first of its names."""
    return [(name, p) for name, p in model.named_parameters() if p.ndim == 2 and p.is_floating_point()]
