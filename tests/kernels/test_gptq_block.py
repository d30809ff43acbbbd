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


def on_the_cpu(weight: Tensor, upper: Tensor, step: Tensor, top: int) -> tuple[Tensor, Tensor]:
    codes, errors = torch.empty(weight.shape, dtype=torch.int8), torch.empty(weight.shape)
    for b in range(len(weight)):
        rest, triangle = weight[b].float().T.clone(memory_format=torch.contiguous_format), upper[b].float().contiguous()
        found, left = np.empty(rest.shape, dtype=np.int8), np.empty(rest.shape, dtype=np.float32)
        solve_block(rest.numpy(), triangle.numpy(), step[b].numpy(), top, found, left)
        codes[b], errors[b] = torch.from_numpy(found).T, torch.from_numpy(left).T
    return codes, errors


def in_plain_loops(weight: Tensor, upper: Tensor, step: Tensor, top: int) -> tuple[NDArray[np.int64], float]:
    """Codes of one matrix, and how near to a tie the nearest target came, in steps."""
    w, u, s = weight.double().numpy().copy(), upper.double().numpy(), step.double().numpy()
    codes, margin = np.zeros(w.shape, dtype=np.int64), 1.0
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            target = w[i, j] / s[i]
            codes[i, j] = min(max(round(target), -top), top)
            if abs(target) < top:
                margin = min(margin, abs(abs(target - np.floor(target)) - 0.5))
            error = (w[i, j] - codes[i, j] * s[i]) / u[j, j]
            for k in range(j + 1, w.shape[1]):
                w[i, k] -= error * u[j, k]
    return codes, margin


@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 2), rows=st.integers(1, 9), columns=st.integers(1, 20), top=st.sampled_from([1, 3, 31, 127]),
    double=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_codes_are_those_of_the_cpu(batch: int, rows: int, columns: int, top: int, double: bool, seed: int) -> None:
    weight, upper, step = case(batch, rows, columns, top, seed)
    if double:
        weight = weight.double()
    found = launch(weight, upper, step, top)
    for codes, errors in (on_the_cpu(weight, upper, step, top), gptq_block(weight, upper, step, top)):
        assert torch.equal(found[0], codes) and torch.equal(found[1], errors.to(found[1].dtype))
    assert found[0].dtype == torch.int8 and found[1].dtype == weight.dtype


@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 6), columns=st.integers(1, 12), top=st.integers(1, 127), seed=st.integers(0, 10**6))
def test_codes_are_those_of_plain_loops(rows: int, columns: int, top: int, seed: int) -> None:
    weight, upper, step = case(1, rows, columns, top, seed)
    codes, _ = launch(weight, upper, step, top)
    expected, margin = in_plain_loops(weight[0], upper[0], step[0], top)
    if margin > 1e-3:  # fp32 may settle a tie differently, and whatever follows in that row
        assert np.array_equal(codes[0].numpy(), expected)


def test_ties_go_to_even_and_levels_stay_within() -> None:
    targets = torch.tensor([0.5, 1.5, -0.5, -1.5, 2.5, -2.5, 2.4999998, 99.0, -99.0, 0.0])
    codes, errors = launch(targets.reshape(1, -1, 1), torch.full((1, 1, 1), 2.0), torch.ones(1, 10), 2)
    assert codes.flatten().tolist() == [0, 2, 0, -2, 2, -2, 2, 2, -2, 0]
    assert torch.equal(errors.flatten(), (targets - codes.flatten()) / 2)


def test_blocks_of_larger_tensors_are_read_where_they_are() -> None:
    weight, upper, step = case(2, 7, 24, 7)
    part = slice(5, 21)
    found = launch(weight.double()[:, :, part], upper[:, part, part], step, 7)
    expected = on_the_cpu(weight[:, :, part], upper[:, part, part], step, 7)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1].float(), expected[1])


def test_torch_accepts_the_op() -> None:
    weight, upper, step = case(2, 3, 4, 7)
    for kind in (torch.float32, torch.float64):
        arguments = weight.to(DEVICE, kind), upper.to(DEVICE), step.to(DEVICE), 7
        torch.library.opcheck(torch.ops.quantgolf.gptq_block.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(2, 3, 129)}, "weight is .* expected .* 1 to 128 columns side by side"),
        ({"weight": torch.ones(2, 4, 3).mT}, "weight is .* columns side by side"),
        ({"weight": torch.ones(2, 3, 4).half()}, "weight is torch.float16"),
        ({"upper": torch.ones(2, 4, 5)}, r"upper is torch.float32 \[2, 4, 5\], expected .* \[2, 4, 4\]"),
        ({"step": torch.ones(2, 3).double()}, "step is torch.float64"),
        ({"step": torch.ones(2, 3, device="meta")}, "step is on meta, expected cpu"),
        ({"top": 0}, "top is 0, expected 1 to 127"),
        ({"top": 128}, "top is 128, expected 1 to 127"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    weight, upper, step = case(2, 3, 4, 7)
    arguments = {"weight": weight, "upper": upper, "step": step, "top": 7} | change
    with pytest.raises(ValueError, match=message):
        gptq_block(**arguments)


def test_the_block_stays_in_registers(ahead) -> None:  # type: ignore[no-untyped-def]
    (kernel,) = ahead(
        "from quantgolf_kernels.gptq_block import launch_gptq_block\n"
        "weight, upper = torch.empty(11, 512, 2048).double(), torch.empty(11, 2048, 2048).double()\n"
        "launch_gptq_block(weight[:, :, 128:256], upper[:, 128:256, 128:256], torch.empty(11, 512), 31)"
    )
    assert kernel["registers"] <= 128  # 16 warps a multiprocessor; 96 when this was written
    assert len(kernel["code"]) < 900  # 664: a loop that was unrolled would have thousands
