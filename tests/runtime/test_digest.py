"""Digests of any shape and in any order of memory, and the parts that a tensor is worked on in."""

import sys
from hashlib import blake2b

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.runtime import digest
from quantgolf.runtime.digest import matrix_of, rows_of

NOTHING = blake2b(b"", digest_size=16).hexdigest()


def at_once(tensor: Tensor) -> str:
    return blake2b(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (0, 0, 3), (2, 0), (2, 0, 3), (0, 4, 0)])
def test_tensors_without_values(shape: tuple[int, ...]) -> None:
    assert digest(torch.empty(shape)) == NOTHING
    assert matrix_of(torch.empty(shape)).dim() == 2 and list(rows_of(matrix_of(torch.empty(shape)))) == []


@given(st.lists(st.integers(0, 6), max_size=4), st.sampled_from([torch.float32, torch.bfloat16, torch.int8]))
def test_they_are_those_of_the_bytes(shape: list[int], dtype: torch.dtype) -> None:
    tensor = (torch.arange(int(torch.tensor(shape).prod())) % 100).reshape(shape).to(dtype)
    turned = tensor.permute(tuple(reversed(range(tensor.dim()))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["quantgolf.runtime.digest"], "AT_ONCE", 7)
        for each in (tensor, turned):
            if each.numel():
                assert digest(each) == at_once(each)
            parts = [part.reshape(-1) for part in rows_of(matrix_of(each))]
            assert all(0 < len(part) <= 7 for part in parts)
            assert torch.equal(torch.cat([*parts, tensor.new_empty(0)]), each.reshape(-1))


@pytest.mark.parametrize("shape", [(), (3,), (4_500_000,), (1, 4_500_000), (2, 4_200_000), (4_200_000, 2)])
def test_long_rows_and_many_rows(shape: tuple[int, ...]) -> None:
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    assert digest(tensor) == at_once(tensor)
    assert max(part.numel() for part in rows_of(matrix_of(tensor))) <= 1 << 22
