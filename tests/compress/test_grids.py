"""Groups, zeros, logarithmic scales and codecs from the solvers to a file: budgets, plans, predictions, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quantgolf.allocate import parse_bits
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import batches_of, calibrate, compress, dry_run, refuse_unreachable
from quantgolf.compress.candidates import Candidates
from quantgolf.compress.fixed import FixedWidths, largest_group, sizes_of
from quantgolf.compress.matrices import choose
from quantgolf.data import Corpus, Tokenizer, read_corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.solve import SolveOptions, Solver
from quantgolf.solve.grid import Grid
from quantgolf.types import Calibration, Choice

pytestmark = pytest.mark.usefixtures("one_thread")

GRIDS = [Grid(20), Grid(None, False), Grid(7, False, "log"), Grid(16, True, "log")]


@pytest.fixture
def text(prose: Path, tokenizer: Tokenizer) -> Corpus:
    return read_corpus(prose, tokenizer)


@pytest.fixture
def learned(tiny: Checkpoint, text: Corpus) -> Calibration:
    return calibrate(tiny, text, tokens=1024, length=64)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_files_keep_to_the_budget_and_hold_what_was_solved(
    tiny: Checkpoint, learned: Calibration, solver: Solver, grid: Grid
) -> None:
    limit, options = 30_000, SolveOptions(grid=grid)
    made = compress(tiny, learned, max_bytes=limit, code_bytes=123, solver=solver, options=options)
    assert limit * 0.95 < len(made.data) + 123 <= limit and made.plan.predicted_bytes == len(made.data)
    assert set(made.plan.groups.values()) == {grid.group_size} and set(made.plan.bits) == set(made.plan.groups)
    state = made.module().state_dict()
    solved = Candidates(choose(tiny, learned)[0], learned.stats, solver, options)
    for name, report in made.reports.items():
        error = state[name].float() - tiny.tensors[name].float()
        assert learned.stats[name].loss(error) == pytest.approx(report.loss, rel=0.02)  # but for fp16
        again = solved.solve({name: Choice(made.plan.bits[name], grid.group_size)})[name]
        assert again.report.loss == report.loss


def test_the_best_of_several_sizes_is_chosen_for_every_matrix(tiny: Checkpoint, learned: Calibration) -> None:
    options, sizes = SolveOptions(grid=Grid(scales="log")), (8, None)
    for limit in (22_000, 30_000, 60_000):
        made = compress(tiny, learned, max_bytes=limit, solver="gptq", options=options, group_sizes=sizes)
        assert len(made.data) <= limit and set(made.plan.groups.values()) <= set(sizes)
        alone = [
            compress(tiny, learned, max_bytes=limit, solver="gptq", options=SolveOptions(grid=Grid(size, scales="log")))
            for size in sizes
        ]
        assert made.plan.predicted_loss <= min(each.plan.predicted_loss for each in alone) * 1.01
    # What the plan said is what lies in the file.
    blocks = {tensor.name: tensor.blocks[0] for tensor in made.coded.tensors}
    for name, size in made.plan.groups.items():
        groups = blocks[name].groups
        assert groups is not None and groups.base is not None and not groups.zeros
        columns = tiny.tensors[name].shape[1]
        assert groups.size == (columns if size is None else min(size, columns))


def test_scales_and_zeros_count(tiny: Checkpoint, learned: Calibration) -> None:
    """Of a group a column they are several times the codes; what is predicted is what the file then takes."""
    matrices, kept = choose(tiny, learned)
    for grid in (Grid(1, False), Grid(16, False, "log")):
        fixed = FixedWidths(tiny, matrices, kept, learned.stats, "rtn", SolveOptions(grid=grid))
        made = fixed.exactly(dict.fromkeys(matrices, Choice(3, grid.group_size)))
        costs = sum(fixed.costs[name][Choice(3, grid.group_size)].bytes for name in matrices)
        spent = len(made.coded.steps) + len(made.coded.zeros)
        codes = sum(len(block.codes) for tensor in made.coded.tensors for block in tensor.blocks)
        assert costs == pytest.approx(spent + codes, rel=0.03)
        assert grid.group_size != 1 or spent > 2 * codes


def test_widths_by_hand_take_any_grid(tiny: Checkpoint, learned: Calibration) -> None:
    rules, options = parse_bits("attn.*=6,up.*=4,down.*=5,emb=3"), SolveOptions(grid=Grid(10, False))
    made = compress(tiny, learned, rules=rules, options=options)
    assert made.plan.bits["emb.weight"] == 3 and set(made.plan.groups.values()) == {10}
    with pytest.raises(QuantGolfError, match="of 2 group sizes the best is chosen within a limit"):
        compress(tiny, learned, rules=rules, group_sizes=(10, None))
    rows = compress(tiny, learned, rules=rules)
    limit = (len(rows.data) + len(made.data)) // 2
    some = compress(tiny, learned, rules=rules, max_bytes=limit, group_sizes=(10, None))
    assert some.plan.bits == rows.plan.bits and set(some.plan.groups.values()) == {10, None}
    assert len(some.data) <= limit


@pytest.mark.parametrize("codec", ["rans", "zstd"])
def test_a_codec_can_be_asked_for(tiny: Checkpoint, learned: Calibration, codec: Any) -> None:
    limit = 26_000
    made = compress(tiny, learned, max_bytes=limit, solver="gptq", codec=codec)
    assert limit * 0.95 < len(made.data) <= limit
    auto = compress(tiny, learned, rules=[("*", 4)])
    other = compress(tiny, learned, rules=[("*", 4)], codec=codec)
    assert len(auto.data) <= len(other.data) and auto.reports == other.reports
    for mine, theirs in zip(auto.module().parameters(), other.module().parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_bytes": 30_000, "solver": "gptq", "grid": Grid(16, False)}, id="asymmetric"),
        pytest.param({"max_bytes": 24_000, "solver": "rtn", "grid": Grid(16, True, "log")}, id="log"),
        pytest.param({"rules": [("*", 3)], "grid": Grid(8, False, "log")}, id="by hand"),
        pytest.param({"max_bytes": 30_000, "solver": "gptq", "sizes": (8, 32, None)}, id="several"),
        pytest.param({"rules": [("*", 4)], "max_bytes": 40_000, "sizes": (8, None)}, id="several by hand"),
    ],
)
def test_a_dry_run_knows_grids(tiny: Checkpoint, text: Corpus, learned: Calibration, options: dict[str, Any]) -> None:
    grid, sizes = options.pop("grid", Grid()), options.pop("sizes", None)
    given = {**options, "options": SolveOptions(grid=grid), "group_sizes": sizes}
    found = dry_run(tiny, text, batches_of(text, tokens=1024, length=64), length=64, **given)
    real = compress(tiny, learned, **given)
    assert found.file_bytes == pytest.approx(len(real.data), rel=0.03)
    smallest = largest_group(sizes_of(SolveOptions(grid=grid), sizes))
    least = compress(
        tiny, learned, rules=[("*", 2)], options=SolveOptions(grid=Grid(smallest, grid.symmetric, grid.scales))
    )
    assert found.smallest_bytes == pytest.approx(len(least.data), rel=0.04)


@pytest.mark.parametrize("grid", [Grid(8, False), Grid(16, True, "log")], ids=str)
def test_refused_budgets_name_a_size_that_works(tiny: Checkpoint, learned: Calibration, grid: Grid) -> None:
    options = SolveOptions(grid=grid)
    with pytest.raises(BudgetError, match=f"with 2 bits everywhere and scales of {grid.group_size} columns") as caught:
        refuse_unreachable(tiny, 3000, solver="gptq", options=options)
    nearest = caught.value.nearest
    rows = compress(tiny, learned, rules=[("*", 2)])
    assert nearest > len(rows.data)
    made = compress(tiny, learned, max_bytes=nearest, solver="gptq", options=options)
    assert nearest * 0.9 < len(made.data) <= nearest
    with pytest.raises(BudgetError, match="cannot be met: with 2 bits everywhere and scales"):
        compress(tiny, learned, max_bytes=int(nearest * 0.9), solver="gptq", options=options)
    refuse_unreachable(tiny, nearest, solver="gptq", options=options, group_sizes=(grid.group_size, None))


def test_what_has_no_effect_is_refused(tiny: Checkpoint, learned: Calibration) -> None:
    for options in (SolveOptions(grid=Grid(32)), SolveOptions(grid=Grid(scales="log"))):
        with pytest.raises(QuantGolfError, match="one slope has steps of rows and columns and no other grid"):
            compress(tiny, learned, max_bytes=30_000, options=options)
    with pytest.raises(QuantGolfError, match="no other grid"):
        compress(tiny, learned, max_bytes=30_000, group_sizes=(32,))
    with pytest.raises(QuantGolfError, match="--codec zstd is for the codes of fixed widths"):
        compress(tiny, learned, max_bytes=30_000, codec="zstd")
    with pytest.raises(QuantGolfError, match="no group size to choose from"):
        compress(tiny, learned, max_bytes=30_000, solver="rtn", group_sizes=())
    with pytest.raises(QuantGolfError, match="group_size is 0"):
        compress(tiny, learned, max_bytes=30_000, solver="rtn", group_sizes=(0, None))


def test_sizes_of_groups() -> None:
    assert sizes_of(SolveOptions(), None) == (None,) and sizes_of(SolveOptions(grid=Grid(8)), None) == (8,)
    assert sizes_of(SolveOptions(), (8, None, 8)) == (8, None)
    assert largest_group((8, None, 64)) is None and largest_group((8, 64)) == 64
