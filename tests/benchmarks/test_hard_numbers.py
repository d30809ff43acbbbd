"""Samples of what `hard_numbers.py` tries by the thousand, and that it notices what it is to notice."""

from pathlib import Path

import pytest
import torch
from hard_numbers import against_rounding, not_finite, tried_once
from hostile import DTYPES, MOMENTS, SHAPES, WEIGHTS, statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_files import budgets, merged
from numbers_solve import WAYS, Outcome, decoders_agree, fault_of

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), shape=st.sampled_from(list(SHAPES)), kind=st.sampled_from(list(WEIGHTS)),
    dtype=st.sampled_from(DTYPES), moment=st.sampled_from(list(MOMENTS)), name=st.sampled_from(list(WAYS)),
)  # fmt: skip
def test_hostile_matrices_come_back_as_they_were_solved(
    seed: int, shape: str, kind: str, dtype: torch.dtype, moment: str, name: str
) -> None:
    fault, _ = tried_once(seed, shape, kind, dtype, moment, name)
    assert fault is None


def test_samples_of_the_rest(tmp_path: Path) -> None:
    for tried, _, faults, _ in (not_finite(), against_rounding(14), merged(1), budgets(1, tmp_path)):
        assert tried and not faults


def test_faults_are_seen() -> None:
    weight = torch.full((2, 3), 2.0).half()
    stats = statistics("gaussian", 2, 3, torch.Generator().manual_seed(0), True)
    good = WAYS["rtn 8"](weight, stats)
    assert fault_of(weight, stats, good) is None and decoders_agree(good) is None
    for restored, loss, what in (
        (torch.full((2, 3), torch.nan), 0.0, "not finite"),
        (torch.full((2, 3), 65_530.0), 0.0, "not finite in torch.float16"),
        (good.restored, float("nan"), "a loss of nan"),
        (good.restored + 1, good.loss, "in fp64"),
    ):
        assert what in str(fault_of(weight, stats, Outcome(restored, loss, b"")))
    assert decoders_agree(Outcome(good.restored + 1, 0.0, good.data))
