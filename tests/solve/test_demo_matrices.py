"""On the matrices of a real model each solver has to be better than the one before."""

from typing import Any

import pytest

from quantgolf.solve import SolveOptions, prepare, solve


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_beats_rtn_on_every_matrix(demo: Any, bits: int) -> None:
    for name, stats in demo.stats.items():
        weight = demo.source.tensors[name].float()
        loss = {
            solver: solve(prepare(weight, stats, solver, SolveOptions()), bits)[1].loss
            for solver in ("rtn", "gptq_lite", "gptq")
        }
        assert loss["gptq"] < loss["rtn"], name
        assert loss["gptq_lite"] < loss["rtn"], name
