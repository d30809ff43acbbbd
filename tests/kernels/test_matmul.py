"""Products with packed matrices: the kernels against float64, under the interpreter or on a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed_cases import arguments, case, far

pytest.importorskip("triton")

from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.gemv import gemv
from quantgolf_kernels.packing import pack

WIDTHS = range(2, 9)
GEMV = {"block_n": 4, "block_k": 128, "num_warps": 1, "num_stages": 2}
GEMM = {"block_n": 64, "block_m": 16, "block_k": 32, "split_k": 1, "num_warps": 4, "num_stages": 2}
# fp32 is exact to rounding. In fp16 activations and results are rounded, and so is their product with column steps.
BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]


def product(
    many: int, shape: tuple[int, int], bits: int, dtype: torch.dtype, device: torch.device, **given: Any
) -> float:
    """The distance of a kernel's product to float64's, activations in memory with a stride of their own."""
    config = {**(GEMV if many == 1 else GEMM), **given.pop("config", {})}
    made = case(shape, bits, device, **given)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(many, shape[1] + 3, generator=generator).to(dtype).to(device)[:, : shape[1]]
    packed = made.packed
    kernel = gemv if many == 1 else gemm
    found = kernel(x, *arguments(packed), packed.bits, packed.offset, packed.columns, packed.group_size, config)
    assert found.dtype == dtype and found.shape == (many, shape[0])
    return far(found, x.double() @ made.weight.T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("many", [1, 5])
def test_every_width(many: int, bits: int, dtype: torch.dtype, device: torch.device) -> None:
    assert product(many, (7, 576), bits, dtype, device, outliers=5) < BOUNDS[dtype]
    assert product(many, (70, 512), bits, dtype, device, column=False) < BOUNDS[dtype]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 129), (65, 31), (16, 1000)])
@pytest.mark.parametrize("many", [1, 2, 17])
def test_odd_sizes(many: int, shape: tuple[int, int], device: torch.device) -> None:
    for bits in (3, 4, 6, 8):
        assert product(many, shape, bits, torch.float32, device, outliers=1) < BOUNDS[torch.float32]


@pytest.mark.parametrize("bits", [3, 4, 7, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("many", "group_size"), [(1, 16), (1, 64), (3, 32), (3, 128)])
def test_groups_with_scales_and_zeros(many: int, group_size: int, zero: bool, bits: int, device: torch.device) -> None:
    for columns in (512, 520):
        wrong = product(many, (9, columns), bits, torch.float32, device, group_size=group_size, zero=zero, outliers=4)
        assert wrong < BOUNDS[torch.float32]
    assert product(many, (9, 256), bits, torch.float16, device, group_size=group_size, zero=zero) < 2e-3


@pytest.mark.parametrize("bits", [5, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("many", "group_size"), [(1, 512), (3, 48)])
def test_scales_and_zeros_as_narrow_as_files_have_them(
    many: int, group_size: int, zero: bool, bits: int, device: torch.device
) -> None:
    """512 is more than all columns: of one group a row."""
    given: dict[str, Any] = {"group_size": group_size, "zero": zero, "narrow": True}
    made = case((5, 264), bits, device, **given).packed
    assert made.scale is not None and made.scale.dtype == torch.float16
    assert (made.zero is None) if not zero else made.zero is not None and made.zero.dtype == torch.int8
    assert product(many, (5, 264), bits, torch.float32, device, outliers=4, **given) < BOUNDS[torch.float32]
    assert product(many, (5, 130), bits, torch.float16, device, **given) < 2e-3


def test_many_outliers_in_one_row_and_none_in_others(device: torch.device) -> None:
    for many in (1, 2):
        assert product(many, (5, 96), 3, torch.float32, device, outliers=130) < BOUNDS[torch.float32]
        assert product(many, (70, 32), 3, torch.float32, device, outliers=2) < BOUNDS[torch.float32]


@pytest.mark.parametrize("split_k", [2, 5, 100])
def test_split_columns_add_up_and_are_the_same_again(split_k: int, device: torch.device) -> None:
    made = case((40, 2048), 4, device, outliers=30)
    x = torch.randn(6, 2048, generator=torch.Generator().manual_seed(0)).to(device)
    packed = made.packed
    config = {**GEMM, "split_k": split_k, "block_k": 16}
    found = [gemm(x, *arguments(packed), packed.bits, packed.offset, packed.columns, 0, config) for _ in range(2)]
    assert far(found[0], x.double() @ made.weight.T) < BOUNDS[torch.float32]
    assert torch.equal(*found)


def test_a_large_level_fits_fp16_sums(device: torch.device) -> None:
    codes = torch.zeros(4, 64, dtype=torch.int32, device=device)
    codes[2, 5] = 1 << 20
    packed = pack(codes, torch.full((4,), 2.0**-20, device=device), bits=4)
    x = torch.ones(3, 64, dtype=torch.float16, device=device)
    for rows in (1, 3):
        kernel, config = (gemv, GEMV) if rows == 1 else (gemm, GEMM)
        found = kernel(x[:rows], *arguments(packed), packed.bits, packed.offset, 64, 0, config)
        assert found[:, 2].tolist() == [1.0] * rows and not found[:, [0, 1, 3]].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_one_large_activation_drowns_nothing(bits: int, device: torch.device) -> None:
    """Trained models have a few of a thousand times the others; here it meets codes of zero."""
    torch.manual_seed(bits)
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (16, 1024), dtype=torch.int32, device=device)
    codes[:, 5] = 0
    packed = pack(codes, torch.full((16,), 1e-3, device=device), bits=bits)
    x = torch.randn(2, 1024, device=device).half()
    x[:, 5] = 3000
    wanted = x.double() @ (codes.double() * float(packed.row[0])).T
    for rows, kernel, config in ((1, gemv, GEMV), (2, gemm, GEMM)):
        found = kernel(x[:rows], *arguments(packed), packed.bits, packed.offset, 1024, 0, config)
        assert far(found, wanted[:rows]) < 4e-3


@pytest.mark.parametrize("step", [None, 9.0])
def test_activations_times_steps_may_be_more_than_fp16_holds(step: float | None, device: torch.device) -> None:
    column = None if step is None else torch.ones(64, device=device)
    if column is not None:
        column[3] = step
    codes = torch.full((4, 64), 5, dtype=torch.int32, device=device)
    packed = pack(codes, torch.full((4,), 1e-3, device=device), column, bits=4)
    x = torch.rand(2, 64, device=device).half() + 1
    x[0, 3] = 20000 if step else 60000
    wanted = x.double() @ (codes.double() * 1e-3 * (1 if column is None else column.double())).T
    found = gemm(x, *arguments(packed), packed.bits, packed.offset, 64, 0, GEMM)
    assert far(found[0], wanted[0]) < 1e-3 and far(found[1], wanted[1]) < 1e-3


COMPILE = """
from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.gemv import gemv
from quantgolf_kernels.packing import row_words
for bits in {widths}:
    for rows, columns in {shapes}:
        data = torch.empty(rows, row_words(bits, columns), dtype=torch.int32)
        steps = torch.empty(rows), torch.empty(columns)
        outliers = torch.empty(rows + 33, dtype=torch.int32)
        x = torch.empty({many}, columns, dtype=torch.bfloat16)
        {kernel}(x, data, *steps, outliers, None, None, bits, 1 << (bits - 1), columns, 0, {config})
"""


@pytest.mark.parametrize("widths", [(2, 4, 8), (3, 5), (6, 7)])
def test_gemv_compiles_for_hopper_without_moving_weights(
    widths: tuple[int, ...], ahead: Callable[[str], list[dict[str, Any]]]
) -> None:
    config = {**GEMV, "block_n": 4}
    shapes = [(8192, 8192), (2048, 512)]
    found = ahead(COMPILE.format(widths=widths, shapes=shapes, many=1, kernel="gemv", config=config))
    assert [kernel["name"] for kernel in found] == ["gemv_kernel"] * len(widths) * 2
    for kernel in found[::2]:
        # One mask-and-or a plane and weight, words loaded 16 bytes a thread, and no way through shared memory.
        assert kernel["code"].count("LDG.E.128") and not any(op.startswith("LDSM") for op in kernel["code"])
        assert kernel["shared"] <= 1024


@pytest.mark.parametrize("widths", [(2, 4, 8), (3, 5), (6, 7)])
def test_gemm_uses_hoppers_tensor_cores(widths: tuple[int, ...], ahead: Callable[[str], list[dict[str, Any]]]) -> None:
    script = COMPILE.format(widths=widths, shapes=[(4096, 4096)], many=16, kernel="gemm", config=GEMM)
    found = [kernel for kernel in ahead(script) if kernel["name"] == "gemm_kernel"]
    assert len(found) == len(widths)
    for kernel in found:
        assert kernel["wgmma"] > 0, "no wgmma"
        # Words go to registers as they are: what is stored to shared memory on the way is the result alone.
        assert any(op.startswith("HGMMA") for op in kernel["code"])


NARROW = """
from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.gemv import gemv
from quantgolf_kernels.packing import row_words
data, row = torch.empty(4096, row_words(4, 4096), dtype=torch.int32), torch.empty(4096)
scale, zero = torch.empty(4096, 64, dtype=torch.float16), torch.empty(4096, 64, dtype=torch.int8)
for many, kernel, config in ((1, gemv, {gemv}), (16, gemm, {gemm})):
    kernel(torch.empty(many, 4096, dtype=torch.bfloat16), data, row, None, None, scale, zero, 4, 8, 4096, 64, config)
"""


def test_narrow_scales_and_zeros_compile_for_hopper(ahead: Callable[[str], list[dict[str, Any]]]) -> None:
    found = {kernel["name"]: kernel for kernel in ahead(NARROW.format(gemv=GEMV, gemm=GEMM))}
    assert set(found) == {"gemv_kernel", "prepare_kernel", "gemm_kernel"} and found["gemm_kernel"]["wgmma"] > 0
