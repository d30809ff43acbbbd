"""Budgets met to the byte at any limit, sizes and losses that follow the slope, and files after a single token."""

import itertools
import math
from functools import cache
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from quantgolf.blob import pack, parse
from quantgolf.calibrate import collect
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import compress
from quantgolf.encode import DTYPES, Entry, Leveled, encode_model
from quantgolf.errors import BudgetError
from quantgolf.runtime import restored
from quantgolf.solve import SolveOptions, Solver
from quantgolf.solve.slope import prepare_slope, solve_slope
from quantgolf.solve.trellis import Trellis
from quantgolf.types import Block, Calibration, Exponents, WeightStats, WeightUse

Way = Solver | Literal["slope"]
WAYS: list[Way] = ["slope", "gptq", "gptq_lite", "rtn"]


@cache
def small(tokens: int = 96) -> tuple[Checkpoint, Calibration]:
    """A model of 9,000 weights in fp16, and statistics of so many tokens."""
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Embedding(90, 24), nn.Linear(24, 70), nn.Tanh(), nn.Linear(70, 90, bias=False)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) / 4).half())
    tensors = {name: value.half() for name, value in module.state_dict().items()}
    stream = torch.randint(90, (1, tokens + 1), generator=generator)
    return Checkpoint(module, tensors, {}, None), collect(module, [(stream[:, :-1], stream[:, 1:])])


def fits(data: bytes, source: Checkpoint) -> None:
    for entry, whole in restored(parse(data)[1]):
        assert whole.shape == source.tensors[entry.name].shape
        assert whole.to(DTYPES[entry.dtype]).isfinite().all(), entry.name


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(way=st.sampled_from(WAYS), limit=st.integers(1, 20_000), code=st.integers(0, 3_000))
def test_never_one_byte_over_and_what_is_named_works(way: Way, limit: int, code: int) -> None:
    source, known = small()
    trellis = Trellis(4)

    def size(most: int) -> int:
        found = compress(source, known, max_bytes=most, solver=way, code_bytes=code, trellis=trellis)
        fits(found.data, source)
        return len(found.data) + code

    try:
        assert size(limit) <= limit
    except BudgetError as error:
        assert error.nearest > limit
        assert size(error.nearest) <= error.nearest
        with pytest.raises(BudgetError):
            size(min(limit, error.nearest - 1))


@pytest.mark.parametrize("states", [1, 128])
@pytest.mark.parametrize("across", [True, False])
def test_size_falls_and_loss_rises_along_the_slope(states: int, across: bool) -> None:
    """Within 1% across slopes 5% apart, and over both ends of them by as much as theory says."""
    generator = torch.Generator().manual_seed(4)
    rows, columns = 256, 96
    weight = torch.randn(rows, columns, generator=generator) / torch.rand(rows, columns, generator=generator).sqrt()
    x, g = (torch.randn(4 * n, n, generator=generator) * torch.logspace(0, -1, n) for n in (columns, rows))
    outputs = g.T @ g / len(g)
    use = WeightUse("linear", outputs.diagonal().clone(), x.T @ x / len(x), 99, outputs if across else None)
    stats, trellis, original = WeightStats("w", (use,), 99), Trellis(states), weight.half()
    grid, feedback = prepare_slope(weight, stats, SolveOptions())
    assert grid.diagonal == across
    first, known = 2.0 ** (grid.spread - float(grid.row.mean() + grid.column.mean()) - 3), []
    for step in range(15):
        row, column, spread = grid.powers(first * 1.05**step)
        levels = np.ascontiguousarray(solve_slope(weight, feedback, row, column, trellis))
        exponents = Exponents(torch.from_numpy(row), torch.from_numpy(column), spread)
        part = Leveled(Block("w", 1, 0, rows), exponents, torch.from_numpy(levels), grid.diagonal)
        steps = exponents.steps()
        assert steps.column is not None
        error = torch.from_numpy(levels).float() * (steps.row[:, None] * steps.column) - weight
        known.append((len(pack(encode_model([Entry("w", original, (part,))], trellis), None)), stats.loss(error)))
    for (larger, lower), (smaller, higher) in itertools.pairwise(known):
        assert smaller <= 1.01 * larger and higher >= 0.99 * lower
    octaves = math.log2(1.05**14)
    assert 8 * (known[0][0] - known[-1][0]) / weight.numel() == pytest.approx(octaves, rel=0.15)
    assert known[-1][1] / known[0][1] == pytest.approx(4**octaves, rel=0.2)


@pytest.mark.parametrize("way", WAYS)
def test_a_single_token_is_enough_for_a_file(way: Way) -> None:
    source, known = small(1)
    assert known.tokens == 1
    result = compress(source, known, max_bytes=5_000, solver=way, trellis=Trellis(8))
    fits(result.data, source)
    assert len(result.data) <= 5_000
    assert result.reports and all(math.isfinite(report.loss) for report in result.reports.values())
