"""Packed matrices as torch operators: products, lookups, and the weights themselves.

On a GPU they launch Triton's kernels, elsewhere plain torch computes the same. torch.compile sees each as one node, a
CUDA graph captures them, and a product has a gradient with respect to its activations.
"""

import math
from functools import cache

import torch
from torch import Tensor

from quantgolf_kernels import reference
from quantgolf_kernels.gpu import runs_on
from quantgolf_kernels.packing import Packed
from quantgolf_kernels.tuning import choose

# From so many rows of activations on, weights are unpacked once and the dense product is taken. Not measured yet: at
# 144 rows another library found that to win (exllamav3), and on an H100 none was faster than dense from 128 on.
DENSE_FROM = 128
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def matmul(x: Tensor, packed: Packed) -> Tensor:
    """x [..., K] times the transposed packed weights [N, K], [..., N] in x's dtype (fp32, fp16 or bf16).

    Sums are fp32 and in the same order from run to run. The gradient goes to x alone.

    Raises:
        ValueError: x of another dtype, device or last dimension.
    """
    if x.dtype not in FLOATS or x.ndim == 0 or x.shape[-1] != packed.columns or x.device != packed.data.device:
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)} on {x.device}, expected fp32, fp16 or bf16 [..., {packed.columns}] on "
            f"{packed.data.device}, where the packed weights are"
        )
    found: Tensor = _matmul(x.reshape(math.prod(x.shape[:-1]), packed.columns), *_flat(packed))
    return found.view(*x.shape[:-1], packed.data.shape[0])


def lookup(tokens: Tensor, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of the packed weights [N, K] for tokens int64 or int32 [...], [..., K] in `dtype`.

    Raises:
        ValueError: tokens of another dtype or device, or another dtype asked for. Tokens outside 0 to N - 1 raise
            IndexError on a CPU and give rows of NaN on a GPU, which is not stopped to look at them.
    """
    if tokens.dtype not in (torch.int64, torch.int32) or tokens.device != packed.data.device or dtype not in FLOATS:
        raise ValueError(
            f"tokens are {tokens.dtype} on {tokens.device} and {dtype} is asked for, expected int64 or int32 on "
            f"{packed.data.device}, and fp32, fp16 or bf16"
        )
    found: Tensor = _lookup(tokens.reshape(-1), *_flat(packed), dtype)
    return found.view(*tokens.shape, packed.columns)


def weights(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights [N, K], fp32 to the bit and rounded to `dtype`.

    Raises:
        ValueError: another dtype than fp32, fp16 or bf16.
    """
    if dtype not in FLOATS:
        raise ValueError(f"weights were asked for in {dtype}, expected fp32, fp16 or bf16")
    found: Tensor = _weights(*_flat(packed), dtype)
    return found


Flat = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, int, int, int, int]


def _flat(packed: Packed) -> Flat:
    return (
        packed.data, packed.row, packed.column, packed.outliers, packed.scale, packed.zero, packed.bits, packed.offset,
        packed.columns, packed.group_size,
    )  # fmt: skip


def _packed(
    data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int,
) -> Packed:  # fmt: skip
    return Packed(data, row, bits, offset, columns, column, outliers, scale, zero, group_size)


@cache
def _runs_on(device: torch.device) -> bool:
    return runs_on(device, "packed weights are unpacked by plain torch there, slowly")


@torch.library.custom_op("quantgolf::packed_matmul", mutates_args=())
def _matmul(
    x: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int,
) -> Tensor:  # fmt: skip
    return reference.matmul(
        x, _packed(data, row, column, outliers, scale, zero, bits, offset, columns, group_size)
    )  # fmt: skip


@_matmul.register_kernel("cuda")
def _(
    x: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int,
) -> Tensor:  # fmt: skip
    many, rows = x.shape[0], data.shape[0]
    if many == 0 or rows == 0 or columns == 0:
        return x.new_zeros(many, rows)
    parts = data, row, column, outliers, scale, zero, bits, offset, columns, group_size
    if not _runs_on(x.device):
        return reference.matmul(x, _packed(*parts))
    with torch.cuda.device(x.device):
        if many >= DENSE_FROM:
            # The caching allocator gives every layer the same memory: one scratch for all.
            return torch.nn.functional.linear(x, _weights(*parts, x.dtype))
        x = x if x.stride(-1) == 1 else x.contiguous()
        if many == 1:
            from quantgolf_kernels.gemv import gemv

            return gemv(x, *parts, choose("gemv", x.device, bits, 1, rows, columns))
        from quantgolf_kernels.gemm import gemm

        return gemm(x, *parts, choose("gemm", x.device, bits, many, rows, columns))


@_matmul.register_fake
def _(
    x: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], data.shape[0])


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:7])
    ctx.numbers = inputs[7:]


def _to_activations(ctx, gradient):  # type: ignore[no-untyped-def]
    return gradient @ _weights(*ctx.saved_tensors, *ctx.numbers, gradient.dtype), *[None] * 10


_matmul.register_autograd(_to_activations, setup_context=_save)


@torch.library.custom_op("quantgolf::packed_weights", mutates_args=())
def _weights(
    data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return reference.weights(
        _packed(data, row, column, outliers, scale, zero, bits, offset, columns, group_size)
    ).to(dtype)  # fmt: skip


@_weights.register_kernel("cuda")
def _(
    data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    parts = data, row, column, outliers, scale, zero, bits, offset, columns, group_size
    if data.numel() == 0 or not _runs_on(data.device):
        return reference.weights(_packed(*parts)).to(dtype)
    from quantgolf_kernels.unpack import unpack_rows

    with torch.cuda.device(data.device):
        return unpack_rows(
            None, *parts, dtype, choose("unpack", data.device, bits, data.shape[0], data.shape[0], columns)
        )


@_weights.register_fake
def _(
    data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return row.new_empty(data.shape[0], columns, dtype=dtype)


@torch.library.custom_op("quantgolf::packed_lookup", mutates_args=())
def _lookup(
    tokens: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    whole = _packed(data, row, column, outliers, scale, zero, bits, offset, columns, group_size)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < data.shape[0]:
        raise IndexError(
            f"tokens reach from {int(tokens.min())} to {int(tokens.max())}, expected 0 to {data.shape[0] - 1}"
        )
    return reference.weights(reference.rows(whole, tokens.long())).to(dtype)


@_lookup.register_kernel("cuda")
def _(
    tokens: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    parts = data, row, column, outliers, scale, zero, bits, offset, columns, group_size
    if tokens.numel() == 0 or columns == 0 or not _runs_on(tokens.device):
        return reference.weights(reference.rows(_packed(*parts), tokens.long())).to(dtype)
    from quantgolf_kernels.unpack import unpack_rows

    with torch.cuda.device(tokens.device):
        config = choose("unpack", tokens.device, bits, tokens.shape[0], data.shape[0], columns)
        return unpack_rows(tokens.contiguous(), *parts, dtype, config)


@_lookup.register_fake
def _(
    tokens: Tensor, data: Tensor, row: Tensor, column: Tensor | None, outliers: Tensor | None, scale: Tensor | None,
    zero: Tensor | None, bits: int, offset: int, columns: int, group_size: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return row.new_empty(tokens.shape[0], columns, dtype=dtype)
