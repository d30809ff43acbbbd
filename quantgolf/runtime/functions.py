"""Functions that meet a packed weight, as products with its codes: linear, matmul and its kin, einsum, embedding.

A weight is found by where its elements lie in the parameter: a rectangle of [R, C], which blocks hold. As long as codes
lie along the axis that is summed, several blocks, parts of one and stacks of matrices are all products that kernels
know; a part of a block costs the whole. Each function here gives None where that is not so.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quantgolf.errors import QuantGolfError
from quantgolf.runtime.blocks import PackedMatrix
from quantgolf.runtime.dispatch import HANDLERS, Handler
from quantgolf.runtime.standin import StandIn, View
from quantgolf_kernels import lookup

Entered = TypeVar("Entered", bound=Handler)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def handles(*functions: Callable[..., Any]) -> Callable[[Entered], Entered]:
    """Enters what stands in for functions of torch."""

    def enter(handler: Entered) -> Entered:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return enter


def autocast(x: Tensor) -> Tensor:
    """Activations as torch.autocast would cast them for a product."""
    kind = x.device.type
    if x.is_floating_point() and x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


def check(x: Tensor, columns: int, device: torch.device, name: str) -> None:
    """Refuses activations that do not fit a weight [N, columns].

    Raises:
        QuantGolfError: another last dimension or device.
    """
    if x.ndim == 0 or x.shape[-1] != columns or x.device != device:
        raise QuantGolfError(
            f"packed weight {name} was given {x.dtype} {list(x.shape)} on {x.device}, expected [..., {columns}] on "
            f"{device}; move the model or its input"
        )


def product(x: Any, weight: Any) -> Tensor | None:
    """x [..., K] times a transposed weight [N, K], [..., N] in x's dtype, or that of autocast."""
    if not isinstance(x, Tensor) or not isinstance(weight, StandIn) or weight.ndim != 2:
        return None
    view = weight.seen()
    (n, k), place, width = view.place.sizes, view.place, view.home.width
    check(x, k, view.device, view.home.name)
    x = autocast(x)
    if x.dtype not in FLOATS or n == 0 or k == 0:
        return None
    row, column = divmod(place.offset, width)
    down, along = place.strides
    found = None
    if (k == 1 or along == 1) and (n == 1 or down == width) and column + k <= width:
        found = _upright(x, view, row, column)
    if found is None and (n == 1 or down == 1) and (k == 1 or along == width) and column + n <= width:
        found = _turned(x, view, row, column)
    return found


def _upright(x: Tensor, view: View, row: int, column: int) -> Tensor | None:
    """The outputs lie along rows of the parameter: one part of them from each block."""
    n, k = view.place.sizes
    after = view.home.width - column - k
    if column or after:
        x = F.pad(x, (column, after))
    found: list[Tensor] = []
    for block in view.home.parts:
        start, stop = max(row, block.start), min(row + n, block.stop)
        if start < stop:
            y = block.product(x, turned=False)
            if y is None:
                return None
            whole = stop - start == block.stop - block.start
            found.append(y if whole else y[..., start - block.start : stop - block.start])
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def _turned(x: Tensor, view: View, row: int, column: int) -> Tensor | None:
    """The inputs lie along rows of the parameter: each block has a share of every sum."""
    n, k = view.place.sizes
    total: Tensor | None = None
    for block in view.home.parts:
        start, stop = max(row, block.start), min(row + k, block.stop)
        if start < stop:
            mine = x if stop - start == k else x[..., start - row : stop - row]
            if stop - start != block.stop - block.start:
                mine = F.pad(mine, (start - block.start, block.stop - stop))
            y = block.product(mine, turned=True)
            if y is None:
                return None
            y = y if n == view.home.width else y[..., column : column + n]
            total = y if total is None else total + y
    return total


@handles(F.linear)
def linear(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    found = product(input, weight)
    return found if found is None or bias is None else found + bias.to(found.dtype)


@handles(torch.matmul, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm, torch.mv, torch.Tensor.mv)
def matmul(a: Any, b: Any) -> Tensor | None:
    """a @ b, where one is packed, alone or as a stack of as many matrices as the other has."""
    if isinstance(b, StandIn) and b.ndim >= 2:
        return _right(a, b)
    if isinstance(a, StandIn) and a.ndim >= 2 and isinstance(b, Tensor):
        if b.ndim == 1:
            return product(b, a)
        found = _right(b.mT, a.mT)  # (W x)ᵀ = xᵀ Wᵀ
        return None if found is None else found.mT
    return None


def _right(x: Any, weight: StandIn) -> Tensor | None:
    if weight.ndim == 2 or not isinstance(x, Tensor):
        return product(x, weight.mT)
    if weight.ndim != 3 or x.ndim < 2 or (x.ndim > 2 and x.shape[-3] not in (1, len(weight))):
        return None
    found = []
    for i in range(len(weight)):
        y = product(x if x.ndim == 2 else x[..., i % x.shape[-3], :, :], weight[i].mT)
        if y is None:
            return None
        found.append(y)
    return torch.stack(found, -3)


@handles(torch.Tensor.matmul, torch.Tensor.__matmul__)
def by_operator(a: Any, b: Any) -> Tensor | None:
    """a @ b. torch.compile hands W @ x over as (x, W), as if it were x @ W (torch 2.13: Dynamo's table of reversed
    operators lacks matmul): where shapes do not tell the two apart, nothing is guessed.

    Raises:
        QuantGolfError: that.
    """
    if torch.compiler.is_compiling() and isinstance(a, Tensor) and isinstance(b, StandIn) and b.ndim > 1 and a.ndim:
        forward, backward = a.shape[-1] == b.shape[-2], b.shape[-1] == a.shape[max(-2, -a.ndim)]
        if forward and backward:
            raise QuantGolfError(
                f"torch.compile does not tell x @ W from W @ x for {b.described()} and x of {list(a.shape)}, expected "
                "shapes that fit in one order alone; write torch.matmul(x, W)"
            )
        if backward:
            return matmul(b, a)
    return matmul(a, b)


@handles(torch.Tensor.__rmatmul__)
def reverse_matmul(b: Any, a: Any) -> Tensor | None:
    return matmul(a, b)


@handles(torch.addmm, torch.Tensor.addmm)
def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Tensor | None:
    found = matmul(mat1, mat2) if isinstance(input, Tensor) else None
    if found is None:
        return None
    scaled: Tensor = beta * input.to(found.dtype) + (found if alpha == 1 else alpha * found)
    return scaled


@handles(torch.einsum)
def einsum(equation: Any, *operands: Any) -> Tensor | None:
    """Two operands that share one summed axis; an axis all three terms share is a stack of weights (experts)."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    terms, result = equation.replace(" ", "").split("->")
    names = terms.split(",")
    which = 0 if isinstance(operands[0], StandIn) else 1
    weight, x = operands[which], operands[1 - which]
    w, other = names[which], names[1 - which]
    if not isinstance(weight, StandIn) or not isinstance(x, Tensor) or "." in w:
        return None
    if "..." in other:  # axes the weight has no part in: any free letters stand for them
        free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
        dots = "".join(free[: x.ndim - (len(other) - 3)])
        other, result = other.replace("...", dots), result.replace("...", dots)
    summed = [axis for axis in w if axis in other and axis not in result]
    stacked = [axis for axis in w if axis in other and axis in result]
    outputs = [axis for axis in w if axis not in other]
    alone = [axis for axis in other if axis not in w]
    repeated = any(len(set(term)) != len(term) for term in (w, other, result))
    if len(summed) != 1 or len(stacked) > 1 or not outputs or repeated or "." in result:
        return None
    if any(axis not in result for axis in outputs + alone):
        return None
    order = [w.index(axis) for axis in stacked + outputs + summed]
    matrices, inputs = weight.permute(order), x.permute([other.index(axis) for axis in stacked + alone + summed])
    sizes = matrices.shape[len(stacked) : -1]
    found = _each(inputs, matrices) if stacked else _flat(inputs, matrices)
    if found is None:
        return None
    whole = found.reshape(*found.shape[:-1], *sizes)
    axes = stacked + alone + outputs
    return whole.permute([axes.index(axis) for axis in result])


def _flat(x: Tensor, matrices: Any) -> Tensor | None:
    """x [..., K] times a weight [N1, N2, …, K], [..., N1 · N2 · …]."""
    return product(x, matrices.flatten(0, -2))


def _each(x: Tensor, matrices: Any) -> Tensor | None:
    found = [_flat(x[i], matrices[i]) for i in range(len(matrices))]
    known = [y for y in found if y is not None]
    return torch.stack(known) if len(known) == len(found) else None


@handles(F.embedding)
def embedding(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor | None:  # fmt: skip
    """Rows of a packed table. The options but `max_norm` only say how the table would be trained."""
    if max_norm is not None and isinstance(weight, StandIn):
        raise QuantGolfError(
            f"packed weight {weight.described()} was to be changed by max_norm={max_norm}, expected a table that is "
            "only read; load with materialize=True"
        )
    return rows(input, weight)


@handles(torch.Tensor.__getitem__)
def index(table: Any, key: Any) -> Tensor | None:
    """Rows by a tensor of integers, negative ones from the end."""
    if isinstance(key, StandIn):  # torch.compile hands table[key] over the other way around
        table, key = key, table
    if not isinstance(table, StandIn) or not isinstance(key, Tensor) or key.dtype not in (torch.int64, torch.int32):
        return None
    return rows(torch.where(key < 0, key + len(table), key), table)


@handles(torch.index_select, torch.Tensor.index_select)
def index_select(input: Any, dim: int, index: Any) -> Tensor | None:
    return rows(index, input) if dim == 0 else None


def rows(tokens: Any, table: Any) -> Tensor | None:
    """Rows of a table [N, K] that is all of a packed matrix, in the table's dtype."""
    if not isinstance(tokens, Tensor) or not isinstance(table, StandIn) or table.ndim != 2:
        return None
    view = table.seen()
    if view.dtype not in FLOATS or tokens.dtype not in (torch.int64, torch.int32):
        return None
    n, k = view.place.sizes
    if k != view.home.width or view.place.strides != (k, 1) or view.place.offset % k:
        return None
    start = view.place.offset // k
    for block in view.home.parts:
        if (block.start, block.stop) == (start, start + n) and isinstance(block, PackedMatrix) and not block.transposed:
            return look_up(tokens, block, view)
    return None


def look_up(tokens: Tensor, matrix: PackedMatrix, table: StandIn) -> Tensor:
    """Rows of a packed matrix for tokens, in the table's dtype.

    Raises:
        QuantGolfError: tokens on another device, or that are no integers.
    """
    if tokens.device != table.device or tokens.dtype not in (torch.int64, torch.int32):
        raise QuantGolfError(
            f"packed table {table.described()} was given tokens {tokens.dtype} on {tokens.device}, expected int64 or "
            f"int32 on {table.device}; move the model or its input"
        )
    dtype = table.seen().dtype
    if dtype not in FLOATS:
        raise QuantGolfError(
            f"packed table {table.described()} is to give {dtype}, expected fp32, fp16 or bf16; call "
            "quantgolf.materialize(module) before other dtypes"
        )
    found: Tensor = lookup(tokens, matrix.packed, dtype)
    return found
