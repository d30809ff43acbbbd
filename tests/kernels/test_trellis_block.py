"""The trellis on a GPU: for the same targets the CPU's levels, and in a block of columns those of its loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.solve.gptq import factorise
from quantgolf.solve.slope import _solve_block
from quantgolf.solve.trellis import CODES, Trellis
from quantgolf_kernels.solve_ops import best_path, trellis_block

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STATES = (1, *CODES)


def launch(*arguments: object) -> tuple[Tensor, Tensor]:
    from quantgolf_kernels.trellis_block import launch_trellis_block

    moved = [part.to(DEVICE) if isinstance(part, Tensor) else part for part in arguments]
    return tuple(found.cpu() for found in launch_trellis_block(*moved))  # type: ignore[arg-type, return-value]


def ways(trellis: Trellis) -> Tensor:
    return torch.from_numpy(trellis.ways)


def one_column(targets: Tensor, trellis: Trellis) -> Tensor:
    """Levels of a matrix with one column, whose weights are the targets."""
    ones = torch.ones(1, 1, dtype=torch.float64)
    row = torch.ones(1, len(targets), dtype=torch.float64)
    levels, errors = launch(targets[None, None], ones[None], row, ones, ways(trellis), trellis.restart)
    assert torch.equal(errors[0, 0], targets - levels[0, 0])
    return levels[0, 0]


def case(batch: int, columns: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [B, C, N], factors whose feedback matters, and steps of rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(batch, columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(batch, 4 * columns, columns, generator=generator) @ mixing
    upper = torch.stack([factorise(x.T @ x / len(x), 0.01, False, "w").upper for x in inputs])
    weight = torch.randn(batch, columns, rows, generator=generator).double()
    return weight, upper, torch.rand(batch, rows, generator=generator).double() + 0.2, upper.diagonal(0, 1, 2).abs()


def on_the_cpu(weight: Tensor, upper: Tensor, row: Tensor, column: Tensor, trellis: Trellis) -> tuple[Tensor, Tensor]:
    levels, errors = torch.empty(weight.shape, dtype=torch.int32), torch.empty(weight.shape, dtype=torch.float64)
    for b in range(len(weight)):
        _solve_block(
            weight[b].clone().numpy(), upper[b].numpy(), row[b].numpy(), column[b].numpy(), trellis.arrivals,
            trellis.restart, levels[b].numpy(), errors[b].numpy(),
        )  # fmt: skip
    return levels, errors


@pytest.mark.parametrize("states", STATES)
@pytest.mark.parametrize(("rows", "restart"), [(1, 1), (70, 33), (65, 10**12)])
def test_levels_are_those_of_the_cpu(states: int, rows: int, restart: int) -> None:
    trellis = Trellis(states, restart)
    for spread in (0.4, 30.0):
        targets = torch.from_numpy(np.random.default_rng([states, rows]).normal(0, spread, rows))
        found = one_column(targets, trellis)
        assert np.array_equal(found.numpy(), trellis.quantize(targets.numpy()))
        alone = best_path(targets[None, :restart], ways(trellis), torch.zeros(1, dtype=torch.int64))[0]
        assert torch.equal(alone[0], found[:restart])


@settings(deadline=None, max_examples=15)
@given(
    targets=st.lists(st.integers(-40, 40).map(lambda x: x / 4), min_size=1, max_size=12), restart=st.integers(1, 13),
    states=st.sampled_from([1, 4, 8]),
)  # fmt: skip
def test_ties_are_settled_as_on_the_cpu(targets: list[float], restart: int, states: int) -> None:
    """Quarters of a step: paths that cost the same are common, and levels in the middle of two."""
    trellis, aims = Trellis(states, restart), torch.tensor(targets, dtype=torch.float64)
    assert np.array_equal(one_column(aims, trellis).numpy(), trellis.quantize(aims.numpy()))


def test_runs_longer_than_what_is_traced_at_once() -> None:
    trellis = Trellis(8, 1000)
    targets = torch.from_numpy(np.random.default_rng(3).normal(0, 3, 300))
    assert np.array_equal(one_column(targets, trellis).numpy(), trellis.quantize(targets.numpy()))


@settings(deadline=None, max_examples=8)
@given(
    batch=st.integers(1, 2), columns=st.integers(1, 6), rows=st.integers(1, 9), restart=st.integers(1, 10),
    states=st.sampled_from([1, 4, 32]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_blocks_are_those_of_the_cpu(batch: int, columns: int, rows: int, restart: int, states: int, seed: int) -> None:
    """Sums of errors are taken in another order: 1e-16 of them, and no tie is that near."""
    weight, upper, row, column = case(batch, columns, rows, seed)
    trellis = Trellis(states, restart)
    expected = on_the_cpu(weight, upper, row, column, trellis)
    for solve in (launch, trellis_block):
        levels, errors = solve(weight, upper, row, column, ways(trellis), restart)
        assert torch.equal(levels, expected[0]) and levels.dtype == torch.int32
        assert torch.allclose(errors, expected[1], rtol=0, atol=1e-12)


def test_blocks_of_larger_tensors_are_read_where_they_are() -> None:
    weight, upper, row, column = case(2, 12, 20)
    part, trellis = slice(3, 7), Trellis(8, 8)
    inside = weight[:, part, :], upper[:, part, part], row, column[:, part].contiguous()
    levels, _ = launch(*inside, ways(trellis), trellis.restart)
    assert torch.equal(levels, on_the_cpu(*(side.contiguous() for side in inside), trellis)[0])


def test_more_columns_than_errors_are_loaded_at_once() -> None:
    weight, upper, row, column = case(1, 10, 4)
    levels, _ = launch(weight, upper, row, column, ways(Trellis(4, 3)), 3)
    assert torch.equal(levels, on_the_cpu(weight, upper, row, column, Trellis(4, 3))[0])


def test_more_rows_than_are_made_at_once() -> None:
    weight, upper, row, column = case(1, 3, 150)
    trellis = Trellis(4, 140)
    levels, _ = launch(weight, upper, row, column, ways(trellis), trellis.restart)
    assert torch.equal(levels, on_the_cpu(weight, upper, row, column, trellis)[0])


def test_torch_accepts_the_op() -> None:
    weight, upper, row, column = (side.to(DEVICE) for side in case(2, 3, 5))
    arguments = weight, upper, row, column, ways(Trellis(4)).to(DEVICE), 3
    torch.library.opcheck(torch.ops.quantgolf.trellis_block.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(2, 5, 3).mT.double()}, "weight is .* rows side by side"),
        ({"weight": torch.ones(2, 3, 5)}, r"weight is torch.float32 \[2, 3, 5\], expected torch.float64"),
        ({"upper": torch.ones(2, 4, 3)}, r"upper is torch.float32 \[2, 4, 3\], expected .* \[2, 3, 3\]"),
        ({"row": torch.ones(2, 4).double()}, "row is"),
        ({"column": torch.ones(2, 3)}, "column is torch.float32"),
        ({"ways": torch.zeros(5, dtype=torch.int32)}, r"ways is \[5\], expected \[states\]"),
        ({"ways": torch.zeros(4, dtype=torch.int64)}, "ways is torch.int64"),
        ({"restart": 0}, "restart is 0, expected at least 1 row"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    weight, upper, row, column = case(2, 3, 5)
    arguments = {
        "weight": weight, "upper": upper, "row": row, "column": column, "ways": ways(Trellis(4)), "restart": 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        trellis_block(**(arguments | change))


def test_a_run_stays_in_registers(ahead) -> None:  # type: ignore[no-untyped-def]
    found = ahead(
        "from quantgolf_kernels.trellis_block import launch_trellis_block\n"
        "for states in (1, 4, 128, 256):\n"
        "    weight, upper = torch.empty(11, 512, 2048).double(), torch.empty(11, 512, 512).double()\n"
        "    launch_trellis_block(weight[:, 32:64], upper[:, 32:64, 32:64], torch.empty(11, 2048).double(),\n"
        "        torch.empty(11, 32).double(), torch.empty(states, dtype=torch.int32), 256)"
    )
    assert [kernel["warps"] for kernel in found] == [4, 4, 4, 8]
    assert all(kernel["registers"] <= 128 and len(kernel["code"]) < 2000 for kernel in found)
