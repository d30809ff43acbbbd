"""One slope under a byte budget: never over, hardly under, read back as it was solved, and better than fixed widths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import calibrate, compress
from quantgolf.compress.slope_size import gaussian_bits
from quantgolf.data import Tokenizer, read_corpus
from quantgolf.errors import BudgetError, QuantGolfError
from quantgolf.evaluate import evaluate_against, kl_difference
from quantgolf.runtime import load, restore
from quantgolf.solve.trellis import Trellis


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("limit", [7_000, 14_321, 33_000])
def test_files_keep_to_the_budget_and_use_it(
    tiny: Checkpoint, prose: Path, tokenizer: Tokenizer, tmp_path: Path, limit: int, states: int
) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=2048, length=64)
    result = compress(tiny, calibration, max_bytes=limit, solver="slope", trellis=Trellis(states), code_bytes=777)
    result.write(tmp_path / "a.qg")
    size = (tmp_path / "a.qg").stat().st_size
    assert size == len(result.data) and limit - 256 <= size + 777 <= limit
    again = compress(tiny, calibration, max_bytes=limit, solver="slope", trellis=Trellis(states), code_bytes=777)
    assert again.data == result.data


def test_predicted_loss_is_that_of_what_the_file_holds(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=2048, length=64)
    result = compress(tiny, calibration, max_bytes=14_000, solver="slope")
    tensors = restore(result.coded)
    for name, report in result.reports.items():
        block = calibration.blocks[name]
        error = block.matrix(tensors[block.parameter]) - block.matrix(tiny.tensors[block.parameter]).float()
        assert calibration.stats[name].loss(error) == pytest.approx(report.loss, rel=1e-4)
    assert result.plan.predicted_loss == pytest.approx(sum(r.loss for r in result.reports.values()))
    assert result.plan.bits == {}


def test_one_slope_beats_fixed_widths_at_equal_bytes(demo: Any, tmp_path: Path) -> None:
    limit = 2 * demo.source.parameters // 5
    measured = {}
    for solver in ("gptq", "slope"):
        result = compress(demo.source, demo.calibration, max_bytes=limit, solver=solver)
        result.write(tmp_path / f"{solver}.qg")
        measured[solver], _ = evaluate_against(load(tmp_path / f"{solver}.qg"), demo.source.module, demo.text)
    assert limit - 256 <= (tmp_path / "slope.qg").stat().st_size <= limit
    assert kl_difference(measured["gptq"], measured["slope"]).low > 0
    kl = {solver: result.kl_bpb for solver, result in measured.items()}
    assert kl["slope"] is not None and kl["gptq"] is not None and kl["slope"] < 0.6 * kl["gptq"]  # 0.51


def test_unreachable_budgets_and_widths_are_refused(tiny: Checkpoint, prose: Path, tokenizer: Tokenizer) -> None:
    calibration = calibrate(tiny, read_corpus(prose, tokenizer), tokens=512, length=64)
    with pytest.raises(BudgetError, match="next to no bits") as caught:
        compress(tiny, calibration, max_bytes=700, solver="slope")
    assert len(compress(tiny, calibration, max_bytes=caught.value.nearest, solver="slope").data) <= caught.value.nearest
    with pytest.raises(QuantGolfError, match="expected max_bytes and no rules"):
        compress(tiny, calibration, max_bytes=20_000, solver="slope", rules=[("*", 4)])


def test_bits_of_gaussian_numbers() -> None:
    bits = gaussian_bits(np.array([-40, 0, 8, 20, 60]))
    assert bits[0] < 1e-6
    assert bits[2] == pytest.approx(2 + 2.047, abs=0.01)  # high rate: log2 σ + ½ log2 2πe
    assert bits[4] - bits[3] == pytest.approx(10, abs=0.05)
    assert torch.tensor(bits).diff().gt(0).all()
