"""How an operation uses a weight: which matrix [N, K] met which inputs [T, K] and made which outputs [T, N]."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Known = Callable[[object], bool]
Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Use:
    """One meeting of a weight and activations.

    Attributes:
        kind: "linear", or "lookup" of rows by `inputs`.
        weight: a view of the tensor the operation was given, whose elements in row-major order are those of the
            matrix of `shape`.
        shape: [N, K].
        inputs: makes [T, K] of what the operation was given; for a lookup the indices, int64 of any shape.
        rows: turns the gradient of the operation's output into [T, N] (a lookup's into [T, K]).
    """

    kind: Literal["linear", "lookup"]
    weight: Tensor
    shape: tuple[int, int]
    inputs: Tensor
    rows: Rows


def read_uses(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    """The uses of known weights in a call; empty where the operation is none of those understood."""
    reader = READERS.get(function)
    return [] if reader is None else reader(args, kwargs, knows)


def _merged(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _of_matrix(kind: Literal["linear", "lookup"], weight: Tensor, inputs: Tensor, rows: Rows) -> Use:
    return Use(kind, weight, (weight.shape[0], weight.shape[1]), inputs, rows)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> list[Any]:
    """The first arguments of a call, however they were passed."""
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    x, weight = _given(args, kwargs, "input", "weight")
    return [_of_matrix("linear", weight, _merged(x), _merged)] if knows(weight) and weight.ndim == 2 else []


def _embedding(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    tokens, weight = _given(args, kwargs, "input", "weight")
    return [_of_matrix("lookup", weight, tokens, _merged)] if knows(weight) else []


def _index(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    table, index = args[:2]
    integers = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
    if knows(table) and table.ndim == 2 and integers and index.ndim:
        return [_of_matrix("lookup", table, index % len(table), _merged)]
    return []


def _index_select(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    table, dim, index = _given(args, kwargs, "input", "dim", "index")
    return _index((table, index), {}, knows) if dim == 0 else []


def _matmul(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    """a @ b, where either may be the weight, alone or as a stack of as many as the other has matrices."""
    second = next((name for name in ("mat2", "vec", "tensor2") if name in kwargs), "other")
    a, b = _given(args, kwargs, "input", second)
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return []
    if knows(b) and b.ndim >= 2:  # learned queries times a weight too: what is on the right counts as the weight
        return _right(a, b)
    if knows(a) and a.ndim >= 2:
        if b.ndim == 1:
            return [_of_matrix("linear", a, b[None], _merged)] if a.ndim == 2 else []
        return _right(b.transpose(-2, -1), a.transpose(-2, -1), turned=True)  # (W x)ᵀ = xᵀ Wᵀ
    return []


def _right(x: Tensor, weight: Tensor, turned: bool = False) -> list[Use]:
    def upright(gradient: Tensor) -> Tensor:
        return gradient.transpose(-2, -1) if turned else gradient

    if weight.ndim == 2:
        return [_of_matrix("linear", weight.T, _merged(x), lambda gradient: _merged(upright(gradient)))]
    if weight.ndim != 3 or x.ndim < 2 or (x.ndim > 2 and x.shape[-3] not in (1, len(weight))):
        return []
    return [
        _of_matrix(
            "linear", weight[i].T, _merged(x if x.ndim == 2 else x[..., i % x.shape[-3], :, :]),
            lambda gradient, i=i: _merged(upright(gradient)[..., i, :, :]),  # type: ignore[misc]
        )
        for i in range(len(weight))
    ]  # fmt: skip


def _addmm(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    """alpha · (a @ b): an error of the weight is felt alpha times, as if the inputs were larger."""
    first, second = ("mat1", "mat2") if "mat1" in kwargs or "mat2" in kwargs else ("batch1", "batch2")
    alpha = kwargs.get("alpha", 1)
    uses = _matmul(tuple(_given(args, kwargs, "input", first, second)[1:]), {}, knows)
    return uses if alpha == 1 else [replace(use, inputs=use.inputs * alpha) for use in uses]


def _grouped(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    """Rows sorted by expert times a stack of weights; `offs` says where each expert's rows end."""
    x, stack, ends = _given(args, kwargs, "mat_a" if "mat_a" in kwargs else "input", "mat_b", "offs")
    if not knows(stack) or stack.ndim != 3 or x.ndim != 2 or ends is None:
        return []
    edges = [0, *ends.tolist()]
    return [
        _of_matrix("linear", stack[i].T, x[start:stop], itemgetter(slice(start, stop)))
        for i, (start, stop) in enumerate(pairwise(edges))
    ]


def _einsum(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    """Two operands that share one summed axis; an axis all three terms share is a stack of weights (experts)."""
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return []
    terms, result = equation.replace(" ", "").split("->")
    names = terms.split(",")
    known = [knows(operand) for operand in operands]
    if sum(known) != 1 or "." in names[known.index(True)]:
        return []
    which = known.index(True)
    (weight, w), (x, other) = (operands[which], names[which]), (operands[1 - which], names[1 - which])
    if "..." in other:  # axes the weight has no part in: any free letters stand for them
        free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
        dots = "".join(free[: x.ndim - (len(other) - 3)])
        other, result = other.replace("...", dots), result.replace("...", dots)
    summed = [axis for axis in w if axis in other and axis not in result]
    stacked = [axis for axis in w if axis in other and axis in result]
    outputs = [axis for axis in w if axis not in other]
    alone = [axis for axis in other if axis not in w]
    if len(summed) != 1 or len(stacked) > 1 or not outputs or any(axis not in result for axis in outputs + alone):
        return []
    if "." in result or any(len(set(term)) != len(term) for term in (w, other, result)):
        return []
    matrices = weight.permute([w.index(axis) for axis in stacked + outputs + summed])
    inputs = x.permute([other.index(axis) for axis in stacked + alone + summed])
    order = [result.index(axis) for axis in stacked + alone + outputs]
    shape = (matrices.shape[len(stacked) : -1].numel(), matrices.shape[-1])
    if not stacked:
        return [
            Use("linear", matrices, shape, _merged(inputs), lambda g: g.permute(order).reshape(-1, shape[0])),
        ]  # fmt: skip
    return [
        Use(
            "linear", matrices[i], shape, _merged(inputs[i]),
            lambda gradient, i=i: gradient.permute(order)[i].reshape(-1, shape[0]),  # type: ignore[misc]
        )
        for i in range(len(matrices))
    ]  # fmt: skip


def _conv(args: tuple[Any, ...], kwargs: dict[str, Any], knows: Known) -> list[Use]:
    """A convolution is a linear map of unfolded patches; each group is a map of its own."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= dict(zip(names, args, strict=False)) | kwargs
    x, weight, groups = given["input"], given["weight"], given["groups"]
    if not knows(weight) or weight.ndim not in (3, 4):
        return []
    sides = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    stride, dilation = (_each(given[key], sides) for key in ("stride", "dilation"))
    if given["padding"] == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        around = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    else:
        padding = _each(0 if given["padding"] == "valid" else given["padding"], sides)
        around = [p for p in reversed(padding) for _ in range(2)]
    x = F.pad(x if x.ndim == weight.ndim else x[None], around)
    if sides == 1:
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    outputs, inputs = len(weight) // groups, weight.shape[1]

    def of_group(group: int) -> Use:
        mine = x[:, group * inputs : (group + 1) * inputs].float()
        patches = F.unfold(mine, kernel, dilation=dilation, stride=stride).transpose(1, 2)

        def rows(gradient: Tensor) -> Tensor:
            whole = gradient if gradient.ndim == weight.ndim else gradient[None]
            part = whole[:, group * outputs : (group + 1) * outputs]
            return _merged(part.flatten(2).transpose(1, 2))

        part = weight[group * outputs : (group + 1) * outputs]
        return Use("linear", part, (outputs, part[0].numel()), _merged(patches), rows)

    return [of_group(group) for group in range(groups)]


def _each(value: int | tuple[int, ...], sides: int) -> tuple[int, ...]:
    return (value,) * sides if isinstance(value, int) else tuple(value) * (sides // len(value))


READERS: dict[Callable[..., Any], Callable[[tuple[Any, ...], dict[str, Any], Known], list[Use]]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _index,
    torch.index_select: _index_select,
    torch.Tensor.index_select: _index_select,
    **dict.fromkeys(
        (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm, torch.bmm,
         torch.Tensor.bmm, torch.mv, torch.Tensor.mv), _matmul,
    ),
    torch.Tensor.__rmatmul__: lambda args, kwargs, knows: _matmul(args[1::-1], kwargs, knows),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm), _addmm),
    torch.einsum: _einsum,
    **{op: _grouped for op in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if op is not None},
    F.conv1d: _conv,
    F.conv2d: _conv,
}  # fmt: skip
