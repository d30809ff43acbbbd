"""Feedback across columns and rows on a GPU, against the CPU's loops and those in plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantgolf.solve.diagonals import solve_diagonals as solve_on_the_cpu
from quantgolf.solve.gptq import factorise
from quantgolf.solve.trellis import Trellis
from quantgolf_kernels.solve_ops import solve_diagonals

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def launch(*arguments: object) -> Tensor:
    from quantgolf_kernels.diagonal_block import launch_diagonals

    moved = [part.to(DEVICE) if isinstance(part, Tensor) else part for part in arguments]
    return launch_diagonals(*moved).cpu()  # type: ignore[arg-type]


def factor(batch: int, size: int, generator: torch.Generator) -> Tensor:
    mixing = torch.randn(batch, size, size, generator=generator) / size**0.5 + torch.eye(size)
    inputs = torch.randn(batch, 4 * size, size, generator=generator) @ mixing
    return torch.stack([factorise(x.T @ x / len(x), 0.03, False, "w").upper.float() for x in inputs])


def case(batch: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights [B, N, K], factors whose feedback matters, and steps of rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    upper, across = factor(batch, columns, generator), factor(batch, rows, generator)
    weight = torch.randn(batch, rows, columns, generator=generator)
    row, column = across.diagonal(0, 1, 2).double() * 0.5, upper.diagonal(0, 1, 2).double()
    return weight, upper, across, row.contiguous(), column.contiguous()


def on_the_cpu(weight: Tensor, upper: Tensor, across: Tensor, row: Tensor, column: Tensor, trellis: Trellis) -> Tensor:
    return torch.stack(
        [
            torch.from_numpy(
                solve_on_the_cpu(weight[b], upper[b], across[b], row[b].numpy(), column[b].numpy(), trellis)
            )
            for b in range(len(weight))
        ]
    )


@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    batch=st.integers(1, 2), rows=st.integers(1, 7), columns=st.integers(1, 7), restart=st.integers(1, 8),
    states=st.sampled_from([1, 4, 16]), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_levels_are_those_of_the_cpu(batch: int, rows: int, columns: int, restart: int, states: int, seed: int) -> None:
    """fp32 sums in another order tip a level only where its target lies within 1e-6 of a tie: not among these."""
    parts, trellis = case(batch, rows, columns, seed), Trellis(states, restart)
    expected, ways = on_the_cpu(*parts, trellis), torch.from_numpy(trellis.ways)
    for solve in (launch, solve_diagonals):
        levels = solve(*parts, ways, restart)
        assert levels.dtype == torch.int32 and levels.shape == expected.shape
        assert torch.equal(levels, expected)


@pytest.mark.parametrize(("rows", "columns", "restart"), [(70, 37, 40), (35, 101, 10**9)])
def test_blocks_far_and_near_add_up(rows: int, columns: int, restart: int) -> None:
    """Three blocks, so that errors come from far ones, in both directions; segments in turn, and one alone."""
    parts, trellis = case(1, rows, columns), Trellis(1, restart)
    levels = launch(*parts, torch.from_numpy(trellis.ways), restart)
    assert (levels == on_the_cpu(*parts, trellis)).double().mean() > 0.999
    # A scalar quantizer never errs by more than half a step, whatever has come before.
    weight, upper, across, row, column = (part[0].double() for part in parts)
    step = row[:, None] * column
    inner = torch.linalg.solve_triangular(across.T, weight - levels[0] * step, upper=False)
    eta = torch.linalg.solve_triangular(upper, inner, upper=True, left=False)
    rounding = eta * across.diagonal()[:, None] * upper.diagonal() / step
    assert rounding.abs().max() < 0.501


def test_a_run_goes_on_where_its_diagonal_left_it() -> None:
    """More rows than columns: a run is pieces of several diagonals, and its state is handed from one to the next."""
    parts, trellis = case(1, 14, 4), Trellis(8, 6)
    levels = launch(*parts, torch.from_numpy(trellis.ways), 6)
    assert torch.equal(levels, on_the_cpu(*parts, trellis))
    for d in range(4):
        state = 0
        for i in range(14):
            level = int(levels[0, i, (d - i) % 4])
            state = 0 if i % 6 == 0 else state
            assert level == 0 or level % 2 == state % 2
            label = abs(level) // 2 % 2 if level % 2 == 0 else 1 - abs(level) // 2 % 2
            state = int(trellis.after[state, label])


def test_torch_accepts_the_op() -> None:
    parts = [part.to(DEVICE) for part in case(2, 3, 4)]
    arguments = *parts, torch.from_numpy(Trellis(4).ways).to(DEVICE), 2
    torch.library.opcheck(torch.ops.quantgolf.solve_diagonals.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(2, 4, 3).mT}, "weight is .* columns side by side"),
        ({"weight": torch.ones(2, 3, 4).double()}, "weight is torch.float64"),
        ({"upper": torch.ones(2, 3, 3)}, r"upper is torch.float32 \[2, 3, 3\], expected torch.float32 \[2, 4, 4\]"),
        ({"across": torch.ones(2, 4, 4)}, "across is"),
        ({"row": torch.ones(2, 3)}, "row is torch.float32"),
        ({"column": torch.ones(1, 4).double()}, "column is"),
        ({"ways": torch.zeros(4)}, "ways is torch.float32"),
        ({"restart": -1}, "restart is -1"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    weight, upper, across, row, column = case(2, 3, 4)
    arguments = {
        "weight": weight, "upper": upper, "across": across, "row": row, "column": column,
        "ways": torch.from_numpy(Trellis(4).ways), "restart": 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        solve_diagonals(**(arguments | change))


def test_programs_stay_in_registers(ahead) -> None:  # type: ignore[no-untyped-def]
    found = ahead(
        "from quantgolf_kernels.diagonal_block import Diagonals\n"
        "weight, upper, across = torch.empty(2, 512, 256), torch.empty(2, 256, 256), torch.empty(2, 512, 512)\n"
        "row, column = torch.empty(2, 512).double(), torch.empty(2, 256).double()\n"
        "for states in (128, 256, 1):\n"
        "    ways = torch.empty(states, dtype=torch.int32)\n"
        "    solve = Diagonals.begin(weight, upper, across, row, column, ways, 256)\n"
        "    solve.far(9)\n"
        "    solve.between(300, 301)"
    )
    assert [kernel["name"] for kernel in found] == ["far_kernel", "diagonals_kernel"] * 3
    assert all(kernel["registers"] <= 128 and kernel["mma"] == 0 for kernel in found)  # products are IEEE fp32
