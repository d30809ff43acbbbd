"""Scales and zeros by groups of columns, from file to module: packed where kernels take the size, to the same bits."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantgolf.blob import read_blob
from quantgolf.encode import block_bytes, decode_model
from quantgolf.models.golf import Golf
from quantgolf.runtime import QuantEmbedding, load, materialize, memory
from quantgolf.runtime.packed import packed_of
from quantgolf.types import Block, CodedGroups, Groups, QTensor
from quantgolf_kernels import Packed
from quantgolf_kernels.reference import weights

Make = Callable[..., Path]
TOKENS = torch.arange(2 * 20).reshape(2, 20) % 90
EVERY = [CodedGroups(size, zeros, base) for size in (16, 1000) for zeros in (False, True) for base in (None, 0)]


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def named(groups: CodedGroups) -> str:
    kind = "fp16" if groups.base is None else "log"
    return f"{groups.size} {kind}{' zeros' * groups.zeros}"


@pytest.mark.parametrize("groups", EVERY, ids=named)
@pytest.mark.parametrize("banks", [False, True])
def test_golf_models(made: Make, built: Callable[..., Golf], banks: bool, groups: CodedGroups) -> None:
    """Of 16 columns, and of all: the same bits as floats, the same numbers packed, and the same parameters again."""
    path = made(built(banks=banks), groups=groups)
    packed, dense = load(path, materialize=False), load(path)
    parts = dict(decode_model(read_blob(path)[1]))
    for place, part in parts.items():
        kept = dict(dense.named_parameters())[place.parameter]
        assert torch.equal(place.matrix(kept), part.dequantize()) if isinstance(part, QTensor) else part.numel()
    assert isinstance(packed, Golf) and isinstance(packed.emb, QuantEmbedding)
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
    held, count = memory(packed), sum(isinstance(part, QTensor) for part in parts.values())
    assert sum(len(tensor.bits) for tensor in held.tensors) == count and {b for t in held.tensors for b in t.bits} == {
        4
    }
    spent = sum(each.matrix for blocks in block_bytes(read_blob(path)[1]) for each in blocks)
    assert held.file_bpw == pytest.approx(8 * spent / sum(tensor.packed for tensor in held.tensors))
    again = dict(materialize(packed).named_parameters())
    assert again and all(torch.equal(again[name], tensor) for name, tensor in dense.named_parameters())


class Transposed(nn.Module):
    """Weights stored [in, out], whole and in a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(40, 50)), nn.Parameter(torch.randn(3, 50, 40))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x @ self.up)
        return torch.stack([torch.matmul(x, self.down[i]) for i in range(3)])


@pytest.mark.parametrize("size", [16, 32, 1000])
def test_transposed_blocks(made: Make, size: int) -> None:
    torch.manual_seed(0)
    model = Transposed()
    blocks = {
        "up": [Block("up", 1, 0, 40, transposed=True)],
        "down": [Block("down", 2, 0, 50, transposed=True), Block("down", 2, 100, 150, transposed=True)],
    }
    path = made(model, blocks=blocks, groups=CodedGroups(size, True, 0))
    other = copy.deepcopy(model)
    packed, dense = load(path, model, materialize=False), load(path, other)
    with torch.no_grad():
        close(packed(torch.eye(7, 40)), dense(torch.eye(7, 40)))
    assert {tensor.name: len(tensor.bits) for tensor in memory(packed).tensors} == {"up": 1, "down": 2}


def test_sizes_that_no_kernel_takes_are_kept_and_said(made: Make, built: Callable[..., Golf]) -> None:
    path = made(built(banks=True), groups=CodedGroups(24, True, None))
    with pytest.warns(
        UserWarning, match=r"not packed: .*up_bank\.1, .*emb\.weight \(groups of 24 columns are no multiple of 16\)$"
    ):
        packed = load(path, materialize=False)
    dense = load(path)
    with torch.no_grad():
        close(packed(TOKENS), dense(TOKENS))
    held = {tensor.name: tensor for tensor in memory(packed).tensors}
    assert held["up_bank"].packed_bytes == 0 and held["up_bank"].float_bytes == dense.up_bank.nbytes


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize(("columns", "size"), [(100, 100), (100, 48), (64, 16), (7, 7), (1, 1), (200, 5), (33, 1)])
@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_packed_weights_have_the_same_bits(columns: int, size: int, bits: int, logarithmic: bool, zeros: bool) -> None:
    generator, half = torch.Generator().manual_seed(bits), 2 ** (bits - 1)
    shape = 6, -(-columns // size)
    scale = torch.randint(-1904, 1905, shape, generator=generator).short()
    if not logarithmic:
        scale = (torch.rand(shape, generator=generator) * 2.0 ** torch.arange(-22, 14, 6)[:, None]).half()
    scale[3] = -1904 if logarithmic else 0
    zero = torch.randint(-half, half, shape, generator=generator).to(torch.int8) if zeros else None
    codes = torch.randint(-half + (not zeros), half, (6, columns), generator=generator).to(torch.int8)
    groups = Groups(scale, zero, size)
    packed = packed_of(codes, groups)
    if size < columns and size % 16:
        assert packed == f"groups of {size} columns are no multiple of 16"
        return
    assert isinstance(packed, Packed)
    assert torch.equal(weights(packed), QTensor(codes, groups, bits).dequantize())
    if packed.scale is None:
        assert shape[1] == 1 and not zeros
        return
    assert packed.zero is None or packed.zero.dtype == torch.int8
    assert logarithmic or packed.scale.dtype == torch.float16


def test_small_and_large_scales_fit_into_half_precision() -> None:
    """Weights of 1e-7 and of 1e6, neither of which fp16 holds, are about their codes; those of a row too far apart stay
    what they are, and fp16 scales that differ by more than it has room for become fp32."""
    codes, zero = torch.arange(-8, 8).to(torch.int8).repeat(3, 4), torch.zeros(3, 4, dtype=torch.int8)
    scale = torch.tensor([[-370] * 4, [320] * 4, [1904, 0, -1904, 0]]).short()
    packed = packed_of(codes, Groups(scale, zero, 16))
    assert isinstance(packed, Packed) and packed.scale is not None
    assert 0.5 <= float(packed.scale[:2].min()) <= float(packed.scale[:2].max()) < 1
    assert packed.row.tolist() == [2.0**-23, 2.0**21, 1.0]
    far = packed_of(codes, Groups(torch.tensor([[6e-8, 6e4, 0, 1]] * 3).half(), zero, 16))
    assert isinstance(far, Packed) and far.scale is not None and far.scale.dtype == torch.float32
    assert float(far.scale.max()) < 1


def test_memory_of_groups_is_that_of_narrow_numbers(made: Make, built: Callable[..., Golf]) -> None:
    """fp16 scales take 16 bits, logarithmic ones 32, zeros 8: of 16 columns 1.5 or 2.5 bits a weight, and row steps."""
    for base, each in ((None, 3), (0, 5)):
        held: Any = memory(load(made(built(), groups=CodedGroups(16, True, base)), materialize=False))
        up = next(tensor for tensor in held.tensors if tensor.name == "blocks.0.up.weight")
        rows, columns = up.shape
        assert up.packed_bytes == rows * (columns // 2 + columns // 16 * each + 4)
