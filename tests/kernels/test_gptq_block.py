"""The block of GPTQ on a GPU: the CPU's codes to the bit, and those of plain loops in float64 but for ties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from quantgolf.solve.gptq import factorise, solve_block
from quantgolf_kernels.solve_ops import gptq_block

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def launch(*arguments: object) -> tuple[Tensor, Tensor]:
    from quantgolf_kernels.gptq_block import launch_gptq_block

    moved = [part.to(DEVICE) if isinstance(part, Tensor) else part for part in arguments]
    return tuple(found.cpu() for found in launch_gptq_block(*moved))  # type: ignore[arg-type, return-value]


def case(batch: int, rows: int, columns: int, top: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and factors whose feedback matters, and steps that clip a few weights."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(batch, columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(batch, 4 * columns, columns, generator=generator) @ mixing
    upper = torch.stack([factorise(x.T @ x / len(x), 0.01, False, "w").upper for x in inputs])
    weight = torch.randn(batch, rows, columns, generator=generator)
    return weight, upper, weight.abs().amax(2).mul(0.8 / top).clamp(min=1e-6)


def rows_of(step: Tensor, columns: int, top: int) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """One scale a row [B, N] and no zeros, as the op takes them."""
    group = torch.zeros(len(step), columns, dtype=torch.int32)
    return step[:, None], torch.zeros_like(step[:, None], dtype=torch.int8), group, -top, top


def groups_of(
    weight: Tensor, groups: int, lowest: int, highest: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Scales and zeros of groups whose columns lie anywhere, as with act_order, different ones in every matrix."""
    generator = torch.Generator().manual_seed(seed)
    batch, rows, columns = weight.shape
    group = torch.randint(0, groups, (batch, columns), generator=generator, dtype=torch.int32)
    step = (weight.abs().max() / (highest - lowest) * 1.7) * (
        0.5 + torch.rand(batch, groups, rows, generator=generator)
    )
    zero = torch.randint(lowest, highest + 1, (batch, groups, rows), generator=generator, dtype=torch.int8)
    return step, zero, group, lowest, highest


def on_the_cpu(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    codes, errors = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape)
    for b in range(len(weight)):
        rest, triangle = weight[b].float().T.clone(memory_format=torch.contiguous_format), upper[b].float().contiguous()
        found, left = np.empty(rest.shape, dtype=np.int8), np.empty(rest.shape, dtype=np.float32)
        solve_block(
            rest.numpy(), triangle.numpy(), step[b].numpy(), zero[b].float().numpy(), group[b].long().numpy(), lowest,
            highest, found, left,
        )  # fmt: skip
        codes[b], errors[b] = torch.from_numpy(found).T, torch.from_numpy(left).T
    return codes, errors


def in_plain_loops(
    weight: Tensor, upper: Tensor, step: Tensor, zero: Tensor, group: Tensor, lowest: int, highest: int
) -> tuple[NDArray[np.int64], float]:
    """Codes of one matrix, and how near to a tie the nearest target came, in steps."""
    w, u, s = weight.double().numpy().copy(), upper.double().numpy(), step.double().numpy()
    codes, margin = np.zeros(w.shape, dtype=np.int64), 1.0
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            size, z = s[group[j], i], int(zero[group[j], i])
            target = w[i, j] / size
            codes[i, j] = min(max(round(target) + z, lowest), highest)
            if lowest < target + z < highest:
                margin = min(margin, abs(abs(target - np.floor(target)) - 0.5))
            error = (w[i, j] - (codes[i, j] - z) * size) / u[j, j]
            for k in range(j + 1, w.shape[1]):
                w[i, k] -= error * u[j, k]
    return codes, margin


@settings(deadline=None, max_examples=10)
@given(
    batch=st.integers(1, 2), rows=st.integers(1, 9), columns=st.integers(1, 20), top=st.sampled_from([1, 3, 31, 127]),
    double=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_codes_are_those_of_the_cpu(batch: int, rows: int, columns: int, top: int, double: bool, seed: int) -> None:
    weight, upper, step = case(batch, rows, columns, top, seed)
    if double:
        weight = weight.double()
    rounding = rows_of(step, columns, top)
    found = launch(weight, upper, *rounding)
    for codes, errors in (on_the_cpu(weight, upper, *rounding), gptq_block(weight, upper, *rounding)):
        assert torch.equal(found[0], codes) and torch.equal(found[1], errors.to(found[1].dtype))
    assert found[0].dtype == torch.int8 and found[1].dtype == weight.dtype


@settings(deadline=None, max_examples=10)
@given(
    batch=st.integers(1, 2), rows=st.integers(1, 9), columns=st.integers(1, 20), groups=st.integers(1, 5),
    codes=st.sampled_from([(-2, 1), (-3, 3), (-8, 7), (-128, 127)]), double=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_codes_in_groups_are_those_of_the_cpu(
    batch: int, rows: int, columns: int, groups: int, codes: tuple[int, int], double: bool, seed: int
) -> None:
    weight, upper, _ = case(batch, rows, columns, 1, seed)
    rounding = groups_of(weight, groups, *codes, seed)
    if double:
        weight = weight.double()
    found = launch(weight, upper, *rounding)
    for expected, errors in (on_the_cpu(weight, upper, *rounding), gptq_block(weight, upper, *rounding)):
        assert torch.equal(found[0], expected) and torch.equal(found[1], errors.to(found[1].dtype))
    assert codes[0] <= int(found[0].min()) <= int(found[0].max()) <= codes[1]


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(1, 6), columns=st.integers(1, 12), top=st.integers(1, 127), groups=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_codes_are_those_of_plain_loops(rows: int, columns: int, top: int, groups: int, seed: int) -> None:
    weight, upper, step = case(1, rows, columns, top, seed)
    rounding = groups_of(weight, groups, -top - 1, top, seed) if groups else rows_of(step, columns, top)
    codes, _ = launch(weight, upper, *rounding)
    expected, margin = in_plain_loops(weight[0], upper[0], *(side[0] for side in rounding[:3]), *rounding[3:])
    if margin > 1e-3:  # fp32 may settle a tie differently, and whatever follows in that row
        assert np.array_equal(codes[0].numpy(), expected)


def test_ties_go_to_even_and_levels_stay_within() -> None:
    targets = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5, -2.5, 2.4999998, 99.0, -99.0, 0.0])
    place = targets.reshape(1, -1, 1), torch.full((1, 1, 1), 2.0)
    codes, errors = launch(*place, *rows_of(torch.ones(1, 10), 1, 2))
    assert codes.flatten().tolist() == [0, 2, 0, -2, 2, -2, 2, 2, -2, 0]
    assert torch.equal(errors.flatten(), (targets - codes.flatten()) / 2)
    # Levels go to even, not codes: a zero of 1 changes no rounding.
    zero, group = torch.ones(1, 1, 10, dtype=torch.int8), torch.zeros(1, 1, dtype=torch.int32)
    codes, errors = launch(*place, torch.ones(1, 1, 10), zero, group, -2, 1)
    assert codes.flatten().tolist() == [1, 1, 1, -1, 1, -1, 1, 1, -2, 1]
    assert torch.equal(errors.flatten(), (targets - codes.flatten() + 1) / 2)


def test_blocks_of_larger_tensors_are_read_where_they_are() -> None:
    weight, upper, step = case(2, 7, 24, 7)
    part = slice(5, 21)
    for scale, zero, group, *codes in (rows_of(step, 24, 7), groups_of(weight, 3, -8, 7, 0)):
        rounding = scale, zero, group[:, part], *codes
        found = launch(weight.double()[:, :, part], upper[:, part, part], *rounding)
        expected = on_the_cpu(weight[:, :, part], upper[:, part, part], *rounding)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1].float(), expected[1])


def test_torch_accepts_the_op() -> None:
    weight, upper, step = case(2, 3, 4, 7)
    for kind, rounding in ((torch.float32, rows_of(step, 4, 7)), (torch.float64, groups_of(weight, 2, -8, 7, 0))):
        sides = (side.to(DEVICE) for side in rounding[:3])
        arguments = weight.to(DEVICE, kind), upper.to(DEVICE), *sides, *rounding[3:]
        torch.library.opcheck(torch.ops.quantgolf.gptq_block.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(2, 3, 129)}, "weight is .* expected .* 1 to 128 columns side by side"),
        ({"weight": torch.ones(2, 4, 3).mT}, "weight is .* columns side by side"),
        ({"weight": torch.ones(2, 3, 4).half()}, "weight is torch.float16"),
        ({"upper": torch.ones(2, 4, 5)}, r"upper is torch.float32 \[2, 4, 5\], expected .* \[2, 4, 4\]"),
        ({"step": torch.ones(2, 1, 3).double()}, "step is torch.float64"),
        ({"step": torch.ones(2, 3)}, r"step is torch.float32 \[2, 3\], expected torch.float32 \[2, 1, 3\]"),
        ({"step": torch.ones(2, 1, 3, device="meta")}, "step is on meta, expected cpu"),
        ({"zero": torch.ones(2, 2, 3, dtype=torch.int8)}, r"zero is torch.int8 \[2, 2, 3\], expected .* \[2, 1, 3\]"),
        ({"zero": torch.ones(2, 1, 3)}, "zero is torch.float32"),
        ({"group": torch.zeros(2, 4)}, "group is torch.float32"),
        ({"group": torch.zeros(2, 5, dtype=torch.int32)}, r"group is torch.int32 \[2, 5\]"),
        ({"lowest": 0, "highest": 0}, "codes go from 0 to 0, expected two of -128 to 127 with 0 among them"),
        ({"highest": 128}, "codes go from -7 to 128"),
        ({"lowest": 1}, "codes go from 1 to 7"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    weight, upper, step = case(2, 3, 4, 7)
    names = ("weight", "upper", "step", "zero", "group", "lowest", "highest")
    arguments = dict(zip(names, (weight, upper, *rows_of(step, 4, 7)), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        gptq_block(**arguments)


def test_the_block_stays_in_registers(ahead) -> None:  # type: ignore[no-untyped-def]
    kernels = ahead(
        "from quantgolf_kernels.gptq_block import launch_gptq_block\n"
        "weight, upper = torch.empty(11, 512, 2048).double(), torch.empty(11, 2048, 2048).double()\n"
        "group = torch.empty(11, 2048, dtype=torch.int32)[:, 128:256]\n"
        "for groups in (1, 16):\n"
        "    step, zero = torch.empty(11, groups, 512), torch.empty(11, groups, 512, dtype=torch.int8)\n"
        "    launch_gptq_block(weight[:, :, 128:256], upper[:, 128:256, 128:256], step, zero, group, -32, 31)"
    )
    assert len(kernels) == 2
    for kernel in kernels:  # one scale a row, and groups
        assert kernel["registers"] <= 128  # 16 warps a multiprocessor; 96 when this was written
        assert len(kernel["code"]) < 900  # 664: a loop that was unrolled would have thousands
