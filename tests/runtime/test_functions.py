"""Functions of torch on stand-ins: products where there is one, and said aloud where weights are unpacked instead."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.errors import QuantGolfError
from quantgolf.runtime import PackedParameter
from quantgolf.runtime.blocks import KeptRows, PackedMatrix
from quantgolf_kernels import pack

R, C = 12, 8
X = torch.randn(2, 5, C, generator=torch.Generator().manual_seed(1))
Z = torch.randn(2, 5, R, generator=torch.Generator().manual_seed(2))
E3 = torch.randn(3, 5, C, generator=torch.Generator().manual_seed(3))
IDS = torch.tensor([[0, 3, 11], [2, 2, 5]])


def matrix(start: int, stop: int, transposed: bool = False) -> PackedMatrix:
    """Random codes, one of them far off, with steps of rows and columns."""
    generator = torch.Generator().manual_seed(start + 100 * transposed)
    shape = (C, stop - start) if transposed else (stop - start, C)
    codes = torch.randint(-5, 6, shape, generator=generator, dtype=torch.int32)
    codes[1, 1] = 3000
    row, column = (torch.rand(n, generator=generator) + 0.5 for n in shape)
    return PackedMatrix(pack(codes, row, column), start, stop, transposed)


def parameter(kind: str) -> PackedParameter:
    if kind == "whole":
        return PackedParameter("w", (R, C), 1, [matrix(0, R)], torch.float32)
    if kind == "transposed":
        return PackedParameter("w", (R, C), 1, [matrix(0, R, True)], torch.float32)
    if kind == "parts":
        blocks = [matrix(0, 5), KeptRows(torch.randn(3, C), 5), matrix(8, R)]
        return PackedParameter("w", (R, C), 1, blocks, torch.float32)
    if kind == "turned parts":
        blocks = [matrix(0, 5, True), KeptRows(torch.randn(3, C), 5), matrix(8, R, True)]
        return PackedParameter("w", (R, C), 1, blocks, torch.float32)
    transposed = kind == "turned bank"
    return PackedParameter("w", (3, 4, C), 2, [matrix(4 * i, 4 * i + 4, transposed) for i in range(3)], torch.float32)


Call = Callable[[Any], Any]
PRODUCTS: list[tuple[str, str, Call]] = [
    ("whole", "linear", lambda w: F.linear(X, w)),
    ("whole", "linear of a slice, with bias", lambda w: F.linear(X, w[3:7], torch.ones(4))),
    ("whole", "linear by name", lambda w: F.linear(input=X, weight=w.float().detach(), bias=None)),
    ("whole", "columns", lambda w: F.linear(X[..., 2:6], w[:, 2:6])),
    ("whole", "one row", lambda w: F.linear(X, w[4:5])),
    ("whole", "one column", lambda w: F.linear(X[..., :1], w[:, 3:4])),
    ("whole", "operator", lambda w: X @ w.T),
    ("whole", "reverse operator", lambda w: w @ X[0].T),
    ("whole", "vector", lambda w: w @ X[0, 0]),
    ("whole", "mv", lambda w: torch.mv(w, X[0, 0])),
    ("whole", "matmul of transposes", lambda w: torch.matmul(X, torch.transpose(w, 0, 1))),
    ("whole", "method", lambda w: X.matmul(w.mT)),
    ("whole", "mm", lambda w: X[0].mm(w.t())),
    ("whole", "addmm", lambda w: torch.addmm(torch.ones(R), X[0], w.permute(1, 0), beta=2, alpha=0.5)),
    ("whole", "einsum", lambda w: torch.einsum("bti,oi->bto", X, w)),
    ("whole", "einsum over rows kept apart", lambda w: torch.einsum("...i,hdi->h...d", X, w.view(3, 4, C))),
    ("whole", "einsum, weight first", lambda w: torch.einsum("oi,bti->tbo", w, X)),
    ("whole", "split", lambda w: torch.cat([F.linear(X, part) for part in w.split([2, 7, 3])], -1)),
    ("whole", "chunks", lambda w: [F.linear(X, part) for part in torch.chunk(w, 4)][2]),
    ("whole", "flatten", lambda w: F.linear(X, w.view(3, 4, C).flatten(0, 1))),
    ("whole", "squeezed", lambda w: F.linear(X, w.unsqueeze(0).squeeze(0).narrow(0, 2, 5))),
    ("whole", "embedding", lambda w: F.embedding(IDS, w)),
    ("whole", "embedding with padding", lambda w: F.embedding(IDS, w, padding_idx=0)),
    ("whole", "indexing", lambda w: w[IDS - 3]),
    ("whole", "index_select", lambda w: w.index_select(0, IDS[0])),
    ("transposed", "x @ w", lambda w: Z @ w),
    ("transposed", "rows of w", lambda w: Z[..., 2:6] @ w[2:6]),
    ("transposed", "columns of w", lambda w: torch.matmul(Z, w[:, 3:5])),
    ("transposed", "conv1d of GPT-2", lambda w: torch.addmm(torch.ones(C), Z.view(-1, R), w)),
    ("parts", "linear", lambda w: F.linear(X, w)),
    ("parts", "across two", lambda w: F.linear(X, w[3:10])),
    ("turned parts", "x @ w", lambda w: Z @ w),
    ("turned parts", "across two", lambda w: Z[..., 3:10] @ w[3:10]),
    ("bank", "slices", lambda w: F.linear(X, w[2].to(X.dtype)) + F.linear(X, w.unbind()[0])),
    ("bank", "all at once", lambda w: F.linear(X, w.flatten(0, 1))),
    ("bank", "bmm", lambda w: torch.bmm(E3, w.transpose(1, 2))),
    ("bank", "stack, broadcast", lambda w: X[0] @ w.mT),
    ("bank", "experts by einsum", lambda w: torch.einsum("eti,eoi->teo", E3, w)),
    ("bank", "iterated", lambda w: torch.stack([F.linear(X, each) for each in w])),
    ("turned bank", "experts", lambda w: torch.matmul(Z[:, None, :, :4].expand(2, 3, 5, 4), w)),
    ("turned bank", "weight first", lambda w: w.mT @ Z[0, :, :4].mT),
]  # fmt: skip
UNPACKED: list[tuple[str, str, Call]] = [
    ("whole", "crossed", lambda w: Z @ w),
    ("transposed", "crossed", lambda w: F.linear(X, w)),
    ("transposed", "crossed rows", lambda w: F.embedding(IDS, w)),
    ("parts", "rows of several", lambda w: F.embedding(IDS, w)),
    ("whole", "every second row", lambda w: F.linear(X, w[::2])),
    ("whole", "fp64", lambda w: F.linear(X.double(), w.double())),
    ("whole", "sums", lambda w: w.float().square().sum()),
    ("whole", "arithmetic", lambda w: 1 - w / 2),
    ("whole", "lists", lambda w: torch.cat([w, w], 1)),
    ("whole", "convolution", lambda w: F.conv1d(X.mT, w[:, :, None])),
    ("whole", "masks", lambda w: w[w > 0]),
    ("bank", "copies", lambda w: w.transpose(0, 1).reshape(4, -1)),
]  # fmt: skip


def name(case: tuple[str, str, Call]) -> str:
    return f"{case[0]}: {case[1]}"


@pytest.mark.parametrize("case", PRODUCTS, ids=name)
def test_products_are_those_of_the_numbers(case: tuple[str, str, Call]) -> None:
    """Warnings are errors here: none of these unpacks anything."""
    weight = parameter(case[0])
    found, expected = case[2](weight), case[2](weight.dequantize())
    assert isinstance(found, Tensor) and found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4 * float(expected.abs().max()) * 0.1)


@pytest.mark.parametrize("case", UNPACKED, ids=name)
def test_what_has_no_product_is_unpacked_and_said(case: tuple[str, str, Call]) -> None:
    weight = parameter(case[0])
    with pytest.warns(UserWarning, match="packed weight w is unpacked to floating point at each call of"):
        found = case[2](weight)
    torch.testing.assert_close(found, case[2](weight.dequantize()))


def test_the_warning_names_the_function_and_is_shown_once() -> None:
    weight = parameter("whole")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            torch.tanh(weight)
    assert [str(each.message).split(" of ")[1].split(",")[0] for each in said] == ["tanh"]


def test_looks_like_its_parameter() -> None:
    weight, dense = parameter("bank"), parameter("bank").dequantize()
    for each, tensor in ((weight, dense), (weight[1].T, dense[1].T), (weight[:, 1:3], dense[:, 1:3])):
        assert each.shape == tensor.shape == each.size() and each.ndim == each.dim() == tensor.ndim
        assert each.size(-1) == tensor.size(-1) and each.numel() == tensor.numel() and len(each) == len(tensor)
        assert each.stride() == tensor.stride() and each.stride(0) == tensor.stride(0)
        assert each.dtype == torch.float32 and each.device == tensor.device and not each.is_cuda
        assert each.is_floating_point() and not each.requires_grad and each.grad is None and each.data is each
        assert torch.equal(each.dequantize(), tensor)
    assert weight.to(torch.bfloat16).dtype == torch.bfloat16 == weight.half().type_as(X.bfloat16()).dtype
    assert weight.to(X).dtype == weight.to("cpu").dtype == weight.contiguous().clone().cpu().dtype == torch.float32
    assert isinstance(weight, nn.Module) and not isinstance(weight, Tensor)
    assert "w, [3, 4, 8]" in repr(weight) and repr(weight[1]) == "View(w, [4, 8], torch.float32)"
    with pytest.raises(IndexError):
        weight[3]


@pytest.mark.parametrize(
    "change",
    [lambda w: w.mul_(2), lambda w: nn.init.normal_(w), lambda w: w[0].zero_(), lambda w: w.requires_grad_(),
     lambda w: w.__setitem__(0, 1.0), lambda w: torch.add(X[0], 1, out=w), lambda w: F.embedding(IDS, w, None, 1.0)],
)  # fmt: skip
def test_changes_are_refused(change: Call) -> None:
    with pytest.raises(QuantGolfError, match="packed weight w was to be changed by"):
        change(parameter("whole"))


def test_shapes_that_do_not_fit_are_named() -> None:
    weight = parameter("whole")
    for call in (lambda: X @ weight, lambda: F.linear(Z, weight), lambda: torch.einsum("bti,oi->bto", Z, weight)):
        with pytest.raises(QuantGolfError, match=r"packed weight w was given torch.float32 \[2, 5, \d+\]"):
            call()


def test_gradients_reach_the_activations() -> None:
    for kind, call in (("whole", lambda x, w: F.linear(x, w[2:9])), ("transposed", lambda x, w: x @ w.T.T)):
        weight = parameter(kind)
        grads = []
        for each in (weight, weight.dequantize()):
            x = (X if kind == "whole" else Z).clone().requires_grad_()
            call(x, each).square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1.0)


def test_experts_without_tokens_and_empty_input() -> None:
    assert F.linear(X[:0], parameter("whole")).shape == (0, 5, R)
    assert F.embedding(IDS[:0], parameter("whole")).shape == (0, 3, C)
