"""The op that defines what a code stands for: exact values, and everything torch asks of a custom op."""

import pytest
import torch

from quantgolf_kernels import dequantize


def test_products_are_rounded_in_the_stated_order() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (5, 9), generator=generator)
    row, column = torch.rand(5, generator=generator).half(), torch.rand(9, generator=generator)
    weight = dequantize(codes.to(torch.int8), row, column)
    for i in range(5):
        for j in range(9):
            assert weight[i, j] == codes[i, j].float() * (row[i].float() * column[j])
    assert torch.equal(dequantize(codes.to(torch.int16), row), codes.float() * row.float()[:, None])


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_torch_accepts_the_op(dtype: torch.dtype) -> None:
    codes = torch.ones(3, 4, dtype=dtype)
    for arguments in ((codes, torch.ones(3)), (codes, torch.ones(3).half(), torch.ones(4))):
        torch.library.opcheck(torch.ops.quantgolf.dequantize.default, arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_the_same_bits() -> None:
    codes = torch.randint(-127, 128, (64, 64)).to(torch.int8)
    row, column = torch.rand(64).half(), torch.rand(64)
    assert torch.equal(dequantize(codes.cuda(), row.cuda(), column.cuda()).cpu(), dequantize(codes, row, column))
