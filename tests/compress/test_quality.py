"""What it is all for, on the demo model: KL falls with every better solver, and GPTQ wins at equal bytes."""

from copy import deepcopy
from typing import Any

import pytest
import torch

from quantgolf.calibrate import weights
from quantgolf.compress import compress
from quantgolf.evaluate import evaluate_against, kl_difference
from quantgolf.runtime import load
from quantgolf.solve import SolveOptions, Solver, prepare, solve
from quantgolf.types import EvalResult

SOLVERS: tuple[Solver, ...] = ("rtn", "gptq_lite", "gptq")


def at_width(demo: Any, solver: Solver, bits: int) -> EvalResult:
    module = deepcopy(demo.source.module)
    targets = dict(weights(module))
    for name, stats in demo.stats.items():
        tensor, _ = solve(prepare(demo.source.tensors[name].float(), stats, solver, SolveOptions()), bits)
        with torch.no_grad():
            targets[name].copy_(tensor.dequantize())
    return evaluate_against(module, demo.source.module, demo.text)[0]


@pytest.mark.parametrize("bits", [3, 4])
def test_kl_falls_from_rtn_to_gptq_lite_to_gptq(demo: Any, bits: int) -> None:
    rtn, lite, gptq = (at_width(demo, solver, bits) for solver in SOLVERS)
    assert kl_difference(rtn, lite).low > 0
    assert kl_difference(lite, gptq).low > 0
    assert rtn.kl_bpb is not None and gptq.kl_bpb is not None
    if bits == 4:
        assert gptq.kl_bpb <= rtn.kl_bpb / 2


def test_at_equal_bytes_gptq_wins_and_no_file_is_over(demo: Any, tmp_path: Any) -> None:
    limit, kl = 2 * demo.source.parameters // 5, {}
    for solver in SOLVERS:
        result = compress(demo.source, demo.calibration, max_bytes=limit, solver=solver)
        path = tmp_path / f"{solver}.qg"
        result.write(path)
        assert 0.995 * limit <= path.stat().st_size <= limit
        reloaded, base = evaluate_against(load(path), demo.source.module, demo.text)
        in_memory, _ = evaluate_against(result.module(), demo.source.module, demo.text)
        assert abs(reloaded.bpb - in_memory.bpb) < 1e-6
        assert reloaded.bpb > base.bpb
        kl[solver] = reloaded
    assert kl_difference(kl["rtn"], kl["gptq"]).low > 0
    assert kl_difference(kl["gptq_lite"], kl["gptq"]).low > 0


def test_fixed_overhead_of_the_demo_file_is_small(demo: Any) -> None:
    result = compress(demo.source, demo.calibration, rules=[("*", 3)], solver="rtn")
    streams = (
        sum(len(b.codes) for t in result.coded.tensors for b in t.blocks)
        + len(result.coded.steps)
        + len(result.coded.small)
    )
    assert len(result.data) - streams < 300
