"""Packed codes back into weights, to the bit: all of a matrix, or chosen rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed_cases import arguments, case

pytest.importorskip("triton")

from quantgolf_kernels.packing import Packed
from quantgolf_kernels.reference import weights
from quantgolf_kernels.unpack import unpack_rows

CONFIG = {"block_n": 4, "block_k": 64, "num_warps": 4, "num_stages": 2}


def unpacked(packed: Packed, chosen: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return unpack_rows(
        chosen, *arguments(packed), packed.bits, packed.offset, packed.columns, packed.group_size, dtype, CONFIG
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (7, 576), (5, 130), (9, 1024)])
def test_bits_are_those_of_the_reference(bits: int, shape: tuple[int, int], device: torch.device) -> None:
    for column, outliers in ((True, 6), (False, 0)):
        packed = case(shape, bits, device, column=column, outliers=min(outliers, shape[0] * shape[1])).packed
        chosen = torch.randint(0, shape[0], (6,), generator=torch.Generator().manual_seed(0)).to(device)
        for dtype in (torch.float32, torch.float16):
            wanted = weights(packed).to(dtype)
            assert torch.equal(unpacked(packed, None, dtype), wanted)
            assert torch.equal(unpacked(packed, chosen, dtype), wanted[chosen])
            assert torch.equal(unpacked(packed, chosen.int(), dtype), wanted[chosen])


def test_tokens_that_are_none_give_nan_and_read_nothing(device: torch.device) -> None:
    packed = case((5, 70), 3, device, outliers=4).packed
    found = unpacked(packed, torch.tensor([-1, 2, 5, 1 << 40], device=device), torch.float32)
    assert torch.equal(found[1], weights(packed)[2]) and found[[0, 2, 3]].isnan().all()


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_groups(zero: bool, narrow: bool, device: torch.device) -> None:
    for bits in (3, 4, 8):
        packed = case((5, 200), bits, device, group_size=48, zero=zero, outliers=7, narrow=narrow).packed
        assert torch.equal(unpacked(packed, None, torch.float32), weights(packed))


def test_compiles_for_hopper(ahead: Callable[[str], list[dict[str, Any]]]) -> None:
    found = ahead("""
from quantgolf_kernels.packing import row_words
from quantgolf_kernels.unpack import unpack_rows
config = {"block_n": 4, "block_k": 128, "num_warps": 4, "num_stages": 2}
for bits in (3, 4, 6):
    data = torch.empty(4096, row_words(bits, 4096), dtype=torch.int32)
    steps = torch.empty(4096), torch.empty(4096), torch.empty(4096 + 65, dtype=torch.int32)
    for chosen in (None, torch.empty(64, dtype=torch.int64)):
        unpack_rows(chosen, data, *steps, None, None, bits, 1 << (bits - 1), 4096, 0, torch.bfloat16, config)
""")
    assert [kernel["name"] for kernel in found] == ["rows_kernel"] * 6
